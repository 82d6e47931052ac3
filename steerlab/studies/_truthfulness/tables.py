"""The tables of the truthfulness study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.readouts.agreement import COLUMNS
from steerlab.results import Table, with_rows
from steerlab.statistics import Estimate, bootstrap_mean

if TYPE_CHECKING:
    from steerlab.studies._truthfulness.result import Point, TruthfulnessResult


def tables(result: TruthfulnessResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    return with_rows(
        _accuracy(result),
        _reasons(result),
        _cosine(result),
        _transfer(result),
        _topics(result),
        _projections(result),
        _labels(result),
        _steering(result),
        _price(result),
    )


# -- private, in the order of the page --


def _accuracy(result: TruthfulnessResult) -> Table:
    return Table.of(
        "accuracy",
        "Probe accuracy on held-out statements, by layer",
        result.by_layer,
        {
            "model": "probe",
            "layer": lambda row: row.layers[0],
            "accuracy": "accuracy",
            "shuffled labels": "control",
        },
        note=f"Each model's own probe ({result.setting.estimator} of the other topics), every topic held out in turn "
        f"and centred by its own mean. Intervals resample subjects.{_coordinates(result)}",
    )


def _coordinates(result: TruthfulnessResult) -> str:
    """At which layers coordinates are not plain, as a sentence."""
    at = {
        name: [layer for layer, found in enumerate(layers) if found != "plain"]
        for name, layers in result.coordinates.items()
    }
    said = [f"{name}: {', '.join(map(str, layers))}" for name, layers in at.items() if layers]
    return f" Coordinates of one scale at layers ({'; '.join(said)})." if said else ""


def _reasons(result: TruthfulnessResult) -> Table:
    return Table.of(
        "reasons",
        "Where a truth direction is not identified: what else was tried",
        result.reasons,
        {
            "model": "probe",
            "tried": "what",
            "topic": "topic",
            "coordinates": "coordinates",
            "layer": lambda row: _numbers(row.layers),
            "accuracy": "accuracy",
            "shuffled labels": "control",
        },
        note="Differences in means. Within a topic: found on one half of its subjects and judged on the other, at the "
        "layer where the other topics' halves read each other best; what a model knows lies above chance there. The "
        "others hold every topic out in turn.",
    )


def _cosine(result: TruthfulnessResult) -> Table:
    return Table.of(
        "cosine",
        "Cosine of the two models' truth directions, by layer",
        result.agreement,
        COLUMNS,
        note="Across halves: base found on one half of the statements, post on the other. Ceiling: one model with "
        "itself across the same halves. Shuffled labels: the same random labels in both models.",
    )


def _transfer(result: TruthfulnessResult) -> Table:
    return Table.of(
        "transfer",
        "Probes of one model on the states of the other, held-out statements",
        [cell for cell in result.transfer if cell.topic == "all"],
        {
            "probe of": "probe",
            "states of": "states",
            "layer": lambda cell: _numbers(cell.layers),
            "centred by": "centred_by",
            "statements": "statements",
            "accuracy": "accuracy",
            "shuffled labels": "control",
        },
        note="Direction and decision point of the probe's model, at its layer, chosen on training topics only. "
        "Held-out states are moved by the mean of their own topic, or of the training topics in either model.",
    )


def _topics(result: TruthfulnessResult) -> Table:
    return Table.of(
        "topics",
        "Probe accuracy topic by topic, each held out",
        [cell for topic in result.setting.topics for cell in result.transfer if cell.topic == topic],
        {
            "topic": "topic",
            "probe of": "probe",
            "states of": "states",
            "layer": lambda cell: _numbers(cell.layers),
            "accuracy": "accuracy",
            "shuffled labels": "control",
        },
        note="Centred by the topic's own mean.",
    )


def _projections(result: TruthfulnessResult) -> Table:
    models = result.points[0].places if result.points else ()

    def members(true: bool) -> list[Point]:
        return [point for point in result.points if point.true == true]

    def mean(model: str, true: bool) -> Estimate:
        places = [point.places[model] for point in members(true)]
        return bootstrap_mean(places, [point.cluster for point in members(true)], seed=result.setting.seed)

    return Table.of(
        "projections",
        "Where held-out statements lie along the truth direction",
        [(model, true) for model in models for true in (True, False)],
        {
            "model": lambda row: row[0],
            "statements": lambda row: "true" if row[1] else "false",
            "n": lambda row: len(members(row[1])),
            "mean place (class gaps)": lambda row: mean(*row),
        },
        note="0 is the decision point; on the training topics the class means lie at 1/2 and -1/2.",
    )


def _labels(result: TruthfulnessResult) -> Table:
    true, false = result.setting.answers
    return Table.of(
        "labels",
        "How well each model labels held-out statements itself",
        result.labels,
        {
            "model": "model",
            "scored as": "scored",
            "calibrated": lambda row: "yes" if row.calibrated else "no",
            "labelled lines": lambda row: _numbers(row.shots),
            "statements": "statements",
            "accuracy": "accuracy",
            "always the same answer": "chance",
        },
        note=f"The likelier of {true!r} and {false!r} after the question; calibrated: true where the log-odds exceed "
        "their median over the other topics' statements.",
    )


def _steering(result: TruthfulnessResult) -> Table:
    topics = ", ".join(result.steering[0].topics) if result.steering else ""
    return Table.of(
        "steering",
        "Steering the answer with the truth direction",
        result.steering,
        {
            "direction of": "direction",
            "model": "model",
            "at": "place",
            "normalised": "normalisation",
            "layers": lambda cell: ", ".join(sorted({f"{first}-{last}" for first, last in cell.layers})),
            "strength": lambda cell: ", ".join(f"{strength:g}" for strength in sorted(set(cell.strength))),
            "true to false": "true_to_false",
            "false to true": "false_to_true",
            "mean": "mean",
            "random directions": "control",
        },
        note="0: the answer stays, 1: it moves all the way. Strength in class gaps; window and strength are chosen on "
        f"training topics, the same for all cells of a place. Held out and steered in turn: {topics}.",
    )


def _price(result: TruthfulnessResult) -> Table:
    texts = result.prices[0].adding.texts if result.prices else 0
    return Table.of(
        "price",
        "What the same edits cost on plain text, nats a token",
        result.prices,
        {
            "direction of": "direction",
            "model": "model",
            "dose chosen at": "place",
            "layers": lambda price: "{}-{}".format(*price.layers),
            "strength": "strength",
            "KL, added": "adding.kl",
            "KL, subtracted": "subtracting.kl",
            "KL, random": "random_kl",
            "loss change, added": "adding.loss_change",
            "loss change, subtracted": "subtracting.loss_change",
            "loss change, random": "random_loss",
        },
        note=f"{texts} plain passages, every token steered (in the answers two tokens or one are): the direction of "
        "all topics, at the window and strength chosen most often.",
    )


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(set(values))))
