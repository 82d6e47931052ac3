"""Why is no truth direction identified: is it the estimator, do the statements mix, or does the model not know?

Asked in this order, each beside the same with shuffled labels; the first that is above chance is the reason:

1. The estimator. All statements, every topic held out, in plain and in standardised coordinates.
2. The statements. The affirmed ones alone, every topic held out, in either coordinates: a direction of affirmed
   statements may turn round under negation, and then one direction of both is none.
3. What the model knows. Within a topic, among affirmed statements: a difference in means found on one half of the
   subjects, judged on the other half, both ways, in standardised coordinates. The layer is the one where the other
   topics' halves read each other best. At chance, the model does not know; above it, topics share no direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from steerlab.datasets import StatementSet
from steerlab.directions.coordinates import Coordinates
from steerlab.readouts.agreement import Stack, States, contrast_weights, shuffled_labels
from steerlab.readouts.questions import Plan
from steerlab.statistics import Estimate, proportion
from steerlab.studies._truthfulness.probes import OWN, Accuracy, choose_layers, transfer

What = Literal["within a topic", "all statements", "affirmed statements alone"]
_DRAWS = 100


class Tried(Accuracy):
    """An accuracy of something else than the study's own probe. topic: "all" or one."""

    what: What
    coordinates: str


def reasons_of(name: str, states: Stack, used: Plan, seed: int) -> list[Tried]:
    """Halves of every topic, all statements in both coordinates, and the affirmed ones alone."""
    rows = np.flatnonzero(used.simple & (used.polarity > 0))
    mixed = 0 < len(rows) < int(used.simple.sum())
    affirmed = _some(used, rows) if mixed else used
    stack = states[:, rows] if mixed else states
    tried = within_topics(name, stack, affirmed, seed)
    kinds: tuple[Coordinates, ...] = ("plain", "standardised")
    tried += [_own(name, states, used, kind, "all statements", seed) for kind in kinds]
    if mixed and all(_both_classes(affirmed, fold.test[0]) for fold in used.folds):
        tried += [_own(name, stack, affirmed, kind, "affirmed statements alone", seed) for kind in kinds]
    return tried


def reason(tried: Sequence[Tried]) -> str:
    """The reason in words, with its numbers.

    A direction that reads topics it never saw says more than halves of one, of which there are few statements.
    """
    within = next(row for row in tried if (row.what, row.topic) == ("within a topic", "all"))
    found = f"within a topic {_beside(within)}"
    for what, said in (
        ("all statements", "the estimator: in {} coordinates {}"),
        (
            "affirmed statements alone",
            "the statements mix affirmations and negations: affirmed alone, {} coordinates, {}",
        ),
    ):
        best = max(
            (row for row in tried if row.what == what), key=lambda row: row.accuracy.value, default=None
        )
        if best is not None and best.above_chance:
            return f"{said.format(best.coordinates, _beside(best))} ({found})"
    if not within.above_chance:
        return f"the model does not know these topics ({found})"
    known = [
        row.topic for row in tried if row.what == "within a topic" and row.topic != "all" and row.above_chance
    ]
    knows = f"it knows {', '.join(known)}" if known else "no topic for certain"
    return f"what it knows of one topic is no direction shared with others ({knows}; {found})"


def within_topics(name: str, states: Stack, used: Plan, seed: int) -> list[Tried]:
    """Accuracy between the halves of all topics together and of each topic."""
    topics = [fold.test[0] for fold in used.folds if _both_classes(used, fold.test[0])]
    rng = np.random.default_rng(seed)
    labels = np.vstack(
        [used.labels[None], shuffled_labels(used.labels, used.strata, rng, _DRAWS)]
    )  # as for probes, those that judge are shuffled as well
    right = {}
    for topic in topics:
        rows = used.rows([topic])
        first = _half_of(used.clusters[rows], rng)
        right[topic] = np.stack([_between_halves(x[rows], labels[:, rows], first) for x in states])
    means = {topic: each[:, :, 0].mean(axis=1) for topic, each in right.items()}
    at = {
        topic: int(
            np.argmax(sum((means[other] for other in topics if other != topic), np.zeros(len(states))))
        )
        for topic in topics
    }
    chosen = {topic: right[topic][at[topic]] for topic in topics}
    clusters = {topic: used.clusters[used.rows([topic])] for topic in topics}
    made = [_tried(name, topic, [at[topic]], chosen[topic], clusters[topic]) for topic in topics]
    pooled, units = (np.concatenate([each[topic] for topic in topics]) for each in (chosen, clusters))
    return [_tried(name, "all", list(at.values()), pooled, units), *made]


# -- private, in the order they are called --


def _some(used: Plan, rows: NDArray[np.int64]) -> Plan:
    """The plan of some of its statements."""
    return replace(
        used,
        statements=StatementSet(used.statements[row] for row in rows.tolist()),
        groups=used.groups[rows],
        forms=used.forms[rows],
        clusters=used.clusters[rows],
    )


def _both_classes(used: Plan, topic: str) -> bool:
    return len(set(used.labels[used.rows([topic])].tolist())) == 2


def _own(name: str, states: Stack, used: Plan, coordinates: Coordinates, what: What, seed: int) -> Tried:
    """The model's own probe on held-out topics, at layers chosen on training topics."""
    layers = choose_layers(states, used, None, coordinates)
    cell = transfer({name: states}, used, {name: layers}, seed=seed, coordinates=coordinates)[0]
    return Tried(**vars(cell), what=what, coordinates=coordinates)


def _half_of(clusters: NDArray[np.int64], rng: np.random.Generator) -> Bool[np.ndarray, " row"]:
    """True for the rows of a random half of the subjects."""
    names = rng.permutation(np.unique(clusters))
    chosen: Bool[np.ndarray, " row"] = np.isin(clusters, names[: len(names) // 2])
    return chosen


def _between_halves(
    x: States, labels: Bool[np.ndarray, "draw row"], first: Bool[np.ndarray, " row"]
) -> Float[np.ndarray, "row draw"]:
    """1 where a row is called right by the standardised difference in means of the other half, for each draw."""
    right = np.full((len(x), len(labels)), np.nan)
    for train, test in ((first, ~first), (~first, first)):
        rows = x[train].astype(np.float64)
        mean, variance = rows.mean(axis=0), rows.var(axis=0)
        weights = contrast_weights(labels[:, train])
        directions = np.nan_to_num(weights @ (rows - mean)) / np.where(variance > 0, variance, 1.0)
        middle = np.nan_to_num(np.abs(weights) @ (rows - mean)) / 2
        scores = (x[test] - mean) @ directions.T - (directions * middle).sum(axis=1)
        right[test] = (scores > 0) == labels[:, test].T
    return right


def _tried(
    name: str,
    topic: str,
    layers: Sequence[int],
    right: Float[np.ndarray, "row draw"],
    clusters: NDArray[np.int64],
) -> Tried:
    shuffled = right[:, 1:].mean(axis=0)
    low, mean, high = (
        float(x) for x in (np.quantile(shuffled, 0.025), shuffled.mean(), np.quantile(shuffled, 0.975))
    )
    n = len(np.unique(clusters))
    how = f"{len(shuffled)} shuffles of the labels"
    return Tried(
        probe=name,
        states=name,
        layers=tuple(layers),
        centred_by=OWN,
        topic=topic,
        accuracy=proportion(right[:, 0], clusters=clusters),
        control=Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=n, method=how),
        what="within a topic",
        coordinates="standardised",
    )


def _beside(row: Accuracy) -> str:
    return f"{row.accuracy:%} (shuffled labels {row.control:%})"
