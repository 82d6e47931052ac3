"""A low-rank affine map of the states: x ← x + strength · (x A + b) C.

A holds the reading vectors as columns, C the writing vectors as rows: the k numbers x·a_i + b_i are read off the
state and written back along c_i. Addition is b alone, ablation C = −Aᵀ with orthonormal columns; a map between two
directions ("where the state says this, say that") is a rank of one. This is the family of representation fine-tuning's
DiReFT (Wu et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Operator
from steerlab.steering._amounts import Strength, require_finite, strength_at
from steerlab.steering._intervention import Intervention
from steerlab.steering._sentence import amount
from steerlab.steering.registry import register_intervention


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Affine(Intervention):
    """Read k numbers off the states, write them back along k vectors.

    Args:
        reads: the k reading vectors a site, as they are (not normalised).
        writes: the k writing vectors a site.
        offset: b, one number or k.
        strength: scales what is written, or by layer.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: a direction has no vectors for a site.
        SteeringError: the numbers of vectors and offsets differ.
    """

    kind: ClassVar[str] = "affine"
    _directions: ClassVar[tuple[str, ...]] = ("reads", "writes")

    reads: Direction
    writes: Direction
    offset: float | Sequence[float] = 0.0
    strength: Strength = 1.0

    def _said(self) -> str:
        return (
            f"reads {self.reads.estimator} and writes {amount(self.strength)} times {self.writes.estimator}"
        )

    def _validate(self) -> None:
        if not isinstance(self.offset, int | float):
            object.__setattr__(self, "offset", tuple(float(number) for number in self.offset))

    def _operator(self, site: Site) -> Operator:
        reads = self.reads.vectors[self.reads.source(site)].double()
        writes = self.writes.vectors[self.writes.source(site)].double()
        if len(reads) != len(writes):
            raise SteeringError(
                f"At {site} {len(reads)} vectors are read and {len(writes)} written; give one for each."
            )
        numbers = (self.offset,) * len(reads) if isinstance(self.offset, int | float) else self.offset
        require_finite("offset", *numbers)
        if len(numbers) != len(reads):
            raise SteeringError(
                f"{len(numbers)} offsets came for {len(reads)} vectors at {site}; give one each."
            )
        scaled = strength_at(self.strength, site) * writes
        return Operator(
            reads=reads.T, writes=scaled, shift=torch.tensor(numbers, dtype=torch.float64) @ scaled
        )
