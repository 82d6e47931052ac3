"""The result of the truthfulness study: its numbers, and how they read as sentences, tables and figures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from steerlab.statistics import Estimate, Number, bootstrap_mean
from steerlab.studies import _truthfulness_figures as figures_of
from steerlab.studies._answers import Labels, Steering
from steerlab.studies._contrast import Agreement
from steerlab.studies._probes import Accuracy
from steerlab.studies.result import Headline, StudyResult, Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Setting(BaseModel):
    """What was read and asked, so that the numbers can be made again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str
    seed: int
    models: dict[str, str]
    statements: int
    topics: tuple[str, ...]
    held_out: tuple[tuple[str, ...], ...]
    by_topic: bool
    answers: tuple[str, str]
    shots: int | None = None


class Point(BaseModel):
    """A held-out statement's place along each model's direction, in class gaps from the decision point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    true: bool
    cluster: int
    places: dict[str, Number]


class TruthfulnessResult(StudyResult):
    """Truth in two models: probes, cosines, transfer, and the steering of the answer.

    chosen: for each model the probe's layer in each fold. by_layer: each model's own probe on held-out topics.
    transfer: every probe on every model's states. agreement: cosines by layer. labels: how well each model labels
    statements itself. steering: every direction in every model. missing: parts that were not run, and why.
    """

    title: ClassVar[str] = "Truthfulness"

    study: str = "truthfulness"
    setting: Setting
    chosen: dict[str, tuple[int, ...]]
    by_layer: tuple[Accuracy, ...]
    transfer: tuple[Accuracy, ...]
    agreement: tuple[Agreement, ...] = ()
    labels: tuple[Labels, ...] = ()
    steering: tuple[Steering, ...] = ()
    points: tuple[Point, ...] = ()
    missing: dict[str, str]

    def own(self, model: str) -> Accuracy:
        """A model's own probe on its held-out statements, at the chosen layers."""
        return self.cell(model, model)

    def cell(self, probe: str, states: str, *, recentred: bool = True) -> Accuracy:
        """One model's probe on another's held-out states."""
        wanted = (probe, states, recentred, "all")
        return next(
            one for one in self.transfer if (one.probe, one.states, one.recentred, one.statements) == wanted
        )

    def layer(self, model: str) -> int:
        """The layer chosen in most folds."""
        return Counter(self.chosen[model]).most_common(1)[0][0]

    def tables(self) -> list[Table]:
        """Accuracy by layer, transfer, cosines, the model's own labels, steering and projections."""
        made = [
            _accuracy_table(self),
            _cosine_table(self),
            _transfer_table(self),
            _projection_table(self),
            _labels_table(self),
            _steering_table(self),
        ]
        return [table for table in made if table.rows]

    def figures(self) -> dict[str, Figure]:
        """Accuracy by layer, and where a direction was found also cosines, transfer, projections and steering."""
        made = {"accuracy": figures_of.accuracy_figure(self)}
        if self.agreement:
            made["cosine"] = figures_of.cosine_figure(
                self.agreement, "Are the two truth directions the same?"
            )
        if len({one.probe for one in self.transfer if one.above_chance}) and _crossed(self):
            made["transfer"] = figures_of.transfer_figure(self)
        if self.points:
            made["projections"] = figures_of.projection_figure(self)
        if self.steering:
            made["steering"] = figures_of.steering_figure(self)
        return made


def sentences(result: TruthfulnessResult) -> list[str]:
    """The study in plain words."""
    said = [_probe_sentence(result, model) for model in result.chosen]
    if result.agreement:
        said.append(_cosine_sentence(result))
    if _crossed(result) and result.own("base").above_chance and result.own("post").above_chance:
        crossed, own = result.cell("base", "post"), result.own("post")
        said.append(
            f"Carried over: the base model's probe labels the post-trained model's held-out states right in "
            f"{crossed.accuracy} of cases, the post-trained model's own probe in {own.accuracy}."
        )
    for one in result.labels:
        if one.statements == "all":
            verdict = "" if one.above_chance else " — not identified: accuracy at chance"
            lines = f"after {one.shots} labelled lines" if one.shots else "without examples"
            said.append(
                f"{one.model.capitalize()}: asked {lines}, it labels {one.accuracy} of held-out statements right "
                f"(chance {one.chance:.2f}){verdict}."
            )
    for cell in result.steering:
        if cell.normalisation == "to certainty":
            verdict = "" if cell.above_control else " — not identified: random directions reach as far"
            said.append(
                f"The {cell.direction} direction moves the {cell.model} model's answer {cell.mean} of the way to the "
                f"other one (random directions of the same length: {cell.control}){verdict}."
            )
    return said + list(result.missing.values())


