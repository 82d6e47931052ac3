"""The tables of a card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steerlab.results import Table, with_rows

if TYPE_CHECKING:
    from steerlab.card.effects import ProbeEffect
    from steerlab.card.result import SteeringCard


def tables(card: SteeringCard) -> list[Table]:
    """Every table that has a row, in reading order."""
    return with_rows(
        _gates(card),
        _doses(card),
        _baselines(card),
        _utility(card),
        _robustness(card),
        _harnesses(card),
        _predictor(card),
        _probes(card),
    )


# -- private, in the order of the page --


def _gates(card: SteeringCard) -> Table:
    return Table.of(
        "gates",
        "Three gates",
        card.gates,
        {
            "gate": "name",
            "passed": "passed",
            "number": "number",
            "held against": "against",
            "what it is": "what",
        },
    )


def _doses(card: SteeringCard) -> Table:
    return Table.of(
        "doses",
        "Dose, effect and price",
        card.effects.doses,
        {
            "times the strength": "dose",
            "effect (nats)": "effect",
            "random directions": "random",
            "beyond all": "identified",
            "moved the wrong way": "wrong_way",
            "of random directions": "random_wrong_way",
            "KL on plain text": "kl",
            "KL, random": "random_kl",
            "loss change": "loss_change",
        },
        note="Effect: change of ln P(towards) - ln P(away), mean over the probes; the interval is clustered by "
        "continuations. Random directions have the same length: mean, least and greatest of their means. KL and loss "
        "in nats a token, every token steered.",
    )


def _baselines(card: SteeringCard) -> Table:
    return Table.of(
        "baselines",
        "Beside asking for it",
        card.effects.baselines,
        {
            "without steering": "name",
            "effect (nats)": "effect",
            "moved the wrong way": "wrong_way",
            "steered less this": "steered_less",
        },
        note=f"The wish: {card.wish}",
    )


def _utility(card: SteeringCard) -> Table:
    return Table.of(
        "utility",
        "Whole benign answers, and facts",
        card.utility.measures,
        {
            "way": lambda one: f"{one.way} times" if one.way[0].isdigit() else one.way,
            "measure": "what",
            "unsteered": "unsteered",
            "so": "value",
            "change": "change",
            "beyond asking": "excess",
            "harm": "harmful",
        },
        note=f"{card.utility.requests} harmless requests, greedy answers of at most {card.utility.new_tokens} tokens. "
        "Changes are paired by request; harm is a change whose interval lies on the bad side of zero. The loss under "
        "the unsteered model is held against that of answers with the wish in the prompt. 'Right answers kept' counts "
        "requests that the unsteered model answers right.",
    )


def _robustness(card: SteeringCard) -> Table:
    return Table.of(
        "robustness",
        "The same probes asked otherwise",
        card.robustness.forms,
        {
            "asked with": "name",
            "prompts": "prompts",
            "effect (nats)": "effect",
            "random directions": "random",
            "holds": "holds",
        },
    )


def _harnesses(card: SteeringCard) -> Table:
    return Table.of(
        "harnesses",
        "Tasks of evaluation harnesses",
        card.scores,
        {
            "suite": "suite",
            "task": "task",
            "metric": "metric",
            "unsteered": "unsteered",
            "steered": "steered",
        },
    )


def _predictor(card: SteeringCard) -> Table:
    rows = [] if card.predictor is None else card.predictor.readings
    return Table.of(
        "predictor",
        "Agreement and separability of training pairs, and the effect of their direction",
        rows,
        {
            "contrast": "contrast",
            "site": "site",
            "pairs": "pairs",
            "agreement": "agreement",
            "separability": "separability",
            "effect (nats a token)": "effect",
        },
        note="One class gap added where it works best, on the test pairs of each packaged contrast.",
    )


def _probes(card: SteeringCard) -> Table:
    return Table.of(
        "probes",
        "Every probe",
        card.effects.probes,
        {
            "probe": "text",
            "towards": "towards",
            "away": "away",
            "unsteered log-odds": "unsteered",
            **{f"effect at {dose.dose:g}×": _at(number) for number, dose in enumerate(card.effects.doses)},
            "asked": "asked",
        },
    )


def _at(number: int) -> Callable[[ProbeEffect], float]:
    return lambda probe: probe.by_dose[number]
