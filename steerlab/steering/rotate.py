"""Turn states towards a direction and keep their norm.

    unit "alpha"  x ← ‖x‖ (x̂ + α m̂) / ‖x̂ + α m̂‖      tan φ = α sin θ / (1 + α cos θ), so φ ≤ asin α
    unit "angle"  x ← cos φ x + sin φ ‖x‖ ê           φ degrees in the plane of x and m̂, never past m̂

θ is the angle between x and m̂, ê the unit vector at right angles to x in their plane. The first is UNLOCK's injection
(arXiv 2604.06377; there after every block, on the last prompt token only), the second turns every token alike.
Negative strengths turn away. Neither the direction's length nor the stream's matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Share
from steerlab.steering._amounts import Strength, require_finite, strength_at
from steerlab.steering._intervention import Intervention
from steerlab.steering._sentence import amount
from steerlab.steering._unit_vector import UnitVector
from steerlab.steering.registry import register_intervention

RotationUnit = Literal["alpha", "angle"]


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Rotate(Intervention):
    """Turn the states towards a direction.

    Args:
        direction: one vector a site (k = 1).
        strength: α or degrees, or by layer ``{8: 0.05, 9: 0.1}``; zero leaves every state as it is.
        unit: which of the two, see the module. A schedule scales it.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction has no vector for a site or several.
        SteeringError: for an unknown unit.
    """

    kind: ClassVar[str] = "rotate"

    direction: Direction
    strength: Strength = 0.05
    unit: RotationUnit = "alpha"
    _towards: dict[Site, UnitVector] = field(init=False, repr=False, default_factory=dict)

    def _said(self) -> str:
        how = f"alpha {amount(self.strength)}" if self.unit == "alpha" else f"{amount(self.strength)} degrees"
        return f"turns states towards {self.direction.estimator} by {how}"

    def _validate(self) -> None:
        if self.unit not in get_args(RotationUnit):
            raise SteeringError(
                f"There is no unit {self.unit!r} of rotation; choose from {', '.join(get_args(RotationUnit))}."
            )
        for site in self.sites:
            self._towards[site] = UnitVector(self.direction, site)
            require_finite("strength", strength_at(self.strength, site))

    def _changed(
        self, state: Float[Tensor, "batch position width"], site: Site, share: Share
    ) -> Float[Tensor, "batch position width"]:
        if site not in self._towards:
            self._towards[site] = UnitVector(self.direction, site)
        towards = self._towards[site].like(state)
        amount: Share = strength_at(self.strength, site) * share
        if isinstance(amount, Tensor):
            amount = amount.to(state.dtype)
        norm: Tensor = state.norm(dim=-1, keepdim=True)
        if self.unit == "alpha":
            turned = state + amount * norm * towards
            return _at_norm(turned, norm)
        return _turned(state, norm, towards, amount * (math.pi / 180))


def _turned(state: Tensor, norm: Tensor, towards: Tensor, angle: Share) -> Tensor:
    """The states turned by an angle in radians, at most up to the direction or its opposite."""
    limits = torch.finfo(state.dtype)
    along = (state @ towards)[..., None]
    across = norm * towards - along * (state / norm.clamp(min=limits.tiny))  # ‖x‖ sin θ · ê
    size = across.norm(dim=-1, keepdim=True)
    between = torch.atan2(size, along)
    wanted = angle if isinstance(angle, Tensor) else size.new_full((), angle)
    turn = torch.where(wanted > 0, torch.minimum(wanted, between), torch.maximum(wanted, between - math.pi))
    # A state on the direction's own line has no plane to turn in, only rounding errors that look like one.
    turn = torch.where(size > 8 * limits.eps * norm, turn, 0.0)
    unit = across / size.clamp(min=limits.tiny)
    return _at_norm(torch.cos(turn) * state + torch.sin(turn) * norm * unit, norm)


def _at_norm(state: Tensor, norm: Tensor) -> Tensor:
    size: Tensor = state.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(state.dtype).tiny)
    return state * (norm / size)
