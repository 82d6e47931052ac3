"""Multiply coordinates of the states: neurons at `mlp_post`, heads at `z`, or any others.

    x_i ← factor_i · x_i

Factor 0 switches a neuron or head off, 1 leaves it as it is (Gurnee et al. 2024 ablate neurons; Michel et al. 2019
and McGrath et al. 2023 heads). For the mean instead of zero see `Patch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from steerlab.errors import SiteError, SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.models.operators import Operator
from steerlab.steering._amounts import at_layer, require_finite
from steerlab.steering._intervention import Intervention
from steerlab.steering._sentence import listed
from steerlab.steering.registry import register_intervention


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Scale(Intervention):
    """Multiply some coordinates of the states at some sites.

    Args:
        factor: one number, or one a coordinate (or head); or one of these by layer ``{8: 0.5, 9: 0.0}``.
        coordinates: which coordinates of the site's state (neurons at `mlp_post`), from 0.
        heads: at `z`, which heads instead. With neither the whole state is scaled.

    Where (``sites`` must be named), on which tokens and when: see `Intervention`.

    Raises:
        SteeringError: factors do not fit the coordinates, or both coordinates and heads are given.
        SiteError: on entering a context, a coordinate or head the site has not.
    """

    kind: ClassVar[str] = "scale"
    _directions: ClassVar[tuple[str, ...]] = ()
    _needs_width: ClassVar[bool] = True

    factor: float | Sequence[float] | Mapping[int, float | Sequence[float]] = 0.0
    coordinates: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    _head_dim: list[int] = field(init=False, repr=False, default_factory=list)

    def _said(self) -> str:
        factor = f"{self.factor:g}" if isinstance(self.factor, int | float) else f"{len(self.factor)} factors"
        if isinstance(self.factor, Mapping):
            factor = "factors by layer"
        for what, chosen in (("coordinates", self.coordinates), ("heads", self.heads)):
            if chosen is not None:
                return f"multiplies {what} {listed(chosen)} by {factor}"
        return f"multiplies states by {factor}"

    def _validate(self) -> None:
        for name in ("coordinates", "heads"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(int(index) for index in getattr(self, name)))
        if self.coordinates is not None and self.heads is not None:
            raise SteeringError("Scale takes either coordinates or heads, not both; use two in a row.")
        if self.heads is not None and any(site.name != "z" for site in self.sites):
            raise SteeringError(f"Heads are found at z, not at {self.sites[0]}; name z sites or coordinates.")
        chosen = self.heads if self.coordinates is None else self.coordinates
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0):
            raise SteeringError(f"{list(chosen)} does not name coordinates or heads, each once and from 0.")
        if not isinstance(self.factor, Mapping):
            object.__setattr__(self, "factor", _checked(self.factor, chosen))
            return
        by_layer = {layer: _checked(factor, chosen) for layer, factor in self.factor.items()}
        object.__setattr__(self, "factor", by_layer)
        for site in self.sites:
            at_layer(by_layer, site, "factor")

    def check(self, model: LanguageModel) -> None:
        """Raise `SiteError` unless every site has the coordinates or heads."""
        if self.heads is not None:
            self._head_dim[:] = [model.head_dim]
        super().check(model)
        for site in self.sites:
            self.operator(site)

    def _operator(self, site: Site) -> Operator:
        width = self._width(site)
        keep = torch.ones(width, dtype=torch.float64)
        factor = torch.tensor(at_layer(self.factor, site, "factor"), dtype=torch.float64)
        if self.heads is None:
            chosen = torch.arange(width) if self.coordinates is None else torch.tensor(self.coordinates)
            last, what = int(chosen.max()), "coordinate"
        else:
            if not self._head_dim:
                raise SteeringError(
                    "How wide a head is, the model says; enter model.steering(...) with this Scale."
                )
            (size,) = self._head_dim
            chosen = (torch.tensor(self.heads)[:, None] * size + torch.arange(size)).flatten()
            factor = factor if factor.dim() == 0 else factor.repeat_interleave(size)
            last, what, width = max(self.heads), "head", width // size
        if last >= width:
            raise SiteError(f"{site} has no {what} {last}; it has {width}, counted from 0.")
        keep[chosen] = factor
        return Operator(keep=keep)


def _checked(factor: float | Sequence[float], chosen: Sequence[int] | None) -> float | tuple[float, ...]:
    """A factor, or one for each coordinate or head that is scaled."""
    if isinstance(factor, int | float):
        require_finite("factor", factor)
        return factor
    factors = tuple(float(number) for number in factor)
    require_finite("factor", *factors)
    if chosen is None or len(factors) != len(chosen):
        raise SteeringError(
            f"{len(factors)} factors came for {len(chosen or ())} coordinates or heads; give one each."
        )
    return factors
