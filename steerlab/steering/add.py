"""Add a direction to the stream: x ← x + strength · u, with u the vector, its class gap or a share of the stream.

    unit "raw"        u = v                      as estimated: 1 moves by the vector itself
    unit "class_gap"  u = gap · v̂                1 moves one class mean onto the other (along v̂)
    unit "norm"       u = mean ‖x‖ · v̂           0.1 moves by a tenth of the stream's norm

Activation addition (Turner et al. 2023; Rimsky et al. 2024; Arditi et al. 2024). For an angle see `Rotate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Operator
from steerlab.steering._intervention import Intervention, Strength, require_finite, strength_at
from steerlab.steering.registry import register_intervention

Unit = Literal["raw", "class_gap", "norm"]


@register_intervention
@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """Add ``strength`` units of a direction at some sites and positions.

    Args:
        direction: one vector a site (k = 1). With a single site it may be added anywhere of its width, with
            several only where it has a vector; without ``sites`` it is added at its own.
        strength: how many units, or by layer ``{8: 0.5, 9: 1.0}``, which then says the layers too; zero leaves
            every state as it is.
        unit: what one unit is, see the module.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction has no vector for a site, or the unit's scale is not known.
        SteeringError: for an unknown unit.
    """

    kind: ClassVar[str] = "add"

    direction: Direction
    strength: Strength = 1.0
    unit: Unit = "raw"

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
        vector = self.direction[source].double()
        if self.unit == "raw":
            return vector
        known = self.direction.at(source)
        length = known.class_gap[source] if self.unit == "class_gap" else known.stream_norm[source]
        return length * torch.nn.functional.normalize(vector, dim=0)
