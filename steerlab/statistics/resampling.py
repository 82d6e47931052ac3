"""How far would this number move with other prompts? The cluster bootstrap, percentile intervals.

Rows that come from one prompt (tokens, samples, paraphrases) are one cluster: clusters are drawn with
replacement, G of G, all their rows with them, and the interval is the central `level` of the statistic over
the draws. Means, differences and log-ratios run as matrix products over all draws at once. The result depends
on the seed and on the data, not on the order of the rows. Source: Efron and Tibshirani, An Introduction to
the Bootstrap (1993), ch. 13; Davison and Hinkley (1997), ch. 3.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from steerlab.statistics.estimate import Estimate

_CELLS = 2**22  # draws x clusters held at once: 32 MB of weights


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
    present = ~np.isnan(table)
    codes, n_clusters = cluster_codes(table, clusters=clusters)
    sums = cluster_sums(np.where(present, table, 0.0), codes, n_clusters)
    counts = cluster_sums(present.astype(np.float64), codes, n_clusters)
    drawn = _ratios(sums, counts, seed=seed, draws=draws)
    total = counts.sum(axis=0)
    means = np.divide(sums.sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
    alive = (counts > 0).sum(axis=0)
    method = _method(clusters, draws, seed)
    return [
        from_draws(float(mean), drawn[:, column], n=int(alive[column]), level=level, method=method)
        for column, mean in enumerate(means)
    ]


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

    Raises:
        ValueError: unequal numbers of rows.
    """
    a, b = _vector(first, "first"), _vector(second, "second")
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs the same rows twice, got {len(a)} and {len(b)}")
    return bootstrap_mean(a - b, clusters, seed=seed, draws=draws, level=level)


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
    n_clusters: int, *, seed: int, draws: int
) -> Iterator[Float[np.ndarray, "chunk cluster"]]:
    """How often each cluster was drawn, in chunks of draws that fit in memory."""
    if draws < 1:
        raise ValueError(f"a bootstrap needs at least one draw, got {draws}")
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // n_clusters)
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        drawn = rng.integers(n_clusters, size=(rows, n_clusters)) + n_clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters).astype(float)


def from_draws(
    value: float, drawn: Float[np.ndarray, " draw"], *, n: int, level: float, method: str
) -> Estimate:
    """The percentile interval of `drawn`; none from one unit or when most draws gave no number."""
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")
    usable = drawn[np.isfinite(drawn)]
    if n < 2 or len(usable) < 0.5 * len(drawn):
        return Estimate(value=value, n=n, level=level, method=method)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=value, low=float(low), high=float(high), n=n, level=level, method=method)


def _ratios(
    sums: Float[np.ndarray, "cluster column"],
    counts: Float[np.ndarray, "cluster column"],
    *,
    seed: int,
    draws: int,
) -> Float[np.ndarray, "draw column"]:
    chunks: Sequence[NDArray[np.float64]] = [
        np.divide(
            top := weights @ sums, bottom := weights @ counts, out=np.full_like(top, np.nan), where=bottom > 0
        )
        for weights in cluster_weights(len(sums), seed=seed, draws=draws)
    ]
    return np.concatenate(chunks)


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
