"""Truth read off states of topics that a probe never saw, and of halves of a topic.

Every topic is held out in turn, its negations with it. Centring: "topics apart" moves each topic's rows by minus their
mean, training topics and the held-out one alike (uses its statements, not their labels); "sets apart" does so for
affirmations and negations of a topic apart; "together" leaves the states as they are. Control: labels shuffled inside
each set, those that train and those that judge alike; a negation keeps the opposite label of its affirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from inspect import signature
from itertools import combinations
from typing import Any

import numpy as np
from _topic_statements import NEGATED, Statements
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from steerlab.directions import (
    Ccs,
    DifferenceInMeans,
    InCoordinates,
    LinearDirection,
    LogisticProbe,
    MassMean,
    Ttpd,
)
from steerlab.readouts.agreement import centre, shuffled_labels
from steerlab.statistics import Estimate, proportion

ESTIMATORS: dict[str, LinearDirection] = {
    "difference in means": DifferenceInMeans(),
    "difference in means, standardised": InCoordinates(DifferenceInMeans()),
    "difference in means, winsorised": InCoordinates(DifferenceInMeans(), "winsorised"),
    "mass-mean": MassMean(tilt=True, shrinkage=0.01),
    "logistic regression, standardised": LogisticProbe(C=0.01),
    "TTPD": Ttpd(C=0.01),
    "TTPD, standardised": InCoordinates(Ttpd(C=0.01)),
    "CCS": Ccs(restarts=3, steps=200, learning_rate=3e-3),
}
MIXED_ONLY, AFFIRMED_ONLY = ("TTPD", "TTPD, standardised", "CCS"), ("difference in means, winsorised",)
#: What is chosen among on training topics; mass-mean would cost as much as the others together.
CHOICES = ("difference in means", "difference in means, standardised", "logistic regression, standardised")
WITHIN = ("difference in means, standardised", "logistic regression, standardised")
APART, SETS_APART, TOGETHER = "topics apart", "sets apart", "together"

Rows = NDArray[np.int64]
States = NDArray[np.float64]
Right = NDArray[np.bool_]
Labels = NDArray[np.bool_]


def centred(states: NDArray[np.floating[Any]], given: Statements, centring: str) -> States:
    """All rows by the means of their topics or sets, or as they are."""
    groups = {APART: given.topics, SETS_APART: given.sets}
    return centre(states, groups[centring]) if centring in groups else states.astype(np.float64)


def draws_of(given: Statements, n: int, seed: int) -> Labels:
    """[draw, row]: the real labels, then `n` shuffles inside each set; negations follow their affirmations."""
    shuffled = shuffled_labels(given.labels, given.sets, np.random.default_rng(seed), n)
    place = {
        key: row for row, key in enumerate(zip(given.sets.tolist(), given.numbers.tolist(), strict=True))
    }
    for (name, number), row in place.items():
        partner = place.get((name.removeprefix(NEGATED), number), row)
        if partner != row:
            shuffled[:, row] = ~shuffled[:, partner]
    return np.vstack([given.labels[None], shuffled])


def pair_numbers(given: Statements) -> NDArray[np.int64]:
    """[row] one number for an affirmation and its negation."""
    names = [f"{name.removeprefix(NEGATED)}/{n}" for name, n in zip(given.sets, given.numbers, strict=True)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def held_out(
    estimator: LinearDirection, x: States, given: Statements, labels: Labels, out: Sequence[str]
) -> Right:
    """[row] whether the rows of the topics `out` are called right by a probe of all other topics."""
    train, test = ~np.isin(given.topics, out), np.isin(given.topics, out)
    takes, extra = signature(type(_inner(estimator)).fit).parameters, {}
    if "polarity" in takes and len(set(given.polarity[train].tolist())) == 2:
        extra["polarity"] = given.polarity[train]
    if "pairs" in takes:
        extra["pairs"] = pair_numbers(given)[train]
    probe = clone(estimator).fit(x[train], labels[train], **extra)
    right: Right = probe.predict(x[test]) == labels[test]
    return right


def leave_one_out(estimator: LinearDirection, x: States, given: Statements, labels: Labels) -> Right:
    """[row] whether it is called right by a probe that never saw its topic."""
    right = np.zeros(len(labels), dtype=bool)
    for topic in dict.fromkeys(given.topics.tolist()):
        right[given.topics == topic] = held_out(estimator, x, given, labels, [topic])
    return right


def within_topic(estimator: LinearDirection, x: States, labels: Labels, seed: int) -> Right:
    """[row] of one topic: whether it is called right by a probe of the topic's other half."""
    right = np.zeros(len(labels), dtype=bool)
    for train, test in StratifiedKFold(2, shuffle=True, random_state=seed).split(x, labels):
        right[test] = clone(estimator).fit(x[train], labels[train]).predict(x[test]) == labels[test]
    return right


def control_of(shuffled: Sequence[float]) -> Estimate:
    """Mean and range of accuracies with shuffled labels."""
    mean = float(np.mean(shuffled))
    return Estimate(value=mean, low=min(*shuffled, mean), high=max(*shuffled, mean), n=len(shuffled))


def nested(
    stack: Mapping[int, States], given: Statements, names: Sequence[str]
) -> Iterator[tuple[str, str, int, float]]:
    """For each topic: the estimator and layer that read the other topics best, each of them left out in turn."""
    topics = list(dict.fromkeys(given.topics.tolist()))
    scores: dict[tuple[str, int], NDArray[np.float64]] = {}
    for name in names:
        for layer, x in stack.items():
            table = scores[name, layer] = np.full((len(topics), len(topics)), np.nan)
            for a, b in combinations(
                range(len(topics)), 2
            ):  # one probe judges a where b is held out, and b where a is
                pair = [topics[a], topics[b]]
                right = held_out(ESTIMATORS[name], x, given, given.labels, pair)
                of = given.topics[np.isin(given.topics, pair)]
                table[b, a], table[a, b] = right[of == pair[0]].mean(), right[of == pair[1]].mean()
    for at, topic in enumerate(topics):
        name, layer = max(scores, key=lambda key: float(np.nanmean(scores[key][at])))
        yield topic, name, layer, float(np.nanmean(scores[name, layer][at]))


def judged(right: Right, given: Statements, rows: NDArray[np.bool_]) -> Estimate:
    """Accuracy over some rows, its interval over topics."""
    return proportion(right[rows], clusters=given.topics[rows])


def once(make: Callable[[], dict[int, States]]) -> Callable[[], dict[int, States]]:
    """What `make` makes, made at the first call and kept."""
    return lru_cache(maxsize=1)(make)


# -- private --


def _inner(estimator: LinearDirection) -> LinearDirection:
    return estimator.estimator if isinstance(estimator, InCoordinates) else estimator
