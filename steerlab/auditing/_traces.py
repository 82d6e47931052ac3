"""Traces of rounding in a change: a cast to a shorter type, and the grids that quantisers round to."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

#: Bits behind the leading one, by type: rounding moves a number x by at most |x| 2^-(bits + 1). Coarser ones last.
MANTISSA = {
    torch.float16: 10,
    torch.bfloat16: 7,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 2,
}
#: Half the distance between the smallest numbers of a type, for what is smaller than its normal ones.
_SMALLEST = {
    torch.float16: 2.0**-25,
    torch.bfloat16: 0.0,
    torch.float8_e4m3fn: 2.0**-10,
    torch.float8_e5m2: 2.0**-17,
}
_FULL = {torch.float32: 23, torch.float64: 23}
#: Kurtosis of errors that a grid makes (uniform: 9/5) and of normal ones (3): the threshold lies half-way.
FLAT = (9 / 5 + 3) / 2
_GROUPS = (0, 128, 64, 32)  # a scale for each row, or for each so many numbers of it
_FEW = 33  # levels of a quantiser of 5 bits, with zero
_ENOUGH = 512


def fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether float32 numbers are numbers of a shorter type."""
    return bool((values.to(dtype).float() == values).all())


def is_rounding(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Whether no number moved further than rounding to a type moves it."""
    size = torch.maximum(before.abs(), after.abs()) * 2.0 ** -(MANTISSA[dtype] + 1)
    return bool(((after - before).abs() <= size.clamp_min(_SMALLEST[dtype])).all())


def precision_of(sample: Tensor, stored: torch.dtype) -> int:
    """Bits behind the leading one that the numbers really have: a bfloat16 checkpoint read as float32 has 7."""
    held = [MANTISSA[dtype] for dtype in (torch.bfloat16, torch.float16) if fits(sample, dtype)]
    return min([*held, (_FULL | MANTISSA).get(stored, 23)])


def rounding_variance(sample: Tensor, bits: int) -> float:
    """The mean variance of an entry's rounding: u²/12, with u the distance to its neighbour (Widrow 1956)."""
    exponent = torch.frexp(sample).exponent.float()
    spacing = torch.where(sample == 0, 0.0, torch.exp2(exponent - 1 - bits))
    return float((spacing.double() ** 2).mean() / 12)


def grid(
    before: Float[Tensor, "rows columns"],
    after: Float[Tensor, "rows columns"],
    largest: Float[Tensor, " columns"],
    *,
    is_white: bool,
) -> str:
    """The grid that a sample of rows was rounded to, in words; "" where there is no trace of one.

    Few levels in each group of a row are a trace by themselves. With many levels the errors are: divided by their
    group's largest weight they are uniform, with a kurtosis of 9/5, where free noise is normal and has 3. That counts
    for a change without structure only (`is_white`), as steps of an optimiser may be of one size, too.
    """
    levels = _levels(before), _levels(after)
    if levels[1] <= _FEW and 2 * levels[1] <= levels[0]:
        return f"{levels[1]} levels a group"
    if not is_white or before.numel() < _ENOUGH:
        return ""
    errors = {"a column": _flatness((after - before)[:, largest > 0] / largest[largest > 0])}
    for size in _GROUPS:
        width = size or before.shape[1]
        if before.shape[1] % width == 0:
            own = before.reshape(-1, width).abs().amax(dim=1, keepdim=True)
            share = ((after - before).reshape(-1, width) / own)[own[:, 0] > 0]
            errors[f"{size} weights" if size else "a row"] = _flatness(share)
    scale, (kurtosis, level) = min(errors.items(), key=lambda error: error[1][0])
    if kurtosis > FLAT:
        return ""
    bits = math.log2(1 / (math.sqrt(12) * level) + 1) + 1
    return f"about {bits:.0f} bits, a scale for {scale} (kurtosis {kurtosis:.2f})"


# -- private --


def _levels(sample: Tensor) -> int:
    """The most different numbers in 64 neighbours of a row."""
    width = min(64, sample.shape[1])
    groups = sample[:, : sample.shape[1] // width * width].reshape(-1, width).sort(dim=1).values
    return int((groups.diff(dim=1) != 0).sum(dim=1).max()) + 1


def _flatness(errors: Tensor) -> tuple[float, float]:
    """Kurtosis and root mean square of the errors, in units of their group's largest weight."""
    square = float((errors.double() ** 2).mean()) if errors.numel() else 0.0
    return (
        (float((errors.double() ** 4).mean()) / square**2, math.sqrt(square)) if square else (math.inf, 0.0)
    )
