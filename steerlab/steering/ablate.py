"""Ablate a direction: x ← x − Q Qᵀ (x − m), with Q an orthonormal basis of the direction's vectors.

    toward 0            m = 0: the component is removed                                    (Arditi et al. 2024)
    toward "mean"       m = the mean state of the site                 (affine concept editing, Marshall et al. 2024)
    toward "harmless"   m = the mean state of a class the direction knows ("positive" and "negative" name either end)
    toward a value      the component along v̂ becomes that number, everywhere or by site

Toward zero the default is every write to the residual stream: the input of each block, what attention (or another
mixer) and MLP add (after a post-norm, where there is one), and the input of the final norm. The whole stream then
stays orthogonal to the direction in every family (projecting the modules' raw outputs, as the published code does,
leaks where a post-norm follows). Toward one number the stream keeps that component all along, and what blocks add has
none.

Where every token shares a large mean (97 % of the norm in Gemma-3-270M), any direction has a part of it, and taking
that part out breaks the model whatever the direction means. About the mean of a class only what differs from it is
changed. The mean differs from site to site, so the default is then the output of every block; a window of layers costs
less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site, site_of
from steerlab.models.operators import Operator
from steerlab.models.sites import CONTRIBUTIONS
from steerlab.steering._amounts import at_layers, orthonormal, require_finite, unit_rows, where_it_works
from steerlab.steering._intervention import Intervention
from steerlab.steering.registry import register_intervention

STREAM_WRITES = ("resid_pre", *CONTRIBUTIONS, "ln_final_in")
#: A component (k of them for k vectors) or a state [width].
Value: TypeAlias = "float | Sequence[float] | Tensor"
Toward: TypeAlias = "float | str | Mapping[Any, Value]"


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Ablate(Intervention):
    """Remove a direction (or the span of several vectors) from the states at some sites and positions.

    Args:
        direction: k vectors a site. With one site they act everywhere; with several each site uses its own.
            Without ``sites`` its only vector, or that of its best site, is removed everywhere in the residual stream;
            which sites those are, `check` learns from the model.
        toward: what the component becomes, see the module: 0, a number (k = 1), "mean", the name of a class (their
            means by site are in the direction's file), or by site ``{"resid_post.8": 1.5}`` a number, k numbers or a
            state [width]. The first token, whose state is often of another size, is left out with
            ``positions=All() - Index(0)``.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction has no vector for a site, or does not know the mean there.
        SteeringError: when it has several sites, no best one, and no site is named; or the value is none.
    """

    kind: ClassVar[str] = "ablate"

    direction: Direction
    toward: Toward = 0.0
    everywhere: bool = field(init=False, repr=False, default=False)

    def check(self, model: LanguageModel) -> None:
        """Raise `DirectionError` unless the direction belongs to this model and fits the sites."""
        if self.everywhere:
            object.__setattr__(self, "sites", stream_writes(model))
        super().check(model)

    @property
    def constant(self) -> float | None:
        """The one number the component becomes; None where that differs by site."""
        return float(self.toward) if isinstance(self.toward, int | float) else None

    def _said(self) -> str:
        return f"removes {self.direction.estimator}{toward_text(self.toward)}"

    def _validate(self) -> None:
        if isinstance(self.toward, bool) or not isinstance(self.toward, int | float | str | Mapping):
            raise SteeringError(
                f"An ablation goes toward 0, a number, 'mean', the name of a class or values by site, not toward "
                f"{self.toward!r:.80}."
            )
        if isinstance(self.toward, Mapping):
            by_site = {site_of(name): _plain(value) for name, value in self.toward.items()}
            object.__setattr__(self, "toward", by_site)

    def _operator(self, site: Site) -> Operator:
        basis = orthonormal(self.direction, site)
        return Operator(reads=-basis, writes=basis.T, shift=self._kept(site, basis))

    def _kept(self, site: Site, basis: Float[Tensor, "width k"]) -> Float[Tensor, " width"] | None:
        """What the states keep in the span; None for nothing."""
        if isinstance(self.toward, str):
            return _within(basis, self.direction.mean(site, self.toward).double())
        value: Any = self.toward if not isinstance(self.toward, Mapping) else self._value_at(site)
        if not torch.as_tensor(value).any() or (self.everywhere and site.name in CONTRIBUTIONS):
            return None
        numbers = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        require_finite("value to ablate toward", *numbers.tolist())
        rows = unit_rows(self.direction, site)
        if numbers.numel() == len(rows):
            inverse: Tensor = torch.linalg.pinv(rows)
            return inverse @ numbers
        if numbers.numel() == basis.shape[0]:
            return _within(basis, numbers)
        raise SteeringError(
            f"{numbers.numel()} numbers came for the {len(rows)} vectors at {site}; give one a vector, or a state of "
            f"{basis.shape[0]}."
        )

    def _value_at(self, site: Site) -> Value:
        assert isinstance(self.toward, Mapping)
        if site not in self.toward:
            known = ", ".join(map(str, self.toward))
            raise SteeringError(f"There is no value to ablate toward at {site}; the mapping has {known}.")
        value: Value = self.toward[site]
        return value

    def _like(self, site: Site) -> Site:
        return self.direction.source(site) if self.constant == 0 else site

    def _default_sites(self, layers: Sequence[int] | None) -> Sequence[Site]:
        if layers is not None:
            return at_layers(self.direction, layers)
        object.__setattr__(self, "direction", self.direction.at(*where_it_works(self.direction)))
        if isinstance(self.toward, str | Mapping):
            return self._by_site()
        object.__setattr__(self, "everywhere", True)
        return ()

    def _by_site(self) -> Sequence[Site]:
        """The sites that are named with their values, or the output of every block."""
        if isinstance(self.toward, Mapping):
            return tuple(site_of(name) for name in self.toward)
        family: Any = ("resid_post",)  # the name stays until the model says how many layers there are
        return tuple(family)

    def _plain_value(self, name: str, value: Any) -> Any:
        if name == "toward" and isinstance(value, Mapping):
            return {str(site): _plain(numbers) for site, numbers in value.items()}
        return super()._plain_value(name, value)

    @classmethod
    def _read(cls, name: str, value: Any, *known: Any) -> Any:
        return value if name == "toward" else super()._read(name, value, *known)

    def _sites_as_data(self) -> list[str] | None:
        return None if self.everywhere else super()._sites_as_data()


def stream_writes(model: LanguageModel) -> tuple[Site, ...]:
    """Every site of a model at which something enters the residual stream, and where the stream is last read."""
    names = model.site_names()
    sites = [site for name in STREAM_WRITES if name in names for site in model.sites(name)]
    if "ln_final_in" not in names:  # a family without a final norm
        sites.append(Site("resid_post", model.n_layers - 1))
    return tuple(sorted(sites))


def toward_text(toward: Toward) -> str:
    """ " toward the harmless mean"; nothing for zero."""
    if isinstance(toward, str):
        return " toward the mean" if toward == "mean" else f" toward the {toward} mean"
    if isinstance(toward, Mapping):
        return " toward values by site"
    return f" toward {toward:g}" if toward else ""


def _within(basis: Float[Tensor, "width k"], state: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    """The part of a state in the span."""
    part: Tensor = basis @ (basis.T @ state)
    return part


def _plain(value: Any) -> float | list[float]:
    """A number or a list of them."""
    try:
        plain: float | list[float] = torch.as_tensor(value, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SteeringError(f"A value to ablate toward is {value!r:.60}; give numbers.") from error
    return plain
