"""Singular values of a change that is read block by block: randomised, and the two floors that they are held against.

With D = C − B the change and Ω a normal matrix of k + 8 columns, Q is an orthonormal basis of (D Dᵀ)² D Ω, and the SVD
of QᵀD is that of D up to what Q misses (Halko, Martinsson and Tropp 2011, algorithm 4.4). Only k + 8 columns are in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

K = 64
_OVER, _TURNS = 8, 2
#: Changes of up to so many entries stay in memory (64 MiB); what is larger is read once for each product.
_KEPT = 1 << 24
#: Below this many rows or columns the exact decomposition costs less.
_EXACT = 128

Blocks = Callable[[], Iterator[tuple[int, Tensor, Tensor]]]


@dataclass(frozen=True)
class Spectrum:
    """The first singular triples: left [rows, k] and right [columns, k] vectors, float32; values, float64."""

    left: Float[Tensor, "rows k"]
    values: Float[Tensor, " k"]
    right: Float[Tensor, "columns k"]

    def first(self) -> Spectrum:
        """The first triple alone."""
        return Spectrum(self.left[:, :1].clone(), self.values[:1].clone(), self.right[:, :1].clone())


class Change:
    """D = C − B of one matrix, as a linear map."""

    def __init__(self, blocks: Blocks, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._blocks = blocks
        self._kept: Float[Tensor, "rows columns"] | None = None
        if shape[0] * shape[1] <= _KEPT:
            self._kept = torch.empty(shape)
            for start, before, after in blocks():
                torch.sub(after, before, out=self._kept[start : start + len(before)])

    def spectrum(self, k: int = K, seed: int = 0) -> Spectrum:
        """The first k singular triples; fewer where the matrix has fewer."""
        k = min(k, *self.shape)
        if self._kept is not None and min(self.shape) <= _EXACT:
            u, s, vt = torch.linalg.svd(self._kept.double(), full_matrices=False)
            return Spectrum(u[:, :k].float(), s[:k], vt[:k].T.float())
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.shape[1], min(k + _OVER, *self.shape), generator=generator)
        basis = _orthonormal(self.times(drawn))
        for _ in range(_TURNS):
            basis = _orthonormal(self.times(_orthonormal(self.back(basis))))
        u, s, v = torch.linalg.svd(self.back(basis).T.double(), full_matrices=False)
        return Spectrum((basis.double() @ u[:, :k]).float(), s[:k], v[:k].T.float())

    def times(self, right: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        """D X."""
        product = torch.zeros(self.shape[0], right.shape[1])
        for start, block in self._differences():
            product[start : start + len(block)] = block @ right
        return product

    def back(self, left: Float[Tensor, "rows k"]) -> Float[Tensor, "columns k"]:
        """Dᵀ X."""
        total = torch.zeros(self.shape[1], left.shape[1])
        for start, block in self._differences():
            total += block.T @ left[start : start + len(block)]
        return total

    def _differences(self) -> Iterator[tuple[int, Tensor]]:
        if self._kept is not None:
            yield 0, self._kept
            return
        for start, before, after in self._blocks():
            yield start, after - before


def white_edge(rows: Float[Tensor, " rows"], columns: Float[Tensor, " columns"]) -> float:
    """The largest singular value that entries of these sizes have when their signs are thrown: the sign-shuffle null.

    max‖row‖ + max‖column‖ bounds its expectation up to a term of lower order (Bandeira and van Handel 2016, theorem
    1.1); for entries of one size τ it is τ(√rows + √columns), the edge of Marchenko and Pastur.

    Args:
        rows: squared norms of the change's rows.
        columns: of its columns.
    """
    return float(rows.max().sqrt() + columns.max().sqrt())


def sharp_rank(
    values: Float[Tensor, " k"], energy: float, floor: float, shape: tuple[int, int]
) -> int | None:
    """The rank at which a change ends in rounding; None where what is left is more than that.

    Args:
        values: its first singular values.
        energy: ‖D‖².
        floor: what rounding gives that, all entries together.
        shape: rows and columns.
    """
    noise = max(2 * floor, 1e-6 * energy)  # float32 products are right to about that
    edge = (floor / (shape[0] * shape[1])) ** 0.5 * (shape[0] ** 0.5 + shape[1] ** 0.5)
    above = int((values > max(1.05 * edge, 1e-6 * float(values[0]))).sum())
    left = energy - torch.cumsum(values**2, 0)
    ends = [number for number in range(1, above + 1) if float(left[number - 1]) <= noise]
    return ends[0] if ends and 2 * ends[0] <= min(shape) else None


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns)[0]
    return basis
