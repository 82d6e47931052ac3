"""Is a model as often right as it is sure? Calibration error, reliability curve, Brier score, AUROC.

ECE = sum over bins of (n_bin / n) |mean confidence - share right|; bins of equal width on [0, 1], or adaptive
bins of equal count. Even a perfectly calibrated model has ECE > 0 on few rows: `calibration_null` draws that
floor (answers right with exactly the stated confidence), which is the control to print beside it. Sources:
Guo et al. (2017); Nixon et al. (2019) for adaptive bins; Vaicenavicius et al. (2019) for the null.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from steerlab.record import Record
from steerlab.statistics.estimate import Estimate
from steerlab.statistics.proportions import proportion
from steerlab.statistics.resampling import (
    bootstrap,
    bootstrap_mean,
    cluster_codes,
    cluster_sums,
    cluster_weights,
    from_draws,
)


def expected_calibration_error(
    confidence: ArrayLike,
    correct: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    bins: int = 10,
    adaptive: bool = False,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """ECE of `confidence` [row] in [0, 1] against `correct` [row], with a bootstrap interval.

    The plain estimate and its percentile interval lean upwards on few rows: read them beside
    `calibration_null`.
    """
    sure, right = _pair(confidence, correct)
    method = f"{'adaptive' if adaptive else 'equal-width'} bins ({bins})"
    if adaptive:
        result = bootstrap(
            lambda p, y: _ece(p, y, adaptive_bins(p, bins), bins),
            sure, right, clusters=clusters, seed=seed, draws=draws, level=level,
        )  # fmt: skip
    else:
        result = _equal_width_error(sure, right, clusters, bins, seed=seed, draws=draws, level=level)
    return result.model_copy(update={"method": f"{method}, {result.method}"})


def calibration_null(
    confidence: ArrayLike, *, bins: int = 10, adaptive: bool = False, seed: int, draws: int = 1000
) -> Float[np.ndarray, " draw"]:
    """ECE of a perfectly calibrated model with these confidences: answers drawn as Bernoulli(confidence)."""
    sure, _ = _pair(confidence, np.zeros(len(np.asarray(confidence))))
    rng = np.random.default_rng(seed)
    codes = adaptive_bins(sure, bins) if adaptive else equal_width_bins(sure, bins)
    right = rng.random((draws, len(sure))) < sure
    gaps = np.zeros(draws)
    for code in range(bins):
        inside = codes == code
        gaps += np.abs((right[:, inside] - sure[inside]).sum(axis=1))
    return gaps / len(sure)


class ReliabilityBin(Record):
    """One bin of a reliability curve: edges, rows in it, mean confidence, share right with its interval."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: Estimate


def reliability_curve(
    confidence: ArrayLike,
    correct: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    bins: int = 10,
    adaptive: bool = False,
    level: float = 0.95,
) -> list[ReliabilityBin]:
    """Share right against mean confidence, bin by bin (empty bins left out), each with a Wilson interval."""
    sure, right = _pair(confidence, correct)
    labels = None if clusters is None else np.asarray(clusters)
    codes = adaptive_bins(sure, bins) if adaptive else equal_width_bins(sure, bins)
    curve = []
    for code in np.unique(codes):
        inside = codes == code
        edges = (sure[inside].min(), sure[inside].max()) if adaptive else (code / bins, (code + 1) / bins)
        accuracy = proportion(right[inside], clusters=None if labels is None else labels[inside], level=level)
        curve.append(
            ReliabilityBin(
                low=float(edges[0]),
                high=float(edges[1]),
                n=int(inside.sum()),
                confidence=float(sure[inside].mean()),
                accuracy=accuracy,
            )
        )
    return curve


def brier_score(
    probability: ArrayLike,
    outcome: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of (probability - outcome)^2 over rows [row]: 0 is perfect, 0.25 is always saying one half."""
    sure, right = _pair(probability, outcome)
    return bootstrap_mean((sure - right) ** 2, clusters, seed=seed, draws=draws, level=level)


def auroc(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Chance that a true row scores above a false one (ties count one half), with a bootstrap interval.

    Raises ValueError with one class only. A perfect separation has no bootstrap width: its
    interval is [1, 1].
    """
    score = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels).astype(bool)
    if score.ndim != 1 or score.shape != truth.shape or np.isnan(score).any():
        raise ValueError(f"AUROC needs one finite score a label, got shapes {score.shape} and {truth.shape}")
    if truth.all() or not truth.any():
        raise ValueError("AUROC needs rows of both classes")
    codes, n_clusters = cluster_codes(score, truth, clusters=clusters)
    drawn = np.concatenate(
        [
            _auroc_of_weights(weights[:, codes], score, truth)
            for weights in _row_chunks(codes, n_clusters, seed, draws)
        ]
    )
    kind = "bootstrap" if clusters is None else "cluster bootstrap"
    value = float(roc_auc_score(truth, score))
    return from_draws(value, drawn, n=n_clusters, level=level, method=f"{kind}, {draws} draws, seed {seed}")


