"""Could chance alone do this? Permutation nulls, false-discovery control, split halves, random directions.

Permutation p-value: (1 + number of null draws at least as extreme) / (1 + draws), never zero (Phipson and
Smyth, 2010). False discovery: Benjamini and Hochberg (1995). Random directions: for independent uniform unit
vectors in R^d, (1 + cos) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2), exactly; the standard deviation of the cosine
is 1 / sqrt(d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy import stats

from steerlab.record import Record
from steerlab.statistics.estimate import Estimate

Fitted = TypeVar("Fitted")
Alternative = Literal["greater", "less", "two-sided"]


def permutation_null(
    statistic: Callable[[NDArray[Any]], float],
    labels: ArrayLike,
    *,
    seed: int,
    draws: int = 1000,
    strata: ArrayLike | None = None,
) -> Float[np.ndarray, " draw"]:
    """`statistic` of shuffled `labels` [row], `draws` times; `strata` [row] shuffle only inside."""
    original = np.asarray(labels)
    blocks = _blocks(len(original), strata)
    rng = np.random.default_rng(seed)
    null = np.empty(draws)
    for draw in range(draws):
        shuffled = original.copy()
        for block in blocks:
            shuffled[block] = original[rng.permutation(block)]
        null[draw] = statistic(shuffled)
    return null


def permutation_p_value(observed: float, null: ArrayLike, alternative: Alternative = "greater") -> float:
    """P-value of `observed` against draws of its null, with the +1 correction.

    "two-sided" doubles the smaller tail. Raises ValueError when observed or null hold NaN.
    """
    draws = np.asarray(null, dtype=np.float64).ravel()
    if len(draws) == 0 or np.isnan(draws).any() or math.isnan(observed):
        raise ValueError("a permutation p-value needs an observed number and null draws without NaN")
    above = (1 + int((draws >= observed).sum())) / (1 + len(draws))
    below = (1 + int((draws <= observed).sum())) / (1 + len(draws))
    if alternative == "greater":
        return above
    if alternative == "less":
        return below
    return min(1.0, 2 * min(above, below))


def _p_values(given: ArrayLike) -> Float[np.ndarray, " test"]:
    """As a row. Raises ValueError outside [0, 1]; NaN passes."""
    p = np.asarray(given, dtype=np.float64).ravel()
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p-values lie between 0 and 1")
    return p


def benjamini_hochberg(p_values: ArrayLike) -> Float[np.ndarray, " test"]:
    """Adjusted p-values (q-values): calling all with q <= a false at most a share a of the time on average.

    NaN stays NaN and does not count as a test.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    p = _p_values(p_values)
    adjusted = np.full_like(p, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method="bh")
    return adjusted


def holm(p_values: ArrayLike) -> Float[np.ndarray, " test"]:
    """Adjusted p-values (Holm, 1979): calling all with p <= a calls any false one with a chance of at most a.

    NaN stays NaN and does not count as a test.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    p = _p_values(p_values)
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted


def split_half(
    fit: Callable[[NDArray[np.int64]], Fitted],
    agreement: Callable[[Fitted, Fitted], float],
    clusters: ArrayLike | int,
    *,
    seed: int,
    strata: ArrayLike | None = None,
    splits: int = 20,
    level: float = 0.95,
) -> Estimate:
    """How well does the quantity agree with itself? The ceiling for any agreement between two models.

    fit: from row numbers to the quantity (a direction, a map). agreement: of two of them (a cosine, a
    correlation). clusters: number of rows, or [row] labels of rows that stay in one half. strata: [row]
    classes that both halves share evenly. The value is the mean over `splits` random halvings, the interval
    their central `level`.

    Raises:
        ValueError: fewer than two clusters.
    """
    labels = np.arange(clusters) if isinstance(clusters, int) else np.asarray(clusters)
    names, first_row, codes = np.unique(labels, return_index=True, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"two halves need at least two clusters, got {len(names)}")
    blocks = _blocks(len(names), None if strata is None else np.asarray(strata)[first_row])
    rng = np.random.default_rng(seed)
    values = np.empty(splits)
    for split in range(splits):
        inside = np.zeros(len(names), dtype=bool)
        for block in blocks:
            # an odd block gives its last member to either half by a coin
            size = (len(block) + int(rng.integers(2))) // 2
            inside[rng.permutation(block)[:size]] = True
        if not 0 < inside.sum() < len(names):
            inside[0] = not inside[0]
        chosen = inside[codes]
        values[split] = agreement(fit(np.flatnonzero(chosen)), fit(np.flatnonzero(~chosen)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    method = f"{splits} random halves, seed {seed}"
    return Estimate(
        value=float(values.mean()), low=float(low), high=float(high), n=len(names), level=level, method=method
    )


def spearman_brown(half: float) -> float:
    """Correlation expected between two full-size samples, from that of two halves: 2 r / (1 + r)."""
    return 2 * half / (1 + half)


class CosineNull(Record):
    """The law of the cosine between two independent random directions in R^width."""

    width: int = Field(ge=2)

    @property
    def std(self) -> float:
        """Standard deviation, 1 / sqrt(width)."""
        return 1 / math.sqrt(self.width)

    def quantile(self, probability: float) -> float:
        """The cosine below which a share `probability` of random pairs falls."""
        half = (self.width - 1) / 2
        return float(2 * stats.beta.ppf(probability, half, half) - 1)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The central interval that holds a share `level` of random cosines."""
        high = self.quantile((1 + level) / 2)
        return -high, high

    def threshold(self, level: float = 0.95, comparisons: int = 1) -> float:
        """The |cosine| that the largest of `comparisons` independent random ones exceeds with 1 - level."""
        return self.quantile((1 + level ** (1 / comparisons)) / 2)

    def p_value(self, cosine: float, alternative: Alternative = "two-sided") -> float:
        """Chance of a cosine at least as extreme between random directions."""
        half = (self.width - 1) / 2
        upper = float(stats.beta.sf((1 + cosine) / 2, half, half))
        if alternative == "greater":
            return upper
        if alternative == "less":
            return float(stats.beta.cdf((1 + cosine) / 2, half, half))
        return min(1.0, 2 * float(stats.beta.sf((1 + abs(cosine)) / 2, half, half)))


def cosine_null(width: int) -> CosineNull:
    """The null of a cosine in R^width: quantiles, interval, p-value. Raises ValueError for width < 2."""
    return CosineNull(width=width)


def _blocks(n: int, strata: ArrayLike | None) -> list[NDArray[np.int64]]:
    if strata is None:
        return [np.arange(n)]
    groups = np.asarray(strata)
    if groups.shape != (n,):
        raise ValueError(f"strata need one label each: {n} expected, got shape {groups.shape}")
    return [np.flatnonzero(groups == name) for name in np.unique(groups)]
