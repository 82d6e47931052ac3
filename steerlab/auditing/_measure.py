"""One matrix of a pair: what is read off its change D = C − B, in passes over blocks of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.auditing import _traces
from steerlab.auditing._pairs import Matched
from steerlab.auditing._spectrum import Change, Spectrum, sharp_rank, white_edge

#: Rows of a matrix that traces of rounding are looked for in.
_SAMPLED = 256
#: Directions of a subspace that an ablation removes at most.
_SUBSPACE = 8
#: Standard errors of a null that count as leaving it: one chance in 30,000.
_SIGMAS = 4
#: Share of a change's energy that a form has to explain to name it.
MOST = 0.9


@dataclass
class Sums:
    """What one pass gathers.

    rows, columns: squared norms of the change's. touched: columns in which a number differs. largest: of each column's
    weights in the base. fourth: the sum of the change's fourth powers. rolled: the product of the base with the
    candidate's rows in another order. casts: the types whose rounding explains every entry so far. unfit: of these, the
    ones that the base does not fit where the two differ, and those that the candidate does not.
    """

    rows: Float[Tensor, " rows"]
    columns: Float[Tensor, " columns"]
    touched: Tensor
    largest: Float[Tensor, " columns"]
    fourth: float = 0.0
    before: float = 0.0
    after: float = 0.0
    dot: float = 0.0
    rolled: float = 0.0
    casts: list[torch.dtype] = field(default_factory=lambda: list(_traces.MANTISSA))
    unfit: tuple[set[torch.dtype], set[torch.dtype]] = field(default_factory=lambda: (set(), set()))
    sample: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.empty(0), torch.empty(0)))

    @property
    def energy(self) -> float:
        """‖D‖²."""
        return float(self.rows.sum())

    @property
    def unevenness(self) -> float:
        """How far rows or columns differ in energy from those of the same entries shuffled, in standard errors.

        With κ the kurtosis of all entries, shuffled rows of n entries vary by (κ − 1)/n of their squared mean.
        """
        rows, columns = len(self.rows), len(self.columns)
        kurtosis = self.fourth * rows * columns / self.energy**2
        excess = max(kurtosis - 1, 1e-9)
        found = [
            (float(sums.var() / sums.mean() ** 2) * size / excess - 1) / math.sqrt(2 / len(sums))
            for sums, size in ((self.rows, columns), (self.columns, rows))
        ]
        return max(found)


@dataclass(frozen=True)
class Subspace:
    """What a change removes, if it removes: W ← W − α Q Qᵀ W on one side of the matrix.

    basis: Q [width, k]. side: 0 where rows are written (linear layers), 1 where columns are (embeddings, Conv1D).
    alignment: cosine of QᵀD with −QᵀB; 1 for an ablation, near 0 for what knows nothing of B. strength: α. share: of
    the change's energy in k directions. kept: of the weights' energy that an ablation takes, what is there again: 0 for
    a plain one, 1 where rows or columns keep their length.
    """

    basis: Float[Tensor, "width k"]
    side: int
    alignment: float
    strength: float
    share: float
    kept: float


@dataclass(frozen=True)
class Measured:
    """One matrix and all that was read off it. What a change alone has is None or "" where nothing changed."""

    pair: Matched
    sums: Sums
    floor: float = 0.0
    cast: str = ""
    spectrum: Spectrum | None = None
    edge: float = 0.0
    rank: int | None = None
    removed: Subspace | None = None
    grid: str = ""

    @property
    def changed(self) -> bool:
        """Whether a number differs."""
        return self.sums.energy > 0

    @property
    def is_white(self) -> bool:
        """Whether no direction stands out of what shuffled signs give."""
        return self.spectrum is not None and float(self.spectrum.values[0]) <= self.edge

    @property
    def label(self) -> str:
        """What was done to this matrix alone."""
        if not self.changed:
            return "same"
        if self.cast:
            return f"cast to {self.cast}"
        if self.grid:
            return "requantised"
        if self.spectrum is None:
            return "vector"
        if is_constant(self):
            return "constant"
        if self.removed is not None and self.removed.alignment * self.removed.share**0.5 >= MOST:
            return "ablated"
        if self.rank is not None:
            return "low rank"
        return "noise" if self.is_white and self.sums.unevenness <= _SIGMAS else "dense"


def measure(pair: Matched) -> Measured:
    """Read a matrix, and its change's spectrum where it has one."""
    sums = _gathered(pair)
    before, after = sums.sample
    cast = _cast(sums)
    if pair.is_matrix:
        sums.sample = (torch.empty(0), torch.empty(0))  # hundreds of matrices are kept: what was read goes
    if sums.energy == 0:
        return Measured(pair, sums)
    bits = _traces.precision_of(after, pair.candidate.dtypes.get(pair.names[1] or "", torch.float32))
    floor = _traces.rounding_variance(after, bits) * pair.shape[0] * pair.shape[1]
    if cast or not pair.is_matrix:
        return Measured(pair, sums, floor, cast)
    spectrum = Change(pair.blocks, pair.shape).spectrum()
    edge = white_edge(sums.rows, sums.columns)
    rank = sharp_rank(spectrum.values, sums.energy, floor, pair.shape)
    is_white = float(spectrum.values[0]) <= edge
    grid = _traces.grid(before, after, sums.largest, is_white=is_white)
    removed = None if is_white and rank is None else _removed(pair, spectrum, sums)
    return Measured(pair, sums, floor, cast, spectrum.first(), edge, rank, removed, grid)


