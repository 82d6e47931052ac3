"""The figures of the truthfulness study, and the cosine figure that the refusal study shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.plots.theme import Role
from steerlab.studies._contrast import Agreement

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._truthfulness_result import TruthfulnessResult


def accuracy_figure(result: TruthfulnessResult) -> Figure:
    series = []
    for model in result.chosen:
        rows = [one for one in result.by_layer if one.probe == model]
        series.append(Series.of(model, [one.accuracy for one in rows], x=[one.layers[0] for one in rows]))
    nulls = [one for one in result.by_layer if one.probe == "post"]
    series.append(
        Series.of(
            "shuffled labels",
            [one.control for one in nulls],
            x=[one.layers[0] for one in nulls],
            role="control",
        )
    )
    return plots.curves(
        series,
        title="Truth read from states of topics the probe never saw",
        x_title="Layer",
        y_title="Accuracy",
        y_range=(0, 1.03),
    )


def cosine_figure(rows: Sequence[Agreement], title: str) -> Figure:
    """Cosines by layer with the ceiling and both nulls."""
    x = [one.layer for one in rows]

    def line(name: str, field: str, role: Role | None) -> Series:
        return Series.of(name, [getattr(one, field) for one in rows], x=x, role=role)

    random = [one.random for one in rows]
    return plots.curves(
        [
            line("base and post", "cosine", "other"),
            line("base and post, different halves", "crossed", "other"),
            line("ceiling: one model, two halves", "ceiling", "other"),
            line("shuffled labels", "shuffled", "control"),
            Series(
                "random directions", np.zeros(len(x)), [-one for one in random], random, x=x, role="control"
            ),
        ],
        title=title,
        x_title="Layer",
        y_title="Cosine",
        y_range=(-1.03, 1.03),
    )


def transfer_figure(result: TruthfulnessResult) -> Figure:
    models = list(result.chosen)
    cells = [[result.cell(probe, states).accuracy for states in models] for probe in models]
    return plots.heatmap(
        [[one.value for one in row] for row in cells],
        x=[f"states of {model}" for model in models],
        y=[f"probe of {model}" for model in models],
        low=[[one.low for one in row] for row in cells],
        high=[[one.high for one in row] for row in cells],
        title="Does one model's probe read the other model?",
        colour_title="Accuracy",
        limits=(0.5, 1.0),
    )


def projection_figure(result: TruthfulnessResult) -> Figure:
    models = list(result.points[0].places)

    def cloud(name: str, true: bool) -> Series:
        members = [point for point in result.points if point.true == true]
        y = [point.places[models[-1]] for point in members]
        x = [point.places[models[0]] for point in members]
        return Series(name, y, x=x, labels=[point.topic for point in members], role="other")

    title = "Held-out statements along the two truth directions (class gaps)"
    if len(models) == 1:
        histograms = [cloud("true", True), cloud("false", False)]
        return plots.histogram(histograms, title=title, x_title=f"Place in {models[0]}", y_title="Statements")
    return plots.scatter(
        [cloud("true", True), cloud("false", False)],
        title=title,
        x_title="Place along the base direction, base model",
        y_title="Place along the post direction, post-trained model",
    )


def steering_figure(result: TruthfulnessResult) -> Figure:
    models = list(dict.fromkeys(cell.model for cell in result.steering))
    sources = list(dict.fromkeys(cell.direction for cell in result.steering))
    cells = {
        (cell.direction, cell.model): cell for cell in result.steering if cell.normalisation == "to certainty"
    }
    series = [
        Series(
            f"{source} direction",
            [cells[source, model].mean.value if (source, model) in cells else np.nan for model in models],
            [cells[source, model].mean.low if (source, model) in cells else np.nan for model in models],
            [cells[source, model].mean.high if (source, model) in cells else np.nan for model in models],
        )
        for source in sources
    ]
    nulls = [next(cell.control for cell in cells.values() if cell.model == model) for model in models]
    series.append(Series.of("random directions", nulls))
    return plots.bars(
        [f"in {model}" for model in models],
        series,
        title="How far a truth direction moves the answer (1: all the way)",
        y_title="Share of the way to the other answer",
    )
