"""The transfer study in plain words, and its main number."""

from __future__ import annotations

from typing import Literal

from steerlab.results import Headline
from steerlab.statistics import percent
from steerlab.studies._transfer.reasons import sentence
from steerlab.studies._transfer.result import UNLOCK, Condition, Sharpening, TransferResult


def sentences(result: TransferResult) -> list[str]:
    """The outcome, what it has to beat, its ceilings, the map, and what could not be run."""
    own, locked = result.condition(UNLOCK), result.condition("locked")
    made = [
        f"{result.setting.target} writes in the unlocked manner on {own.behaves:%} of test questions when steered with "
        f"the direction of {result.setting.source[1]} (locked {locked.behaves:%}), and is right on {own.right:%} "
        f"(locked {locked.right:%}).",
        _against_controls(result, "behaves", "the manner"),
        _against_controls(result, "right", "right answers"),
        sentence(result, "behaves"),
        *([sentence(result, "right")] if any(row.right.value > 0 for row in result.conditions) else []),
    ]
    if ceilings := [row for row in result.conditions if row.role == "ceiling"]:
        made.append(f"Ceilings (manner and right answers): {_both(ceilings)}.")
    if other := [row for row in result.conditions if row.role == "specificity"]:
        made.append(
            "The source's directions of other layers, carried by the same map (manner and right answers): "
            f"{_both(other)}. Where that is as much, the change points the same way through the depth."
        )
    if forced := [row for row in result.conditions if row.role == "forced"]:
        made.append(
            "The unsteered target given only the first tokens of the steered answers (manner and right answers): "
            f"{_both(forced)}. Where that is as much, the direction does no more than choose them."
        )
    made.append(result.report.sentence)
    if result.sharpening is not None:
        made.append(_sharpened(result.sharpening))
    return made + list(result.missing.values())


def headline(result: TransferResult) -> Headline:
    """Manner under UNLOCK beside the strongest control."""
    strongest = max(result.controls, key=lambda row: row.behaves.value)
    return Headline(
        what=f"{result.setting.target} unlocked from {result.setting.source[0]}: answers in the unlocked manner",
        value=result.condition(UNLOCK).behaves,
        control=strongest.behaves,
        control_name=strongest.name,
        share=True,
    )


# -- private --


def _against_controls(result: TransferResult, outcome: Literal["behaves", "right"], what: str) -> str:
    strongest = max(result.controls, key=lambda row: getattr(row, outcome).value)
    furthest = max((draw for row in result.controls for draw in row.draws), default=float("nan"))
    verdict = "more than" if result.beats_controls(outcome) else "not more than"
    random = f"; the furthest random direction {percent(furthest)}" if outcome == "behaves" else ""
    return (
        f"For {what} that is {verdict} every control does (strongest: {strongest.name}, "
        f"{getattr(strongest, outcome):%}{random})."
    )


def _both(rows: list[Condition]) -> str:
    return "; ".join(f"{row.name} {row.behaves:%} and {row.right:%}" for row in rows)


def _sharpened(samples: Sharpening) -> str:
    reach = "within" if samples.steered.low <= samples.at_k.high else "beyond"
    return (
        f"The locked target has a right answer among {samples.k} samples in {samples.at_k:%} of questions, so what the "
        f"steered one gets right ({samples.steered:%}) is {reach} its own reach."
    )
