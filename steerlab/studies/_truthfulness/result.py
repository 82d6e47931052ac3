"""The result of the truthfulness study: its numbers, and how they read as sentences."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from steerlab.readouts.agreement import Agreement, cosine_figure
from steerlab.record import Record
from steerlab.results import Headline, StudyResult, Table
from steerlab.statistics import Estimate, Number
from steerlab.studies._truthfulness import figures as figures_of
from steerlab.studies._truthfulness import tables as tables_of
from steerlab.studies._truthfulness.answers import Labels
from steerlab.studies._truthfulness.probes import OWN, Accuracy, Centring
from steerlab.studies._truthfulness.steering import Price, Steering

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Setting(Record):
    """What was read and asked, so that the numbers can be made again."""

    size: str
    seed: int
    preset: str
    estimator: str
    models: dict[str, str]
    statements: int
    topics: tuple[str, ...]
    by_topic: bool
    answers: tuple[str, str]


class Point(Record):
    """A held-out statement's place along each model's direction, in class gaps from the decision point."""

    topic: str
    true: bool
    negated: bool
    cluster: int
    places: dict[str, Number]


class TruthfulnessResult(StudyResult):
    """Truth in two models: probes, cosines, transfer, and the steering of the answer.

    chosen: for each model the probe's layer in each fold (every topic is one). by_layer: each model's own probe on
    held-out topics. transfer: every probe on every model's states, also by kind of statement and by topic. agreement:
    cosines by layer. labels: how well each model labels statements itself. steering: every direction in every model;
    prices: the same edits on plain text. missing: parts that were not run, and why.
    """

    study: str = "truthfulness"
    setting: Setting
    chosen: dict[str, tuple[int, ...]]
    by_layer: tuple[Accuracy, ...]
    transfer: tuple[Accuracy, ...]
    agreement: tuple[Agreement, ...] = ()
    labels: tuple[Labels, ...] = ()
    steering: tuple[Steering, ...] = ()
    prices: tuple[Price, ...] = ()
    points: tuple[Point, ...] = ()
    missing: dict[str, str]

    def own(self, model: str) -> Accuracy:
        """A model's own probe on its held-out statements, at the chosen layers."""
        return self.cell(model, model)

    def cell(
        self,
        probe: str,
        states: str,
        *,
        centred_by: Centring = OWN,
        statements: str = "all",
        topic: str = "all",
    ) -> Accuracy:
        """One model's probe on another's held-out states."""
        wanted = (probe, states, centred_by, statements, topic)
        return next(
            one
            for one in self.transfer
            if (one.probe, one.states, one.centred_by, one.statements, one.topic) == wanted
        )

    def layer(self, model: str) -> int:
        """The layer chosen in most folds."""
        return Counter(self.chosen[model]).most_common(1)[0][0]

    def tables(self) -> list[Table]:
        """Accuracy by layer, cosines, transfer by kind and topic, projections, own labels, steering and its price."""
        return tables_of.tables(self)

    def figures(self) -> dict[str, Figure]:
        """Accuracy by layer; where a direction was found also cosines, transfer, topics, projections and steering."""
        made = {"accuracy": figures_of.accuracy_figure(self)}
        if self.agreement:
            made["cosine"] = cosine_figure(self.agreement, "Are the two truth directions the same?")
        if any(one.above_chance for one in self.transfer):
            if _crossed(self):
                made["transfer"] = figures_of.transfer_figure(self)
            made["topics"] = figures_of.topics_figure(self)
        if self.points:
            made["projections"] = figures_of.projection_figure(self)
        if self.steering:
            made["steering"] = figures_of.steering_figure(self)
        if self.prices:
            made["price"] = figures_of.price_figure(self)
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
    said += [_label_sentence(result, model) for model in dict.fromkeys(one.model for one in result.labels)]
    said += [
        _steering_sentence(result, place) for place in dict.fromkeys(one.place for one in result.steering)
    ]
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


# -- private --


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


def _label_sentence(result: TruthfulnessResult, model: str) -> str:
    plain, calibrated = (
        next(
            one
            for one in result.labels
            if (one.model, one.statements, one.calibrated) == (model, "all", kind)
        )
        for kind in (False, True)
    )
    name, way = (
        model.capitalize(),
        "" if plain.scored == "single tokens" else ", its answers scored as sequences",
    )
    if plain.above_chance:
        return (
            f"{name}: asked whether a held-out statement is true, it answers {plain.accuracy} right (chance "
            f"{plain.chance:.2f}){way}."
        )
    if calibrated.above_chance:
        return (
            f"{name}: asked whether a held-out statement is true, it answers {plain.accuracy} right (chance "
            f"{plain.chance:.2f}){way}, but {calibrated.accuracy} once its habit of giving one answer is removed "
            "(calibrated accuracy)."
        )
    return (
        f"{name}: asked whether a held-out statement is true — not identified: accuracy at chance ({plain.accuracy}, "
        f"calibrated {calibrated.accuracy}){way}."
    )


def _steering_sentence(result: TruthfulnessResult, place: str) -> str:
    cells = [one for one in result.steering if one.place == place and one.normalisation == "to certainty"]
    parts = [
        f"{one.direction} in {one.model} {one.mean} (random directions {one.control}"
        + ("" if one.above_control else "; not identified: random directions reach as far")
        + ")"
        for one in cells
    ]
    prices = [one for one in result.prices if one.place == place]
    dearest = max(prices, key=lambda one: max(one.adding.kl.value, one.subtracting.kl.value), default=None)
    cost = ""
    if dearest is not None:
        worse = max(dearest.adding.kl, dearest.subtracting.kl, key=lambda kl: kl.value)
        cost = (
            f" On plain text the same edits cost at most {worse} nats a token (random directions of that length "
            f"{dearest.random_kl})."
        )
    return f"Steered at the {place}, the answer moves this share of the way to the other one: {', '.join(parts)}.{cost}"
