"""The tables of the study of stages."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from steerlab.results import Table, with_rows

if TYPE_CHECKING:
    from steerlab.statistics import Estimate
    from steerlab.studies._stages.changes import Change, Trajectory
    from steerlab.studies._stages.result import StagesResult


def tables(result: StagesResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    return with_rows(_changes(result), _values(result), _controls(result), _missing(result))


# -- private, in the order of the page --


def _changes(result: StagesResult) -> Table:
    rows = [(one, change) for one in result.trajectories for change in one.changes]

    def of(name: str) -> Any:
        return lambda row: getattr(row[1], name)

    return Table.of(
        "changes",
        "What each step changed",
        rows,
        {
            "study": lambda row: row[0].quantity.study,
            "quantity": lambda row: row[0].quantity.name,
            "step": of("step"),
            "change": of("value"),
            "unit": lambda row: _unit(row[0]),
            "in units of noise": of("in_noise"),
            "control contrasts": lambda row: row[1].controls if row[1].controls.n else None,
            "p of no change": of("p_adjusted"),
            "p of a control's change": of("p_over_adjusted"),
            "verdict": lambda row: _verdict(row[1]),
        },
        note="Paired by prompt, intervals over prompts. p adjusted by Holm over all changes of a study. Control "
        "contrasts: mean of what training did not aim at, least to greatest.",
    )


def _values(result: StagesResult) -> Table:
    return Table.of(
        "values",
        "Every quantity at every stage",
        result.trajectories,
        {
            "study": "quantity.study",
            "quantity": "quantity.name",
            "unit": _unit,
            **{label: _at(number) for number, label in enumerate(result.labels)},
        },
    )


def _controls(result: StagesResult) -> Table:
    known = {one.quantity.measure: one for one in result.trajectories if one.controls}
    return Table.of(
        "controls",
        "Contrasts that training did not aim at, at every stage",
        known.values(),
        {
            "measure": "quantity.measure",
            **{label: _control_at(number) for number, label in enumerate(result.labels)},
        },
        note=f"Mean, least and greatest of {', '.join(result.controls)}." if result.controls else "",
    )


def _missing(result: StagesResult) -> Table:
    rows = [(label, study, why) for label, found in result.missing.items() for study, why in found.items()]
    return Table.of(
        "missing",
        "What could not be measured",
        rows,
        {"stage": itemgetter(0), "study": itemgetter(1), "reason": itemgetter(2)},
    )


def _at(number: int) -> Callable[[Trajectory], Estimate]:
    return lambda one: one.at[number]


def _control_at(number: int) -> Callable[[Trajectory], Estimate]:
    return lambda one: one.controls[number]


def _unit(one: Trajectory) -> str:
    return "share" if one.quantity.share else one.quantity.unit


def _verdict(change: Change) -> str:
    return f"{change.verdict}: {change.reason}" if change.reason else change.verdict
