"""The figures of the truthfulness study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.plots import Series, theme
from steerlab.readouts.agreement import cosine_figure
from steerlab.statistics import Estimate
from steerlab.studies._truthfulness.probes import AS_TRAINED, OWN

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._truthfulness.result import TruthfulnessResult


def figures(result: TruthfulnessResult) -> dict[str, Figure]:
    """Every figure that has something to show, in reading order."""
    made = {"accuracy": _accuracy(result)}
    if result.agreement:
        made["cosine"] = cosine_figure(result.agreement, "Are the two truth directions the same?")
    if any(cell.above_chance for cell in result.transfer):
        if result.crossed:
            made["transfer"] = _transfer(result)
        made["topics"] = _topics(result)
    if result.points:
        made["projections"] = _projection(result)
    if result.steering:
        made["steering"] = _steering(result)
    if result.prices:
        made["price"] = _price(result)
    return made


# -- private, in the order of the page --


def _accuracy(result: TruthfulnessResult) -> Figure:
    series = []
    for model in result.chosen:
        rows = [row for row in result.by_layer if row.probe == model]
        series.append(Series.of(model, [row.accuracy for row in rows], x=[row.layers[0] for row in rows]))
    nulls = [row for row in result.by_layer if row.probe == "post"]
    series.append(
        Series.of(
            "shuffled labels",
            [null.control for null in nulls],
            x=[null.layers[0] for null in nulls],
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


def _transfer(result: TruthfulnessResult) -> Figure:
    """The 2x2 with held-out topics centred by their own mean, and the probe exactly as trained beside it."""
    models = list(result.chosen)
    ways = {"own mean": OWN, "as trained": AS_TRAINED}
    known = {(cell.probe, cell.states) for cell in result.transfer}
    cells = [
        [
            result.cell(probe, states, centred_by=way).accuracy if (probe, states) in known else None
            for way in ways.values()
            for states in models
        ]
        for probe in models
    ]

    def part(name: str) -> list[list[float]]:
        return [[np.nan if cell is None else getattr(cell, name) for cell in row] for row in cells]

    return plots.heatmap(
        part("value"),
        x=[f"{states}, {name}" for name in ways for states in models],
        y=[f"probe of {model}" for model in models],
        low=part("low"),
        high=part("high"),
        title="Does one model's probe read the other model?",
        x_title="States of (held-out topics centred by their own mean, or by the probe's training mean)",
        colour_title="Accuracy",
        limits=(0.5, 1.0),
    )


def _topics(result: TruthfulnessResult) -> Figure:
    """Every held-out topic with every probe."""
    pairs = list(dict.fromkeys((cell.probe, cell.states) for cell in result.transfer))
    topics = result.setting.topics
    return plots.heatmap(
        [[result.cell(*pair, topic=topic).accuracy.value for pair in pairs] for topic in topics],
        x=[f"{probe} on {states}" for probe, states in pairs],
        y=list(topics),
        title="Held-out topics, one by one",
        x_title="Probe of one model on states of the other",
        colour_title="Accuracy",
        limits=(0.5, 1.0),
    )


def _projection(result: TruthfulnessResult) -> Figure:
    """True and false by colour, negated by symbol."""
    models = list(result.points[0].places)
    kinds = [
        (true, negated)
        for true in (True, False)
        for negated in (False, True)
        if any((point.true, point.negated) == (true, negated) for point in result.points)
    ]
    both = any(negated for _, negated in kinds)

    def cloud(true: bool, negated: bool) -> Series:
        members = [point for point in result.points if (point.true, point.negated) == (true, negated)]
        name = ("true" if true else "false") + (", negated" if negated else ", affirmed" if both else "")
        return Series(
            name,
            [point.places[models[-1]] for point in members],
            x=[point.places[models[0]] for point in members],
            labels=[point.topic for point in members],
            role="other",
        )

    title = "Held-out statements along the two truth directions (class gaps)"
    if len(models) == 1:
        return plots.histogram(
            [cloud(*kind) for kind in kinds],
            title=title,
            x_title=f"Place in {models[0]}",
            y_title="Statements",
        )
    figure = plots.scatter(
        [cloud(*kind) for kind in kinds],
        title=title,
        x_title="Place along the base direction, in base",
        y_title="Place along the post direction, in post",
        diagonal=True,
    )
    for trace, (true, negated) in zip(figure.data[-len(kinds) :], kinds, strict=True):
        colour = theme.OTHERS[0] if true else theme.OTHERS[1]
        trace.marker.update(color=colour, symbol="x" if negated else "circle", size=6, opacity=0.7)
    for line in (figure.add_vline, figure.add_hline):
        line(0, line={"color": theme.CONTROL, "width": 1, "dash": "dot"})
    return figure


def _steering(result: TruthfulnessResult) -> Figure:
    """Every direction in every model at every place, beside random directions."""
    cells = {
        (cell.place, cell.model, cell.direction): cell
        for cell in result.steering
        if cell.normalisation == "to certainty"
    }
    columns = list(dict.fromkeys((place, model) for place, model, _ in cells))
    series = [
        Series.of(
            f"{source} direction",
            [
                _or_nothing(cells[*column, source].mean if (*column, source) in cells else None)
                for column in columns
            ],
        )
        for source in dict.fromkeys(source for _, _, source in cells)
    ]
    nulls = [next(cell.control for key, cell in cells.items() if key[:2] == column) for column in columns]
    series.append(Series.of("random directions", nulls))
    return plots.bars(
        [f"{model}, {place}" for place, model in columns],
        series,
        title="How far a truth direction moves the answer (1: all the way)",
        y_title="Share of the way to the other answer",
    )


def _price(result: TruthfulnessResult) -> Figure:
    """KL on plain text of every cell, the dearer of adding and subtracting."""
    cells = {(price.place, price.model, price.direction): price for price in result.prices}
    columns = list(dict.fromkeys((place, model) for place, model, _ in cells))

    def dearer(key: tuple[str, str, str]) -> Estimate:
        if key not in cells:
            return _or_nothing(None)
        return max(cells[key].adding.kl, cells[key].subtracting.kl, key=lambda kl: kl.value)

    series = [
        Series.of(f"{source} direction", [dearer((*column, source)) for column in columns])
        for source in dict.fromkeys(source for _, _, source in cells)
    ]
    nulls = [next(price.random_kl for key, price in cells.items() if key[:2] == column) for column in columns]
    series.append(Series.of("random directions", nulls))
    return plots.bars(
        [f"{model}, {place}" for place, model in columns],
        series,
        title="What the same doses cost on plain text, every token steered",
        y_title="KL from the unsteered model (nats a token)",
    )


def _or_nothing(estimate: Estimate | None) -> Estimate:
    return Estimate(value=float("nan")) if estimate is None else estimate
