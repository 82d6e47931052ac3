"""Is a shorter way through a model exact? States that are equal but for rounding, and how strange stacks say no."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Errors of stacks that hand more than the stream from block to block, or keep a cache of their own kind.
STRANGE = (TypeError, RuntimeError, IndexError, KeyError, AttributeError, ValueError)
_EXACT = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the states' size; half precision rounds by shape


def equal(dtype: torch.dtype, first: Float[Tensor, "... width"], other: Float[Tensor, "... width"]) -> bool:
    """Whether two states of a model of this dtype are one but for rounding."""
    size = (first - other).float().square().mean().sqrt()
    return bool(size <= _EXACT.get(dtype, 0.05) * other.float().square().mean().sqrt())
