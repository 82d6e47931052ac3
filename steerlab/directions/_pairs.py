"""Rows that come in pairs: one positive and one negative member, told by a pair number a row."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from steerlab.directions.linear import Floats, to_numpy
from steerlab.errors import DirectionError

Rows: TypeAlias = NDArray[np.intp]


def paired_rows(pairs: Any, positive: NDArray[np.bool_], estimator: str) -> tuple[Rows, Rows]:
    """The rows [pair] of the positive and of the negative member of every pair, in order of the pair numbers.

    Raises:
        DirectionError: when there are no pairs, or a pair has not exactly one row of each class.
    """
    if pairs is None:
        raise DirectionError(
            f"{estimator} reads pairs; give one pair number a row, as in fit(X, y, pairs=...), and split the data "
            "by pair, for example with GroupKFold."
        )
    names, number = np.unique(to_numpy(pairs), return_inverse=True)
    if number.shape != positive.shape:
        raise DirectionError(f"{len(positive)} rows came with {number.size} pair numbers; give one a row.")
    high, low = (np.bincount(number[chosen], minlength=len(names)) for chosen in (positive, ~positive))
    for i in np.flatnonzero((high != 1) | (low != 1))[:1]:
        raise DirectionError(
            f"Pair {names[i]} has {high[i]} positive and {low[i]} negative rows; a pair is one of each. When data "
            "are split, split them by pair."
        )
    order = np.argsort(number, kind="stable")
    return order[positive[order]], order[~positive[order]]


def row_polarity(polarity: Any, n: int) -> NDArray[np.float64] | None:
    """Polarities [row] of +1 (affirmed) and −1 (negated), checked; None stays None.

    Raises:
        DirectionError: for another length or other values, or when only one of the two occurs.
    """
    if polarity is None:
        return None
    values = np.asarray(to_numpy(polarity), dtype=np.float64)
    if values.shape != (n,):
        raise DirectionError(f"{n} rows came with {values.size} polarities; give one a row.")
    if set(np.unique(values)) != {-1.0, 1.0}:
        raise DirectionError(
            f"Polarities are +1 for affirmed and -1 for negated rows, and both must occur; there are "
            f"{sorted(set(values.tolist()))[:5]}. Leave polarity out where there is only one kind."
        )
    return values


def kind_means(
    rows: Floats, polarity: NDArray[np.float64] | None, high: Rows, low: Rows
) -> NDArray[np.float64]:
    """The means of affirmed and of negated rows [2, width]; without polarities twice the mean of all.

    Raises:
        DirectionError: when the two rows of a pair have one polarity.
    """
    if polarity is None:
        return np.repeat(rows.mean(axis=0, dtype=np.float64, keepdims=True), 2, axis=0)
    if (alike := np.flatnonzero(polarity[high] == polarity[low])).size:
        raise DirectionError(
            f"The {alike[0] + 1}. pair has two rows of one polarity; with polarities, a pair is a statement and its "
            "negation."
        )
    affirmed = polarity > 0
    return np.stack([rows[chosen].mean(axis=0, dtype=np.float64) for chosen in (affirmed, ~affirmed)])
