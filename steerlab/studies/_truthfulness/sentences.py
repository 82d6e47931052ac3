"""The truthfulness study in plain words, and its main number."""

from __future__ import annotations

from steerlab.readouts.agreement import Agreement
from steerlab.results import Headline
from steerlab.statistics import Estimate, percent
from steerlab.studies._truthfulness.reasons import reason
from steerlab.studies._truthfulness.result import TruthfulnessResult


def sentences(result: TruthfulnessResult) -> list[str]:
    """The study in plain words."""
    made = [_probe_sentence(result, model) for model in result.chosen]
    if result.agreement:
        made.append(_cosine_sentence(result))
    if result.crossed and result.own("base").above_chance and result.own("post").above_chance:
        crossed, own = result.cell("base", "post"), result.own("post")
        made.append(
            f"Carried over: the base model's probe labels the post-trained model's held-out states right in "
            f"{crossed.accuracy:%} of cases, the post-trained model's own probe in {own.accuracy:%}."
        )
    made += [_label_sentence(result, model) for model in dict.fromkeys(row.model for row in result.labels)]
    made += [
        _steering_sentence(result, place) for place in dict.fromkeys(cell.place for cell in result.steering)
    ]
    return made + list(result.missing.values())


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
    return Headline(
        what=what, value=own.accuracy, control=own.control, control_name="shuffled labels", share=True
    )


# -- private --


def _agreement_at(result: TruthfulnessResult) -> Agreement:
    """The row of the layer chosen in the post-trained model."""
    return next(row for row in result.agreement if row.layer == result.layer("post"))


def _probe_sentence(result: TruthfulnessResult, model: str) -> str:
    own, name = result.own(model), model.capitalize()
    what = "topics" if result.setting.by_topic else "statements"
    if not own.above_chance:
        return (
            f"{name}: truth direction not identified: accuracy at chance ({own.accuracy:%} on held-out {what}, with "
            f"shuffled labels {own.control:%}).{_reason_sentence(result, model)}"
        )
    return (
        f"{name}: a direction found on other {what} tells true from false statements it never saw in {own.accuracy:%} "
        f"of cases (layer {result.layer(model)}; with shuffled labels {own.control:%})."
    )


def _reason_sentence(result: TruthfulnessResult, model: str) -> str:
    """Why, where it was asked; a result of before does not say."""
    tried = [row for row in result.reasons if row.probe == model]
    return f" Reason: {reason(tried)}." if tried else ""


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
            row
            for row in result.labels
            if (row.model, row.statements, row.calibrated) == (model, "all", kind)
        )
        for kind in (False, True)
    )
    name, way = (
        model.capitalize(),
        "" if plain.scored == "single tokens" else ", its answers scored as sequences",
    )
    if plain.above_chance:
        return (
            f"{name}: asked whether a held-out statement is true, it is right in {plain.accuracy:%} of cases (chance "
            f"{percent(plain.chance)}){way}."
        )
    if calibrated.above_chance:
        return (
            f"{name}: asked whether a held-out statement is true, it is right in {plain.accuracy:%} of cases (chance "
            f"{percent(plain.chance)}){way}, but in {calibrated.accuracy:%} once its habit of giving one answer is "
            "removed (calibrated accuracy)."
        )
    return (
        f"{name}: asked whether a held-out statement is true — not identified: accuracy at chance ({plain.accuracy:%}, "
        f"calibrated {calibrated.accuracy:%}){way}."
    )


def _steering_sentence(result: TruthfulnessResult, place: str) -> str:
    cells = [cell for cell in result.steering if cell.place == place and cell.normalisation == "to certainty"]
    parts = [
        f"{cell.direction} in {cell.model} {cell.mean:%} (random directions {cell.control:%}"
        + ("" if cell.above_control else "; not identified: random directions reach as far")
        + ")"
        for cell in cells
    ]
    prices = [price for price in result.prices if price.place == place]
    dearest = max(
        prices, key=lambda price: max(price.adding.kl.value, price.subtracting.kl.value), default=None
    )
    cost = ""
    if dearest is not None:
        worse = max(dearest.adding.kl, dearest.subtracting.kl, key=lambda kl: kl.value)
        cost = (
            f" On plain text the same edits cost at most {worse} nats a token (random directions of that length "
            f"{dearest.random_kl})."
        )
    return (
        f"Steering at the {place} moves the answer towards the other word. Share of the distance, direction in model: "
        f"{', '.join(parts)}.{cost}"
    )
