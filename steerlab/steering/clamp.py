"""Clamp: set the component along a direction, x ← x + (c − x·v̂) v̂, or only keep it on one side of c.

    bound "exact"    the component becomes c
    bound "floor"    it becomes max(x·v̂, c)
    bound "ceiling"  it becomes min(x·v̂, c)

With several vectors all components are set at once: x ← x + (c − V̂x) V̂⁺, V̂⁺ the pseudo-inverse. The value c is a number
in the units of the states, or a class, whose mean the direction knows: clamping to it makes every token look like the
class's average along v̂ (persona vectors: Chen et al. 2025; clamped features: Templeton et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Operator, Share, blended
from steerlab.steering._amounts import at_layer, require_finite, unit_rows
from steerlab.steering._intervention import Intervention
from steerlab.steering._unit_vector import UnitVector
from steerlab.steering.registry import register_intervention

Bound = Literal["exact", "floor", "ceiling"]


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Clamp(Intervention):
    """Set the component along a direction to a value.

    Args:
        direction: k vectors a site.
        value: what the component x·v̂ becomes: a number (or k of them), "positive" or "negative" for the mean of
            the class the direction points to or away from, or the name of a class; or one of these by layer
            ``{8: 1.5, 9: 2.0}``, which then says the layers too.
        bound: whether the component is set, or only raised to the value or lowered to it (k = 1).

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: the direction has no vector for a site.
        SteeringError: a class mean is not known, the values do not fit the vectors, or these depend on each other.
    """

    kind: ClassVar[str] = "clamp"
    _by_layer: ClassVar[str] = "value"

    direction: Direction
    value: float | str | Sequence[float] | Mapping[int, float | str | Sequence[float]] = 0.0
    bound: Bound = "exact"
    _along: dict[Site, tuple[UnitVector, float]] = field(init=False, repr=False, default_factory=dict)

    def _said(self) -> str:
        how = {"exact": "sets", "floor": "raises", "ceiling": "lowers"}[self.bound]
        value = "a value by layer" if isinstance(self.value, Mapping) else self.value
        return f"{how} the component along {self.direction.estimator} to {value}"

    def _validate(self) -> None:
        if self.bound not in get_args(Bound):
            raise SteeringError(
                f"There is no bound {self.bound!r}; choose from {', '.join(get_args(Bound))}."
            )
        if not isinstance(self.value, str | int | float | Mapping):
            object.__setattr__(self, "value", tuple(float(number) for number in self.value))
        for site in self.sites:
            self._target(site)

    def _operator(self, site: Site) -> Operator | None:
        if self.bound != "exact":
            return None
        rows = unit_rows(self.direction, site)
        if torch.linalg.matrix_rank(rows) < len(rows):
            raise SteeringError(
                f"The {len(rows)} vectors at {site} depend on each other, so their components cannot all be set; "
                "keep independent ones."
            )
        inverse: Tensor = torch.linalg.pinv(rows).T
        return Operator(reads=-rows.T, writes=inverse, shift=self._target(site) @ inverse)

    def _changed(
        self, state: Float[Tensor, "batch position width"], site: Site, share: Share
    ) -> Float[Tensor, "batch position width"]:
        if site not in self._along:
            self._along[site] = UnitVector(self.direction, site), float(self._target(site))
        vector, value = self._along[site]
        unit = vector.like(state)
        missing = value - state @ unit
        change = missing.clamp(min=0) if self.bound == "floor" else missing.clamp(max=0)
        return blended(state, state + change[..., None] * unit, share)

    def _target(self, site: Site) -> Float[Tensor, " k"]:
        source = self.direction.source(site)
        k = len(self.direction.vectors[source])
        if self.bound != "exact" and k > 1:
            raise SteeringError(
                f"A {self.bound} along {k} vectors at {site} is not one change; clamp each on its own."
            )
        given = at_layer(self.value, site, "value to clamp to")
        values = self._class_mean(source, given) if isinstance(given, str) else given
        numbers = (float(values),) * k if isinstance(values, int | float) else tuple(values)
        require_finite("value to clamp to", *numbers)
        if len(numbers) != k:
            raise SteeringError(
                f"{len(numbers)} values came for the {k} vectors at {site}; give one a vector."
            )
        return torch.tensor(numbers, dtype=torch.float64)

    def _class_mean(self, source: Site, value: str) -> Sequence[float]:
        known = self.direction.statistics[source]
        label = {"positive": known.positive, "negative": known.negative}.get(value, value)
        if label not in known.class_means:
            classes = ", ".join(known.class_means) or "none"
            raise SteeringError(
                f"The mean of class {value!r} at {source} is not known (known: {classes}); fit the direction from "
                "labelled states, or give a number."
            )
        return known.class_means[str(label)]