def headline(result: TruthfulnessResult) -> Headline | None:
    """The cosine of the two directions beside its ceiling, or the post-trained model's own probe."""
    if result.agreement:
        at = _agreement_at(result)
        return Headline(
            what=f"cosine of the two truth directions (layer {at.layer})",
            value=at.cosine,
            control=Estimate(value=0.0, low=-at.random, high=at.random, method="exact"),
            control_name="random directions",
        )
    own = result.own("post")
    what = "probe on held-out statements, post-trained model"
    return Headline(what=what, value=own.accuracy, control=own.control, control_name="shuffled labels")


# -- private: sentences --


def _crossed(result: TruthfulnessResult) -> bool:
    return any(one.probe != one.states for one in result.transfer)


def _agreement_at(result: TruthfulnessResult) -> Agreement:
    """The row of the layer chosen in the post-trained model."""
    return next(row for row in result.agreement if row.layer == result.layer("post"))


def _probe_sentence(result: TruthfulnessResult, model: str) -> str:
    own, name = result.own(model), model.capitalize()
    what = "topics" if result.setting.by_topic else "statements"
    if not own.above_chance:
        return (
            f"{name}: truth direction not identified: accuracy at chance ({own.accuracy} on held-out {what}, with "
            f"shuffled labels {own.control})."
        )
    return (
        f"{name}: a direction found on other {what} tells true from false statements it never saw in {own.accuracy} "
        f"of cases (layer {result.layer(model)}; with shuffled labels {own.control})."
    )


def _cosine_sentence(result: TruthfulnessResult) -> str:
    at = _agreement_at(result)
    return (
        f"The two models' directions at layer {at.layer} have cosine {at.cosine}. Found on different halves of the "
        f"statements they have {at.crossed}, where one model with itself has {at.ceiling} (the most that can be "
        f"expected); any random labelling gives {at.shuffled}, random directions stay below {at.random:.2f}."
    )


# -- private: tables --


def _accuracy_table(result: TruthfulnessResult) -> Table:
    return Table(
        key="accuracy",
        title="Probe accuracy on held-out statements, by layer",
        columns=["model", "layer", "accuracy", "shuffled labels"],
        rows=[[one.probe, one.layers[0], one.accuracy, one.control] for one in result.by_layer],
        note="Each model's own probe (difference in means of the training topics, decided at the midpoint), "
        "held-out topics centred by their own mean. Intervals resample subjects.",
    )


def _cosine_table(result: TruthfulnessResult) -> Table:
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


def _transfer_table(result: TruthfulnessResult) -> Table:
    ways = {True: "topic's own mean", False: "training mean"}
    return Table(
        key="transfer",
        title="Probes of one model on the states of the other, held-out statements",
        columns=["probe of", "states of", "layer", "centred by", "statements", "accuracy", "shuffled labels"],
        rows=[
            [
                one.probe,
                one.states,
                ", ".join(map(str, sorted(set(one.layers)))),
                ways[one.recentred],
                one.statements,
                one.accuracy,
                one.control,
            ]
            for one in result.transfer
        ],
        note="Direction and decision point of the probe's model, at its layer, chosen on training topics only.",
    )


def _labels_table(result: TruthfulnessResult) -> Table:
    return Table(
        key="labels",
        title="How well each model labels held-out statements itself",
        columns=["model", "labelled lines", "statements", "accuracy", "always the same answer"],
        rows=[[one.model, one.shots, one.statements, one.accuracy, one.chance] for one in result.labels],
        note=f"The likelier of {result.setting.answers[0]!r} and {result.setting.answers[1]!r} after the question.",
    )


def _steering_table(result: TruthfulnessResult) -> Table:
    return Table(
        key="steering",
        title="Steering the answer with the truth direction",
        columns=[
            "direction of",
            "model",
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
                one.normalisation,
                ", ".join(sorted({f"{first}-{last}" for first, last in one.layers})),
                ", ".join(sorted({f"{strength:g}" for strength in one.strength})),
                one.true_to_false,
                one.false_to_true,
                one.mean,
                one.control,
            ]
            for one in result.steering
        ],
        note="0: the answer stays, 1: it moves all the way. Strength in class gaps of the steered model, at the last "
        "word token and the full stop; window and strength chosen on a training topic, the same for all cells.",
    )


def _projection_table(result: TruthfulnessResult) -> Table:
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
