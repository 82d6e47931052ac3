"""A direction's unit vector on the device and in the precision of the states."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.models import Site
from steerlab.models.operators import Operator


class UnitVector:
    """A direction's only vector at a site, at length one; moved to a device and precision once."""

    def __init__(self, direction: Direction, site: Site) -> None:
        vector = direction[direction.source(site)].double()
        self._shift = Operator(shift=torch.nn.functional.normalize(vector, dim=0))

    def like(self, state: Float[Tensor, ...]) -> Float[Tensor, " width"]:
        """On the state's device and in its precision."""
        vector = self._shift.to(state.device, state.dtype).shift
        assert vector is not None
        return vector