def equal_width_bins(confidence: Float[np.ndarray, " row"], bins: int) -> Int[np.ndarray, " row"]:
    """Bin of each row: [0, 1/bins), ..., the last one closed."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def adaptive_bins(confidence: Float[np.ndarray, " row"], bins: int) -> Int[np.ndarray, " row"]:
    """Bin of each row so that counts are even; rows of equal confidence share a bin, whatever their order."""
    ordered = np.sort(confidence)
    first_of_tie = np.searchsorted(ordered, confidence, side="left")
    return first_of_tie * bins // len(confidence)


def _equal_width_error(
    sure: Float[np.ndarray, " row"],
    right: Bool[np.ndarray, " row"],
    clusters: ArrayLike | None,
    bins: int,
    *,
    seed: int,
    draws: int,
    level: float,
) -> Estimate:
    """All draws at once: a bin's gap is linear in the cluster weights."""
    codes, n_clusters = cluster_codes(sure, right, clusters=clusters)
    in_bin = np.eye(bins)[equal_width_bins(sure, bins)]
    gaps = cluster_sums(in_bin * (sure - right)[:, None], codes, n_clusters)
    sizes = cluster_sums(np.ones((len(sure), 1)), codes, n_clusters)
    drawn = np.concatenate(
        [
            np.abs(weights @ gaps).sum(axis=1) / (weights @ sizes)[:, 0]
            for weights in cluster_weights(n_clusters, seed=seed, draws=draws)
        ]
    )
    kind = "bootstrap" if clusters is None else "cluster bootstrap"
    value = float(np.abs(gaps.sum(axis=0)).sum() / len(sure))
    return from_draws(value, drawn, n=n_clusters, level=level, method=f"{kind}, {draws} draws, seed {seed}")


def _ece(
    sure: Float[np.ndarray, " row"],
    right: Bool[np.ndarray, " row"],
    codes: Int[np.ndarray, " row"],
    bins: int,
) -> float:
    return float(np.abs(np.bincount(codes, weights=sure - right, minlength=bins)).sum() / len(sure))


def _row_chunks(
    codes: Int[np.ndarray, " row"], n_clusters: int, seed: int, draws: int
) -> Iterator[Float[np.ndarray, "chunk cluster"]]:
    """Cluster weights in chunks small enough to be spread over rows."""
    limit = max(1, 2**22 // len(codes))
    for weights in cluster_weights(n_clusters, seed=seed, draws=draws):
        for start in range(0, len(weights), limit):
            yield weights[start : start + limit]


def _auroc_of_weights(
    weights: Float[np.ndarray, "draw row"], score: Float[np.ndarray, " row"], truth: Bool[np.ndarray, " row"]
) -> Float[np.ndarray, " draw"]:
    _, tie = np.unique(score, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.flatnonzero(np.diff(tie[order], prepend=-1))
    true = np.add.reduceat(weights[:, order] * truth[order], starts, axis=1)
    false = np.add.reduceat(weights[:, order] * ~truth[order], starts, axis=1)
    below = np.cumsum(false, axis=1) - false / 2
    pairs = true.sum(axis=1) * false.sum(axis=1)
    areas = np.full(len(pairs), np.nan)
    np.divide((true * below).sum(axis=1), pairs, out=areas, where=pairs > 0)
    return areas


def _pair(
    confidence: ArrayLike, correct: ArrayLike
) -> tuple[Float[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if sure.ndim != 1 or sure.shape != right.shape or len(sure) == 0:
        raise ValueError(
            f"calibration needs one confidence an answer, got shapes {sure.shape} and {right.shape}"
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("confidences lie between 0 and 1, without NaN")
    if not np.isin(right, [0, 1]).all():
        raise ValueError("answers are right or wrong (1 or 0) in every row")
    return sure, right.astype(bool)
