"""A threshold with a promise, learnt from units without the thing that is looked for (conformal risk control).

A unit (a prompt, a conversation) has one score or several; its loss at a threshold t is the share of its scores above
t, or their weight. With n units and rate α the threshold is the smallest score t at which

    (Σ_i loss_i(t) + 1) / (n + 1) ≤ α

and the expected loss of a new unit, exchangeable with these, is then at most α, whatever the scores' law (Angelopoulos
et al. 2022, theorem 1). With one score a unit it is split conformal prediction: the ⌈(n + 1)(1 − α)⌉-th smallest score
(Vovk et al. 2005).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

_ROUNDING = 1e-9


def units_needed(rate: float) -> int:
    """The fewest units that can support a rate: 1/(n + 1) must not exceed it."""
    return math.ceil(1 / rate - 1 - _ROUNDING)


def conformal_threshold(
    scores: ArrayLike, rate: float, *, units: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """The smallest score at which a new unit's expected share of scores above it is at most `rate`.

    Args:
        scores: [score], of units without the thing.
        rate: α, between 0 and 1.
        units: [score], the unit of each; by default every score is one.
        weights: [score], what each counts in its unit, where they are made to sum to one; by default the same.

    Raises:
        ValueError: a rate outside, scores that are not finite, or fewer units than `units_needed`.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a rate lies between 0 and 1, not at {rate}")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("scores come as one row of finite numbers")
    _, codes = np.unique(np.arange(len(values)) if units is None else np.asarray(units), return_inverse=True)
    heavy = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    counts = np.bincount(codes, weights=heavy)
    if len(counts) < units_needed(rate):
        raise ValueError(f"{len(counts)} units cannot support a rate of {rate}; {units_needed(rate)} can")
    order = np.argsort(values, kind="stable")
    ordered, shares = values[order], (heavy / counts[codes])[order]
    last = np.flatnonzero(np.append(ordered[1:] > ordered[:-1], True))  # of each run of equal scores
    above = shares.sum() - np.cumsum(shares)[last]
    holds = (above + 1) / (len(counts) + 1) <= rate + _ROUNDING
    return float(ordered[last][int(np.argmax(holds))])
