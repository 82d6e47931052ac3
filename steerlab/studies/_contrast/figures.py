"""The figures of the study of contrasts: all at a glance, and three of each, where there is something to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab import plots
from steerlab.plots import Series
from steerlab.readouts.agreement import cosine_figure
from steerlab.readouts.contrasts import file_name

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._contrast.result import ContrastResult, Outcome


def figures(result: ContrastResult) -> dict[str, Figure]:
    """All contrasts at a glance; accuracy, cosine and steering of each, the first one's called by what they show."""
    made: dict[str, Figure] = {"verdicts": _overview(result)}
    for number, one in enumerate(result.contrasts):
        behind = f"_{file_name(one.name)}" if number else ""
        made[f"accuracy{behind}"] = _accuracy(one)
        if one.agreement:
            made[f"cosine{behind}"] = cosine_figure(
                one.agreement, f"{one.name}: are the two directions the same?"
            )
        if one.steering:
            made[f"steering{behind}"] = _steering(one)
    return made


# -- private, in the order of the page --


def _overview(result: ContrastResult) -> Figure:
    return plots.bars(
        [one.name for one in result.contrasts],
        [
            *(
                Series.of(model, [one.own(model).accuracy for one in result.contrasts])
                for model in ("base", "post")
            ),
            Series.of("bag of words", [one.words for one in result.contrasts], role="control"),
        ],
        title="Held-out texts told apart",
        y_title="Held-out accuracy",
        y_range=(0.0, 1.03),
    )


def _accuracy(one: Outcome) -> Figure:
    series = []
    for model in one.best:
        rows = [row for row in one.by_layer if row.model == model]
        series.append(Series.of(model, [row.accuracy for row in rows], x=[row.layer for row in rows]))
    nulls = [row for row in one.by_layer if row.model == "post"]
    at = [row.layer for row in nulls]
    series.append(Series.of("post, shuffled labels", [row.control for row in nulls], x=at, role="control"))
    series.append(Series("bag of words", [one.words.value for _ in at], x=at, role="other"))
    return plots.curves(
        series,
        title=f"{one.name}: from {one.ends[1]} to {one.ends[0]}, read at each layer",
        x_title="Layer",
        y_title="Held-out accuracy",
        y_range=(0.0, 1.03),
    )


def _steering(one: Outcome) -> Figure:
    return plots.bars(
        [f"{cell.direction} direction in {cell.model}" for cell in one.steering],
        [
            Series.of("the direction", [cell.effect for cell in one.steering], role="post"),
            Series.of(
                "random directions, least to greatest",
                [cell.control for cell in one.steering],
                role="control",
            ),
        ],
        title=f"{one.name}: one class gap added",
        y_title=f"Towards {one.ends[0]} (nats a token)",
    )
