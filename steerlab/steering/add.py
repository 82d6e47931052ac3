"""Add a direction to the stream: x ← x + strength · u, with u the vector, its class gap or a share of the stream.

    unit "class_gap"  u = gap · v̂                1 moves one class mean onto the other (along v̂)
    unit "raw"        u = v                      as estimated: 1 moves by the vector itself
    unit "norm"       u = mean ‖x‖ · v̂           0.1 moves by a tenth of the stream's norm

By default a strength counts class gaps, as it does on the command line; a direction that knows none (and a raw tensor)
is added as it is, and the intervention's text says so.

Activation addition (Turner et al. 2023; Rimsky et al. 2024; Arditi et al. 2024). For an angle see `Rotate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.activations import Activations
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Operator
from steerlab.steering._amounts import Strength, require_finite, strength_at
from steerlab.steering._intervention import Intervention
from steerlab.steering._sentence import amount
from steerlab.steering.registry import register_intervention

Unit = Literal["raw", "class_gap", "norm"]


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Add(Intervention):
    """Add ``strength`` units of a direction at some sites and positions.

    Args:
        direction: one vector a site (k = 1), or a tensor [width] with ``sites``. With a single site it may be
            added anywhere of its width, with several only where it has a vector; without ``sites`` it is added at
            its own.
        strength: how many units, or by layer ``{8: 0.5, 9: 1.0}``, which then says the layers too; zero leaves
            every state as it is.
        unit: what one unit is, see the module; None is "class_gap" where the direction knows its class means,
            else "raw".

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction has no vector for a site, or the unit's scale is not known.
        SteeringError: for an unknown unit.
    """

    kind: ClassVar[str] = "add"

    direction: Any  # a Direction; a tensor is made one
    strength: Strength = 1.0
    unit: Unit | None = None

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        directions: Iterable[Direction],
        states: Iterable[Activations] = (),
    ) -> Self:
        """See `Intervention.from_dict`; without a unit it is raw, as when such data were written."""
        return super().from_dict({"unit": "raw", **data}, directions, states)

    def _take_tensors(self) -> None:
        super()._take_tensors()
        if self.unit is None:
            object.__setattr__(self, "unit", "class_gap" if _knows_gap(self.direction) else "raw")

    def _said(self) -> str:
        strength, name = amount(self.strength), self.direction.estimator
        if self.unit == "raw":
            why = "" if _knows_gap(self.direction) else " (no class gap is known)"
            return f"adds {strength} times {name}, raw{why},"
        what = "class gap" if self.unit == "class_gap" else "stream norm"
        return f"adds {strength} {what}{'' if strength == '1' else 's'} of {name}"

    def _validate(self) -> None:
        if self.unit not in get_args(Unit):
            raise SteeringError(
                f"There is no unit {self.unit!r}; choose from {', '.join(get_args(Unit))}; an angle is Rotate's."
            )
        for site in self.sites:
            require_finite("strength", strength_at(self.strength, site))

    def _operator(self, site: Site) -> Operator:
        return Operator(shift=strength_at(self.strength, site) * self._unit(site))

    def _unit(self, site: Site) -> Float[Tensor, " width"]:
        source = self.direction.source(site)
        vector: Tensor = self.direction[source].double()
        if self.unit == "raw":
            return vector
        known: Direction = self.direction.at(source)
        length = known.class_gap[source] if self.unit == "class_gap" else known.stream_norm[source]
        return length * torch.nn.functional.normalize(vector, dim=0)


def _knows_gap(direction: Direction) -> bool:
    """Whether the distance of the class means is known at every site."""
    known = direction.statistics
    return all(s.positive is not None and s.negative is not None for s in known.values()) and all(
        len(rows) == 1 for rows in direction.vectors.values()
    )
