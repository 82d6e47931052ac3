"""Ablate a direction: x ← x − Q Qᵀ x, with Q an orthonormal basis of the direction's vectors.

By default at every write to the residual stream: the input of each block, what attention (or another mixer) and MLP
add (after a post-norm, where there is one), and the input of the final norm. The whole stream then stays orthogonal to
the direction in every family (Arditi et al. 2024; projecting the modules' raw outputs, as their code does, leaks where
a post-norm follows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from steerlab.directions import Direction
from steerlab.models import LanguageModel, Site
from steerlab.models.operators import Operator
from steerlab.models.sites import CONTRIBUTIONS
from steerlab.steering._amounts import at_layers, orthonormal, where_it_works
from steerlab.steering._intervention import Intervention
from steerlab.steering.registry import register_intervention

STREAM_WRITES = ("resid_pre", *CONTRIBUTIONS, "ln_final_in")


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Ablate(Intervention):
    """Remove a direction (or the span of several vectors) from the states at some sites and positions.

    Args:
        direction: k vectors a site. With one site they act everywhere; with several each site uses its own.
            Without ``sites`` its only vector, or that of its best site, is removed everywhere in the residual stream;
            which sites those are, `check` learns from the model.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction has no vector for a site.
        SteeringError: when it has several sites, no best one, and no site is named.
    """

    kind: ClassVar[str] = "ablate"

    direction: Direction
    everywhere: bool = field(init=False, repr=False, default=False)

    def check(self, model: LanguageModel) -> None:
        """Raise `DirectionError` unless the direction belongs to this model and fits the sites."""
        if self.everywhere:
            object.__setattr__(self, "sites", stream_writes(model))
        super().check(model)

    def _said(self) -> str:
        return f"removes {self.direction.estimator}"

    def _operator(self, site: Site) -> Operator:
        basis = orthonormal(self.direction, site)
        return Operator(reads=-basis, writes=basis.T)

    def _like(self, site: Site) -> Site:
        return self.direction.source(site)

    def _default_sites(self, layers: Sequence[int] | None) -> Sequence[Site]:
        if layers is not None:
            return at_layers(self.direction, layers)
        object.__setattr__(self, "direction", self.direction.at(*where_it_works(self.direction)))
        object.__setattr__(self, "everywhere", True)
        return ()

    def _sites_as_data(self) -> list[str] | None:
        return None if self.everywhere else super()._sites_as_data()


def stream_writes(model: LanguageModel) -> tuple[Site, ...]:
    """Every site of a model at which something enters the residual stream, and where the stream is last read."""
    names = model.site_names()
    sites = [site for name in STREAM_WRITES if name in names for site in model.sites(name)]
    if "ln_final_in" not in names:  # a family without a final norm
        sites.append(Site("resid_post", model.n_layers - 1))
    return tuple(sorted(sites))
