"""The tables of the truthfulness study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Table
from steerlab.statistics import bootstrap_mean

if TYPE_CHECKING:
    from steerlab.studies._truthfulness.result import TruthfulnessResult


def tables(result: TruthfulnessResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    made = [
        _accuracy(result),
        _cosine(result),
        _transfer(result),
        _topics(result),
        _projections(result),
        _labels(result),
        _steering(result),
        _price(result),
    ]
    return [table for table in made if table.rows]


# -- private --


def _accuracy(result: TruthfulnessResult) -> Table:
    return Table(
        key="accuracy",
        title="Probe accuracy on held-out statements, by layer",
        columns=["model", "layer", "accuracy", "shuffled labels"],
        rows=[[one.probe, one.layers[0], one.accuracy, one.control] for one in result.by_layer],
        note=f"Each model's own probe ({result.setting.estimator} of the other topics), every topic held out in turn "
        "and centred by its own mean. Intervals resample subjects.",
    )


def _cosine(result: TruthfulnessResult) -> Table:
    return Table(
        key="cosine",
        title="Cosine of the two models' truth directions, by layer",
        columns=[
            "layer",
            "cosine",
            "across halves",
            "ceiling (same model)",
            "shuffled labels",
            "random below",
        ],
        rows=[
            [one.layer, one.cosine, one.crossed, one.ceiling, one.shuffled, one.random]
            for one in result.agreement
        ],
        note="Across halves: base found on one half of the statements, post on the other. Ceiling: one model with "
        "itself across the same halves. Shuffled labels: the same random labels in both models.",
    )


def _transfer(result: TruthfulnessResult) -> Table:
    return Table(
        key="transfer",
        title="Probes of one model on the states of the other, held-out statements",
        columns=["probe of", "states of", "layer", "centred by", "statements", "accuracy", "shuffled labels"],
        rows=[
            [
                one.probe,
                one.states,
                _numbers(one.layers),
                one.centred_by,
                one.statements,
                one.accuracy,
                one.control,
            ]
            for one in result.transfer
            if one.topic == "all"
        ],
        note="Direction and decision point of the probe's model, at its layer, chosen on training topics only. "
        "Held-out states are moved by the mean of their own topic, or of the training topics in either model.",
    )


def _topics(result: TruthfulnessResult) -> Table:
    return Table(
        key="topics",
        title="Probe accuracy topic by topic, each held out",
        columns=["topic", "probe of", "states of", "layer", "accuracy", "shuffled labels"],
        rows=[
            [one.topic, one.probe, one.states, _numbers(one.layers), one.accuracy, one.control]
            for topic in result.setting.topics
            for one in result.transfer
            if one.topic == topic
        ],
        note="Centred by the topic's own mean.",
    )


def _projections(result: TruthfulnessResult) -> Table:
    rows = []
    for model in result.points[0].places if result.points else ():
        for true in (True, False):
            members = [point for point in result.points if point.true == true]
            mean = bootstrap_mean(
                [point.places[model] for point in members],
                [point.cluster for point in members],
                seed=result.setting.seed,
            )
            rows.append([model, "true" if true else "false", len(members), mean])
    return Table(
        key="projections",
        title="Where held-out statements lie along the truth direction",
        columns=["model", "statements", "n", "mean place (class gaps)"],
        rows=rows,
        note="0 is the decision point; on the training topics the class means lie at 1/2 and -1/2.",
    )


def _labels(result: TruthfulnessResult) -> Table:
    true, false = result.setting.answers
    return Table(
        key="labels",
        title="How well each model labels held-out statements itself",
        columns=[
            "model",
            "scored as",
            "calibrated",
            "labelled lines",
            "statements",
            "accuracy",
            "always the same answer",
        ],
        rows=[
            [
                one.model,
                one.scored,
                "yes" if one.calibrated else "no",
                _numbers(one.shots),
                one.statements,
                one.accuracy,
                one.chance,
            ]
            for one in result.labels
        ],
        note=f"The likelier of {true!r} and {false!r} after the question; calibrated: true where the log-odds exceed "
        "their median over the other topics' statements.",
    )


def _steering(result: TruthfulnessResult) -> Table:
    topics = ", ".join(result.steering[0].topics) if result.steering else ""
    return Table(
        key="steering",
        title="Steering the answer with the truth direction",
        columns=[
            "direction of",
            "model",
            "at",
            "normalised",
            "layers",
            "strength",
            "true to false",
            "false to true",
            "mean",
            "random directions",
        ],
        rows=[
            [
                one.direction,
                one.model,
                one.place,
                one.normalisation,
                ", ".join(sorted({f"{first}-{last}" for first, last in one.layers})),
                ", ".join(f"{strength:g}" for strength in sorted(set(one.strength))),
                one.true_to_false,
                one.false_to_true,
                one.mean,
                one.control,
            ]
            for one in result.steering
        ],
        note="0: the answer stays, 1: it moves all the way. Strength in class gaps; window and strength are chosen on "
        f"training topics, the same for all cells of a place. Held out and steered in turn: {topics}.",
    )


def _price(result: TruthfulnessResult) -> Table:
    texts = result.prices[0].adding.texts if result.prices else 0
    return Table(
        key="price",
        title="What the same edits cost on plain text, nats a token",
        columns=[
            "direction of",
            "model",
            "dose chosen at",
            "layers",
            "strength",
            "KL, added",
            "KL, subtracted",
            "KL, random",
            "loss change, added",
            "loss change, subtracted",
            "loss change, random",
        ],
        rows=[
            [
                one.direction,
                one.model,
                one.place,
                "{}-{}".format(*one.layers),
                one.strength,
                one.adding.kl,
                one.subtracting.kl,
                one.random_kl,
                one.adding.loss_change,
                one.subtracting.loss_change,
                one.random_loss,
            ]
            for one in result.prices
        ],
        note=f"{texts} plain passages, every token steered (in the answers two tokens or one are): the direction of "
        "all topics, at the window and strength chosen most often.",
    )


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(set(values))))
