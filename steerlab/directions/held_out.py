"""How well a direction tells held-out prompts apart, and at which site it works best.

Accuracy: five folds, stratified by class; prompts of one group (a matched pair, a template, a subject) are held out
together. Best site: among those whose accuracy lies within one standard error of the best one, the one with the
largest class gap in within-class standard deviations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

from steerlab.directions._header import SiteStatistics
from steerlab.directions.linear import LinearDirection
from steerlab.models import Site
from steerlab.statistics import Estimate, proportion

FOLDS = 5


def held_out_accuracy(
    estimator: LinearDirection,
    rows: Float[np.ndarray, "row width"],
    labels: Int[np.ndarray, " row"],
    groups: Sequence[Hashable] | None = None,
    *,
    extra: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
) -> Estimate:
    """Share of held-out rows that the estimator's decision function calls right, with a clustered Wilson interval.

    Args:
        estimator: unfitted.
        rows: states.
        labels: 0 or 1 a row.
        groups: one name a row; rows of one group are never on both sides of a split. None: every row by itself.
        extra: what else the estimator's `fit` takes, one value a row (pairs, polarity).
        seed: of the folds.
    """
    numbers = numbered(groups, len(rows))
    alone = len(set(numbers.tolist())) == len(rows)
    folds = held_out_folds(labels, groups, seed=seed)
    predicted = cross_val_predict(estimator, rows, labels, cv=folds, params=dict(extra or {}))
    return proportion(predicted == labels, clusters=None if alone else numbers)


def held_out_folds(
    labels: Int[np.ndarray, " row"], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The rows of each of five folds, those to fit on and those held out; arguments as of `held_out_accuracy`."""
    numbers = numbered(groups, len(labels))
    alone = len(set(numbers.tolist())) == len(labels)
    folds = (StratifiedKFold if alone else StratifiedGroupKFold)(FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros((len(labels), 1)), labels, None if alone else numbers))


def groups_by_class(groups: Sequence[Hashable], labels: Sequence[Any]) -> Counter[Any]:
    """How many groups hold rows of each class."""
    return Counter(label for _, label in set(zip(groups, labels, strict=True)))


def best_site(accuracy: Mapping[Site, Estimate], statistics: Mapping[Site, SiteStatistics]) -> Site | None:
    """The site where a direction works best; None where nothing was held out.

    Args:
        accuracy: held-out accuracy by site; its `n` counts groups.
        statistics: class means and within-class σ along the unit vector, by site.
    """
    known = {site: value for site, value in accuracy.items() if not math.isnan(value.value)}
    if not known:
        return None
    top = max(known.values(), key=lambda value: value.value)
    error = math.sqrt(top.value * (1 - top.value) / max(top.n, 1))
    near = [site for site, value in known.items() if value.value >= top.value - error - 1e-12]
    return max(near, key=lambda site: _separation(statistics[site]))


def numbered(groups: Sequence[Hashable] | None, rows: int) -> Int[np.ndarray, " row"]:
    """One number a group, by row; None: every row by itself."""
    if groups is None:
        return np.arange(rows)
    number = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    return np.array([number[name] for name in groups])


def _separation(statistics: SiteStatistics) -> float:
    """Class gap over the within-class standard deviation, of several vectors the greatest; -inf where not known."""
    means, sigma = statistics.class_means, statistics.sigma
    if statistics.positive is None or statistics.negative is None or not sigma:
        return -math.inf
    gaps = np.subtract(means[statistics.positive], means[statistics.negative])
    if len(gaps) != len(sigma):
        gaps = gaps[:1]
    return max(gap / s if s > 0 else math.inf for gap, s in zip(gaps.tolist(), sigma, strict=False))