def is_constant(measured: Measured) -> bool:
    """Whether every row of a table was moved by one vector: an addition at the embedding."""
    spectrum = measured.spectrum
    if spectrum is None or measured.rank != 1:
        return False
    rows = measured.pair.shape[0]
    return abs(float(spectrum.left[:, 0].double().sum())) / math.sqrt(rows) > 1 - 1e-3


# -- private, in the order they are called --


def _gathered(pair: Matched) -> Sums:
    rows, columns = pair.shape
    wide = torch.zeros(columns)
    sums = Sums(torch.zeros(rows).double(), wide.double(), wide.bool(), wide.clone())
    step = max(1, rows // _SAMPLED)
    # Made before the blocks: small pieces kept between large ones would hold the memory of all of them.
    sample = torch.zeros(2, -(-rows // step), columns)
    for start, before, after in pair.blocks():
        here = slice(start, start + len(before))
        chosen = slice(-start % step, None, step)
        places = slice(-(-start // step), -(-start // step) + len(before[chosen]))
        sample[0, places], sample[1, places] = before[chosen], after[chosen]
        sums.before += _square(before)
        sums.rolled += float((before * after.roll(max(1, len(after) // 2), 0)).sum(1).double().sum())
        if torch.equal(before, after):
            continue
        change = after - before
        sums.dot += float((before * change).sum(1).double().sum())
        sums.rows[here] = (change * change).sum(1).double()
        sums.columns += (change * change).sum(0).double()
        sums.fourth += float((change * change).square().sum(1).double().sum())
        sums.touched |= (change != 0).any(0)
        sums.largest = torch.maximum(sums.largest, before.abs().amax(0))
        sums.casts = [dtype for dtype in sums.casts if _traces.is_rounding(before, after, dtype)]
        for beyond, side in zip(sums.unfit, (before, after), strict=True):
            beyond |= {dtype for dtype in sums.casts if not _traces.fits(side, dtype)}
    sums.dot, sums.after = sums.before + sums.dot, sums.before + 2 * sums.dot + sums.energy
    sums.sample = (sample[0], sample[1])
    return sums


def _square(block: Tensor) -> float:
    return float((block * block).sum(1).double().sum())


def _cast(sums: Sums) -> str:
    """The type that one of the two was rounded to and the other was not; "" where rounding does not explain all.

    The sample of rows may have none that differ (words that no text of a fine-tune had), so both sides are also looked
    at where they do.
    """
    for dtype in sums.casts:
        held = [
            _traces.fits(rows, dtype) and dtype not in beyond
            for rows, beyond in zip(sums.sample, sums.unfit, strict=True)
        ]
        if held[0] != held[1]:
            return str(dtype).removeprefix("torch.")
    return ""


def _removed(pair: Matched, spectrum: Spectrum, sums: Sums) -> Subspace:
    """The subspace that the change lies in, seen from the side on which the change follows from the weights."""
    shares = torch.cumsum(spectrum.values**2, 0) / sums.energy
    k = min(int((shares < MOST).sum()) + 1, _SUBSPACE, len(shares))
    left, values, right = spectrum.left[:, :k], spectrum.values[:k], spectrum.right[:, :k]
    written = torch.zeros(k, pair.shape[1])
    read = torch.zeros(pair.shape[0], k)
    for start, before, _ in pair.blocks():
        written += left[start : start + len(before)].T @ before
        read[start : start + len(before)] = before @ right
    sides = (
        (left, written.double(), (right * values).double().T),
        (right, read.double(), (left * values).double()),
    )
    found = []
    for side, (basis, own, moved) in enumerate(sides):
        product, size = -float((own * moved).sum()), float((own * own).sum())
        alignment = product / max((size * float((moved * moved).sum())) ** 0.5, 1e-30)
        strength = product / max(size, 1e-30)
        taken = (2 * strength - strength**2) * size
        kept = 1 - (sums.before - sums.after) / taken if taken > 0 else 0.0
        found.append(Subspace(basis.clone(), side, alignment, strength, float(shares[k - 1]), kept))
    return max(found, key=lambda subspace: subspace.alignment)
