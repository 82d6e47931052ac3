"""Project on a subspace: x ← m + Q Qᵀ (x − m), with Q an orthonormal basis of the direction's vectors.

The component outside the subspace becomes that of the point m (the mean of some states, see `mean_state`) or zero. This
shows what the rest of the model does with the subspace alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steerlab.directions import Direction
from steerlab.models import Site
from steerlab.models.operators import Operator
from steerlab.steering._amounts import orthonormal
from steerlab.steering._intervention import Intervention
from steerlab.steering.registry import register_intervention


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Project(Intervention):
    """Keep only the part of the states in a direction's span.

    Args:
        direction: k vectors a site.
        about: the point the rest becomes, one vector a site; None means zero.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: direction or point have no vector for a site.
    """

    kind: ClassVar[str] = "project"
    _directions: ClassVar[tuple[str, ...]] = ("direction", "about")

    direction: Direction
    about: Direction | None = None

    def _said(self) -> str:
        about = "" if self.about is None else f", about {self.about.estimator},"
        return f"keeps only the part along {self.direction.estimator}{about}"

    def _operator(self, site: Site) -> Operator:
        basis = orthonormal(self.direction, site)
        nothing = torch.zeros(len(basis), dtype=torch.float64)
        if self.about is None:
            return Operator(keep=nothing, reads=basis, writes=basis.T)
        point = self.about[self.about.source(site)].double()
        return Operator(keep=nothing, reads=basis, writes=basis.T, shift=point - (point @ basis) @ basis.T)
