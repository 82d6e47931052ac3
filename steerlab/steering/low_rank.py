"""A learned low-rank affine map of the states at one site: h ← h + strength · (Rᵀ (U h) + c).

R is [rank, width] with orthonormal rows, U [rank, width] what is read, c = Rᵀ b in the span of R. LoReFT (Wu et al.
2024, "ReFT: Representation Finetuning for Language Models") writes it h + Rᵀ(W h + b − R h); with W free that is the
same family, U = W − R. The change lies in the span of R and depends on the state; with U = 0 it is an added vector.

The map is a `Direction`: its vectors at the site are the rows of U, then of R, then c, so its file, its hash and the
model it belongs to are those of any direction. `learning` finds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Operator
from steerlab.steering._amounts import Strength, require_finite, strength_at
from steerlab.steering._intervention import Intervention
from steerlab.steering._sentence import amount
from steerlab.steering.registry import register_intervention

#: The estimator of a map's direction.
ESTIMATOR = "low_rank"


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Intervention):
    """Change the states by a learned map of low rank.

    Args:
        map: of `learn_low_rank`, or read from its file with `Direction.load`.
        strength: scales the change, or by layer; 0 leaves every state as it is.

    Where, on which tokens and when: see `Intervention`; a map acts best where and on the tokens it was learned on.

    Raises:
        SteeringError: a direction that is no such map.
    """

    kind: ClassVar[str] = "low_rank"
    _directions: ClassVar[tuple[str, ...]] = ("map",)

    map: Any  # a Direction of 2 · rank + 1 vectors
    strength: Strength = 1.0

    @property
    def rank(self) -> int:
        """How many numbers are read off a state."""
        return len(self._rows(self.map.sites[0])) // 2

    def random_like(self, seed: int = 0) -> LowRank:
        """The control: a random map of the same rank, as large in what it does to states and in what it adds.

        Reading and writing vectors are random, with the Frobenius norm of Rᵀ U and the length of c kept.
        """
        made = {site: _random(rows.double(), seed) for site, rows in self.map.vectors.items()}
        control = Direction(
            vectors=made,
            model_name=self.map.model_name,
            fingerprint=self.map.fingerprint,
            estimator=ESTIMATOR,
            parameters={"random_like": self.map.hash, "seed": seed},
        )
        return replace(self, map=control)

    def _said(self) -> str:
        times = "" if self.strength == 1 else f"{amount(self.strength)} times "
        return f"applies {times}a learned map of rank {self.rank}"

    def _validate(self) -> None:
        for site in self.sites:
            require_finite("strength", strength_at(self.strength, site))

    def _rows(self, site: Site) -> Float[Tensor, "k width"]:
        if not isinstance(self.map, Direction):
            raise SteeringError(
                "The map of a LowRank is what sl.learn_low_rank(...) gives, or its file, loaded."
            )
        rows: Tensor = self.map.vectors[self.map.source(site)]
        if self.map.estimator != ESTIMATOR or len(rows) < 3 or len(rows) % 2 == 0:
            raise SteeringError(
                f"{self.map!r} is no learned map but {len(rows)} vectors of {self.map.estimator}; learn one with "
                "sl.learn_low_rank(...), or add a direction with sl.Add."
            )
        return rows

    def _operator(self, site: Site) -> Operator:
        rows = self._rows(site).double()
        rank = len(rows) // 2
        scale = strength_at(self.strength, site)
        return Operator(reads=rows[:rank].T, writes=scale * rows[rank : 2 * rank], shift=scale * rows[-1])


def _random(rows: Float[Tensor, "k width"], seed: int) -> Float[Tensor, "k width"]:
    """Rows of a random map as large as that of the rows."""
    rank, width = len(rows) // 2, rows.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2 * rank + 1, width, generator=generator, dtype=torch.float64)
    writes = torch.linalg.qr(drawn[rank : 2 * rank].T).Q.T
    reads = drawn[:rank]
    shift = drawn[-1] @ writes.T @ writes  # in the span of the writes, as a learned one
    # With orthonormal writes the norm of the map is that of the reads.
    size = torch.linalg.matrix_norm(rows[rank : 2 * rank].T @ rows[:rank])
    return torch.cat(
        [reads * (size / reads.norm()), writes, (shift * (rows[-1].norm() / shift.norm()))[None]]
    )
