"""The figures of a card: dose and effect, effect and price, every probe, benign answers, other forms, the predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab import plots
from steerlab.card.sentences import dose_name
from steerlab.plots import Series

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.card.result import SteeringCard

CAPTIONS = {
    "dose": "Change of the log-odds of the probes by dose, beside random directions of the same length (least to "
    "greatest) and beside asking for it in the prompt.",
    "price": "Effect and price of each dose: KL from the unsteered law on plain text.",
    "probes": "Every probe at the strength given, named by what it is steered towards, from the one that moves least; "
    "below zero it moves the wrong way.",
    "harm": "Whole benign answers: changes against the unsteered answers, in points.",
    "robustness": "The same probes asked otherwise, beside random directions.",
    "predictor": "Agreement of training pairs and the effect of their direction, a point a packaged contrast.",
}


def figures(card: SteeringCard) -> dict[str, Figure]:
    """By key, in reading order."""
    made = {
        "dose": _dose(card),
        "price": _price(card),
        "probes": _probes(card),
        "harm": _harm(card),
        "robustness": _robustness(card),
    }
    if card.predictor is not None:
        made["predictor"] = _predictor(card)
    return made


# -- private, in the order of the page --


def _dose(card: SteeringCard) -> Figure:
    doses = card.effects.doses
    series = [
        Series.of("steered", [one.effect for one in doses], role="post"),
        Series.of("random directions", [one.random for one in doses], role="control"),
        *(
            Series.of(one.name, [one.effect for _ in doses], role="base" if one is card.asked else "other")
            for one in card.effects.baselines
        ),
    ]
    return plots.curves(
        series,
        title=f"Towards {card.task}: dose and effect",
        x_title="times the strength given",
        x_names=[dose_name(one) for one in doses],
        y_title="change of log-odds (nats)",
        zero_line=True,
    )


def _price(card: SteeringCard) -> Figure:
    doses = card.effects.doses
    return plots.curves(
        [
            Series.of(
                "steered",
                [one.effect for one in doses],
                x=[one.kl.value for one in doses],
                labels=[dose_name(one) for one in doses],
                role="post",
            )
        ],
        title="Effect and price",
        x_title="KL on plain text (nats a token)",
        y_title="change of log-odds (nats)",
        zero_line=True,
    )


def _probes(card: SteeringCard) -> Figure:
    at = next(number for number, one in enumerate(card.effects.doses) if one.dose == 1)
    ordered = sorted(card.effects.probes, key=lambda one: one.by_dose[at])
    return plots.bars(
        [one.towards.strip() for one in ordered],
        [
            Series("steered", [one.by_dose[at] for one in ordered], role="post"),
            Series("asked in the prompt", [one.asked for one in ordered], role="base"),
        ],
        title="Every probe",
        y_title="change of log-odds (nats)",
    )


def _harm(card: SteeringCard) -> Figure:
    shares = [one for one in card.utility.measures if one.bad and not one.is_number]
    kinds = list(dict.fromkeys(one.what for one in shares))
    ways = list(dict.fromkeys(one.way for one in shares))
    by = {(one.way, one.what): one.change.transform(lambda share: 100 * share) for one in shares}
    return plots.bars(
        kinds,
        [
            Series.of(
                f"{way}×" if way[0].isdigit() else way,
                [by[way, kind] for kind in kinds],
                role="other" if way[0].isdigit() else "base",
            )
            for way in ways
        ],
        title="What happens to benign answers",
        y_title="change (points)",
    )


def _robustness(card: SteeringCard) -> Figure:
    forms = card.robustness.forms
    return plots.bars(
        ["as given", *(one.name for one in forms)],
        [
            Series.of("steered", [card.effects.at().effect, *(one.effect for one in forms)], role="post"),
            Series.of(
                "random directions",
                [card.effects.at().random, *(one.random for one in forms)],
                role="control",
            ),
        ],
        title="The same probes asked otherwise",
        y_title="change of log-odds (nats)",
    )


def _predictor(card: SteeringCard) -> Figure:
    assert card.predictor is not None
    known = [one for one in card.predictor.readings if one.effect is not None]
    found = card.predictor.correlations[0]
    said = f"{found.value:.2f}" + ("" if found.established else ", not established")
    return plots.scatter(
        [
            Series.of(
                "packaged contrasts",
                [one.effect for one in known if one.effect],
                x=[one.agreement for one in known],
                labels=[one.contrast for one in known],
            )
        ],
        title=f"Does agreement predict the effect? Rank correlation {said}",
        x_title="agreement of the training pairs",
        y_title="effect (nats a token)",
    )
