"""Comparisons whose tolerance is relative to the size of what is compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


def close(
    actual: Tensor | ArrayLike,
    expected: Tensor | ArrayLike,
    rtol: float = 1e-4,
    *,
    scale: float | None = None,
) -> None:
    """Raise unless every entry is within `rtol` of `expected`, in units of its largest absolute value.

    Rounding grows with the largest numbers of a sum, so an entry near zero is as uncertain as the others. A `scale` of
    its own is for differences: their rounding is that of the numbers they are the difference of.
    """
    found, wanted = _array(actual), _array(expected)
    assert found.shape == wanted.shape, f"shapes {found.shape} and {wanted.shape}"
    if scale is None:
        scale = float(np.nanmax(np.abs(wanted), initial=0.0))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * scale)


def _array(values: Tensor | ArrayLike) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().double().numpy()
    return np.asarray(values, dtype=float)
