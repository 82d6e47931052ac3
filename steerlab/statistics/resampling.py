"""How far would this number move with other prompts? The cluster bootstrap.

Rows that come from one prompt (tokens, samples, paraphrases) are one cluster: clusters are drawn with
replacement, G of G, all their rows with them. The result depends on the seed and on the data, not on the order of the
rows.

Means, differences and log-ratios are studentised, as matrix products over all draws at once: t* is a draw's mean less
the data's, over the draw's own standard error (of a ratio of sums, linearised, between clusters). The law of t* stands
for that of (mean - truth) / standard error, with its skew, so intervals and tests hold where percentiles are too narrow
and exchanged signs are no null. Any other statistic has the central `level` of its draws, widened as Student's law is.
Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 12.5 and 13; Davison and Hinkley (1997), ch.
2.4, 3.8 and 5.2; Hesterberg, What teachers should know about the bootstrap (2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from steerlab.statistics.estimate import Estimate

_ROUNDING = 1e-5  # of the largest number: what float32 sums differ by in another order
_CELLS = 2**22  # draws x clusters (or columns) held at once: 32 MB of weights
#: A draw's standard error below this share of the data's is none.
_NOTHING = 1e-6
#: How near and how far ends may lie, in Student's: with few clusters the tails of t* are themselves uncertain.
_NEAREST, _FURTHEST = 0.85, 2.0


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of `values` [row] with a cluster bootstrap interval.

    clusters: [row] labels of what is drawn together; None means that every row stands alone.
    Raises ValueError for no rows, NaN, or lengths that differ.
    """
    rows = _vector(values, "values")
    return bootstrap_curve(rows[:, None], clusters, seed=seed, draws=draws, level=level)[0]


def bootstrap_curve(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> list[Estimate]:
    """Mean of each column of `values` [row, column], all columns from the same draws (a curve with its band).

    NaN marks a missing entry (a sequence that has ended) and is left out of its column; a column with none
    left is an Estimate of NaN.

    Raises:
        ValueError: no rows, or values that are not [row, column].
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] == 0:
        raise ValueError(
            f"a curve needs values of shape [row, column] with at least one row, got {table.shape}"
        )
    require_level(level)
    means = _Means.of(table, clusters)
    drawn = np.concatenate(list(means.draws(seed=seed, draws=draws)))
    method = f"studentised {_method(clusters, draws, seed)}"

    def of(column: int) -> Estimate:
        value, alive = float(means.mean[column]), int(means.alive[column])
        t = drawn[:, column]
        usable = t[~np.isnan(t)]
        if alive < 2 or len(usable) < 0.5 * len(t):
            return Estimate(value=value, n=alive, level=level, method=method)
        low, high = means.interval(column, usable, level)
        return Estimate(value=value, low=low, high=high, n=alive, level=level, method=method)

    return [of(column) for column in range(table.shape[1])]


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    clusters: ArrayLike | None = None,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Any statistic of `arrays` (equal first axis): `statistic(*arrays)` on the data and on every draw of it.

    A draw on which the statistic is NaN (one class only) is left out. It calls `statistic` once a draw, so it
    is slower than the means above.

    Raises:
        ValueError: no rows, or arrays of unequal length.
    """
    data = [np.asarray(array) for array in arrays]
    if not data or any(array.ndim == 0 or len(array) != len(data[0]) for array in data) or len(data[0]) == 0:
        raise ValueError(
            f"a bootstrap needs arrays of one length, at least one row: {[a.shape for a in data]}"
        )
    codes, n_clusters = cluster_codes(*data, clusters=clusters)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes, minlength=n_clusters))[:-1])
    rng = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for draw in range(draws):
        rows = np.concatenate([members[cluster] for cluster in rng.integers(n_clusters, size=n_clusters)])
        drawn[draw] = statistic(*(array[rows] for array in data))
    value = float(statistic(*(array[order] for array in data)))
    return from_draws(value, drawn, n=n_clusters, level=level, method=_method(clusters, draws, seed))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of first - second over the same rows [row]; positive means that `first` is larger.

    What rounding alone makes of equal rows is no difference (`but_for_rounding`).

    Raises:
        ValueError: unequal numbers of rows.
    """
    a, b = _vector(first, "first"), _vector(second, "second")
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same rows twice, got {len(a)} and {len(b)}")
    return bootstrap_mean(but_for_rounding(a, b) - b, clusters, seed=seed, draws=draws, level=level)


def but_for_rounding(
    first: Float[np.ndarray, "*row"], second: Float[np.ndarray, "*row"]
) -> Float[np.ndarray, "*row"]:
    """`first` with the entries of `second` where they differ by less than 1e-5 of the largest number of both.

    Batches of other sizes add the same numbers in another order: float32 states then differ by so much, alike from
    row to row, and an interval over rows would take it for an effect.
    """
    scale = max((float(np.nanmax(np.abs(rows), initial=0.0)) for rows in (first, second)), default=0.0)
    return np.where(np.abs(first - second) <= _ROUNDING * scale, second, first)


def paired_log_ratio(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of ln(first / second) over the same rows [row]; `.transform(math.exp)` gives the ratio.

    Raises ValueError when a value is not positive.
    """
    a, b = _vector(first, "first"), _vector(second, "second")
    if (a <= 0).any() or (b <= 0).any():
        raise ValueError("a log-ratio needs positive values: at least one is zero or negative")
    return paired_difference(np.log(a), np.log(b), clusters, seed=seed, draws=draws, level=level)


