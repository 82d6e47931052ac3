"""What steering costs where it is not wanted, under the name the studies use: see `steerlab.steering.price`."""

from __future__ import annotations

from steerlab.steering.price import Positions, SideEffects, side_effects

__all__ = ["Positions", "SideEffects", "side_effects"]
