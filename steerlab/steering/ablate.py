"""Ablate a direction: x ← x − Q Qᵀ x, with Q an orthonormal basis of the direction's vectors.

By default at every write to the residual stream: the input of each block, what attention and MLP add (after a
post-norm, where there is one), and the input of the final norm. The whole stream then stays orthogonal to the
direction in every family (Arditi et al. 2024; projecting the modules' raw outputs, as their code does, leaks where a
post-norm follows).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import DirectionError
from steerlab.models import All, LanguageModel, Selector, Site
from steerlab.steering import _direction_edit as shared

STREAM_WRITES = ("resid_pre", "attn_out", "mlp_out", "ln_final_in")


@dataclass(frozen=True, eq=False)
class Ablate:
    """Remove a direction (or the span of several vectors) from the states at some sites and positions.

    Args:
        direction: k vectors a site. With one site they act everywhere; with several each site uses its own.
        sites: where to ablate; by default everywhere in the residual stream, which needs a direction with a
            single site (choose it with ``direction.at(site)``). Which sites that are, `check` learns from the model.
        positions: which tokens.

    Raises:
        DirectionError: when the direction has no vector for a site, or several and no site is named.
    """

    direction: Direction
    sites: Sequence[Site] = ()
    positions: Selector = field(default_factory=All)
    everywhere: bool = field(init=False, repr=False, default=False)
    _bases: dict[Site, Tensor] = field(init=False, repr=False, default_factory=dict)
    _cache: shared.Cache = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sites and len(self.direction.sites) != 1:
            raise DirectionError(
                f"Ablating everywhere needs one vector, but the direction has {len(self.direction.sites)} sites; pick "
                "one with direction.at(site), or name the sites to ablate each with its own."
            )
        object.__setattr__(self, "everywhere", not self.sites)
        object.__setattr__(self, "sites", tuple(self.sites))
        for site in self.direction.sites:
            rows = self.direction.vectors[site].double()
            self._bases[site] = torch.linalg.qr(rows.T).Q

    def apply(self, state: Float[Tensor, "... width"], site: Site) -> Tensor:
        """The state without its part in the direction's span, as a new tensor."""
        source = self.direction.source(site)
        basis = shared.cached(self._cache, source, state, self._bases[source])
        return state - (state @ basis) @ basis.T

    def check(self, model: LanguageModel) -> None:
        """Raise `DirectionError` unless the direction belongs to this model and fits the sites."""
        if self.everywhere:
            object.__setattr__(self, "sites", stream_writes(model))
        self.direction.check(model, sites=self.sites)

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON data; the direction is named by its hash, and no sites mean everywhere."""
        return {
            "edit": "ablate",
            "direction": self.direction.hash,
            "sites": None if self.everywhere else [str(site) for site in self.sites],
            "positions": shared.positions_to_text(self.positions),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], directions: Iterable[Direction]) -> Ablate:
        """The edit that :meth:`to_dict` wrote, with its direction found among ``directions``."""
        sites = data["sites"]
        return cls(
            shared.find_direction(data, directions),
            sites=tuple(Site.parse(text) for text in sites or ()),
            positions=shared.positions_from_text(data["positions"]),
        )


def stream_writes(model: LanguageModel) -> tuple[Site, ...]:
    """Every site of a model at which something enters the residual stream, and where the stream is last read."""
    names = model.site_names()
    sites = [site for name in STREAM_WRITES if name in names for site in model.sites(name)]
    if "ln_final_in" not in names:  # a family without a final norm
        sites.append(Site("resid_post", model.n_layers - 1))
    return tuple(sorted(sites))