def mean_test(
    values: ArrayLike, clusters: ArrayLike | None = None, *, seed: int, draws: int = 2000
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Is the mean of a column of `values` [row, column] zero? Two-sided p-values, column by column and over all.

    The first doubles the smaller tail of t*, so it holds for skewed differences as well; the second is the chance that
    the largest |t*| of all columns reaches the column's own. NaN for a column without rows, 1 with one cluster.
    """
    means = _Means.of(np.asarray(values, dtype=np.float64), clusters)
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = np.where(means.mean == 0, 0.0, means.mean / means.error)
    above, below, beyond = (np.zeros(len(seen)) for _ in range(3))
    # Two patches that change nothing differ by rounding alone; a share of that is no difference.
    near = np.where(np.isfinite(seen), np.abs(seen) * 1e-9, 0.0)
    for t in means.draws(seed=seed, draws=draws):
        known = np.where(np.isnan(t), 0.0, t)
        above += (known >= seen - near).sum(axis=0)
        below += (known <= seen + near).sum(axis=0)
        beyond += (np.abs(known).max(axis=1, keepdims=True) >= np.abs(seen) - near).sum(axis=0)
    single = np.minimum(1, 2 * (1 + np.minimum(above, below)) / (1 + draws))
    joint = (1 + beyond) / (1 + draws)
    for p in (single, joint):
        p[means.alive < 2] = 1.0
        p[means.alive == 0] = np.nan
    return single, joint


# -- the draws, shared with calibration and ranking --


def cluster_codes(*arrays: NDArray[Any], clusters: ArrayLike | None) -> tuple[Int[np.ndarray, " row"], int]:
    """Cluster number of every row, and how many there are; shuffled rows keep their numbers."""
    n_rows = len(arrays[0])
    if clusters is None:
        # every row alone: number the rows by their content, so that shuffled rows give the same draws
        keys = [column for array in arrays for column in array.reshape(n_rows, -1).T]
        codes = np.empty(n_rows, dtype=np.int64)
        codes[np.lexsort(keys)] = np.arange(n_rows)
        return codes, n_rows
    labels = np.asarray(clusters)
    if labels.shape != (n_rows,):
        raise ValueError(f"clusters need one label a row: {n_rows} rows, labels of shape {labels.shape}")
    names, inverse = np.unique(labels, return_inverse=True)
    return inverse.astype(np.int64), len(names)


def cluster_sums(
    values: Float[np.ndarray, "row column"], codes: Int[np.ndarray, " row"], n_clusters: int
) -> Float[np.ndarray, "cluster column"]:
    """Sum of the rows of each cluster."""
    sums = np.zeros((n_clusters, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def cluster_weights(
    n_clusters: int, n_columns: int = 1, *, seed: int, draws: int
) -> Iterator[Float[np.ndarray, "chunk cluster"]]:
    """How often each cluster was drawn, in chunks of draws that fit in memory, with columns beside them too."""
    if draws < 1:
        raise ValueError(f"a bootstrap needs at least one draw, got {draws}")
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // max(n_clusters, n_columns))
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        drawn = rng.integers(n_clusters, size=(rows, n_clusters)) + n_clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters).astype(float)


def from_draws(
    value: float, drawn: Float[np.ndarray, " draw"], *, n: int, level: float, method: str
) -> Estimate:
    """The percentile interval of `drawn`; none from one unit or when most draws gave no number.

    Its tails are as much smaller as Student's law of n - 1 is wider than the normal one: plain percentiles are too
    narrow with few units (Hesterberg, 2015).
    """
    require_level(level)
    usable = drawn[np.isfinite(drawn)]
    if n < 2 or len(usable) < 0.5 * len(drawn):
        return Estimate(value=value, n=n, level=level, method=method)
    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)))
    low, high = np.quantile(usable, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), n=n, level=level, method=method)


@dataclass(frozen=True, eq=False)
class _Means:
    """The mean of each column of a table whose rows lie in clusters; NaN marks missing entries.

    residuals: [cluster, column] sum of a cluster's rows less the mean for each of them. counts: [cluster, column] its
    rows. mean, error: [column]. alive: [column] clusters with a row.
    """

    residuals: Float[np.ndarray, "cluster column"]
    counts: Float[np.ndarray, "cluster column"]
    mean: Float[np.ndarray, " column"]
    error: Float[np.ndarray, " column"]
    alive: Int[np.ndarray, " column"]

    @classmethod
    def of(cls, table: Float[np.ndarray, "row column"], clusters: ArrayLike | None) -> _Means:
        """Of rows in clusters; None: every row alone."""
        present = ~np.isnan(table)
        codes, n_clusters = cluster_codes(table, clusters=clusters)
        sums = cluster_sums(np.where(present, table, 0.0), codes, n_clusters)
        counts = cluster_sums(present.astype(np.float64), codes, n_clusters)
        total = counts.sum(axis=0)
        mean = np.divide(sums.sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
        residuals = sums - np.where(total > 0, mean, 0.0) * counts
        error = np.sqrt((residuals**2).sum(axis=0)) / np.where(total > 0, total, np.nan)
        return cls(residuals, counts, mean, error, (counts > 0).sum(axis=0))

    def draws(self, *, seed: int, draws: int) -> Iterator[Float[np.ndarray, "chunk column"]]:
        """t* of every draw, in chunks of draws; infinite without spread in the draw, NaN without a row in it."""
        r, n = self.residuals, self.counts
        for weights in cluster_weights(*r.shape, seed=seed, draws=draws):
            total = weights @ n
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = (weights @ r) / total
                squares = weights @ r**2 - 2 * moved * (weights @ (r * n)) + moved**2 * (weights @ n**2)
                error = np.sqrt(squares.clip(0)) / total
                far = np.where(moved == 0, 0.0, np.sign(moved) * np.inf)
                yield np.where(error > _NOTHING * self.error, moved / error, far)

    def interval(self, column: int, t: Float[np.ndarray, " draw"], level: float) -> tuple[float, float]:
        """Ends around the mean of a column with the draws' `t`; where they run off, Student's stand in their place."""
        freedom = int(self.alive[column]) - 1
        student = float(stats.t.ppf((1 + level) / 2, freedom)) * np.sqrt((freedom + 1) / freedom)
        tails = (
            np.quantile(t, (1 - level) / 2, method="lower"),
            np.quantile(t, (1 + level) / 2, method="higher"),
        )
        down, up = (
            student * float(np.clip(abs(tail) / student, _NEAREST, _FURTHEST))
            if np.isfinite(tail)
            else student
            for tail in tails
        )
        mean, error = float(self.mean[column]), float(self.error[column])
        return mean - float(up) * error, mean + float(down) * error


def require_level(level: float) -> None:
    """Raise ValueError unless an interval can have this level."""
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")


def _vector(values: ArrayLike, name: str) -> Float[np.ndarray, " row"]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name} must be a row of at least one number, got shape {vector.shape}")
    if np.isnan(vector).any():
        raise ValueError(
            f"{name} holds {int(np.isnan(vector).sum())} NaN of {len(vector)}: leave those rows out"
        )
    return vector


def _method(clusters: ArrayLike | None, draws: int, seed: int) -> str:
    kind = "bootstrap" if clusters is None else "cluster bootstrap"
    return f"{kind}, {draws} draws, seed {seed}"
