"""The figures of the refusal study: rates, effects, projections, prices, cosines by layer and position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.plots import Series
from steerlab.readouts.agreement import cosine_figure
from steerlab.statistics import Estimate
from steerlab.studies._refusal.place import TEMPLATES, Cell, Projection
from steerlab.studies._refusal.price import InterventionPrice

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._refusal.result import Outcome, RefusalResult


def figures(result: RefusalResult) -> dict[str, Figure]:
    """Every figure that has something to show, in reading order."""
    made = {"rates": _rates(result)}
    if len({outcome.direction for outcome in result.outcomes} & {"base", "post"}) == 2:
        made["effects"] = _effects(result)
    made |= {f"selection_{model}": choice.plot() for model, choice in result.choices.items() if choice.scored}
    if result.points:
        made["projections"] = _projections(result.points, result.setting.kinds)
    if any(price.intervention != "none" for price in result.prices):
        made["side_effects"] = _price(result.prices)
    made |= {key: cosine_figure(rows, title) for key, title, rows in result.cosines() if rows}
    for template in TEMPLATES:
        if cells := result.cells(template):
            made[f"grid_{template}"] = _grid(template, cells, _marked(result, template))
    return made


# -- private, in the order of the page --


def _rates(result: RefusalResult) -> Figure:
    kinds = ("harmful", "harmless")
    conditions = [
        ("none", "none"),
        *((kind, name) for kind in ("ablation", "addition") for name in ("base", "post")),
        ("ablation", "random"),
        ("addition", "random"),
        ("ablation", "post, as published"),
    ]
    names = {("none", "none"): "unsteered"}
    names |= {(kind, name): f"{name} direction, {kind}" for kind, name in conditions[1:]}
    names["ablation", "post, as published"] = "post direction, ablation as published"
    groups = [(model, kind) for model in result.setting.models for kind in kinds]
    rows: dict[tuple[str, ...], Estimate] = {
        (outcome.model, outcome.prompts, outcome.intervention, outcome.direction): outcome.refused
        for outcome in reversed(result.outcomes)
    }
    nothing = Estimate(value=float("nan"))
    bars = {
        condition: [rows.get((model, kind, *condition), nothing) for model, kind in groups]
        for condition in conditions
    }
    return plots.bars(
        [f"{model}, {result.setting.kinds[kinds.index(kind)]}" for model, kind in groups],
        [
            Series.of(names[condition], shares)
            for condition, shares in bars.items()
            if np.isfinite([share.value for share in shares]).any()
        ],
        title="Who refuses what, and what a direction does about it",
        y_title="Share refused",
        y_range=(0, 1.03),
    )


def _effects(result: RefusalResult) -> Figure:
    models = list(result.setting.models)
    rows = [(kind, name) for kind in ("ablation", "addition") for name in (*models, "random")]

    def cell(outcome: Outcome | None, end: str) -> float:
        return float(getattr(outcome.effect, end)) if outcome and outcome.effect else float("nan")

    def cells(end: str) -> list[list[float]]:
        return [[cell(result.outcome(model, kind, name), end) for model in models] for kind, name in rows]

    return plots.heatmap(
        cells("value"),
        x=[f"in {model}" for model in models],
        y=[f"{kind}: {name} direction" for kind, name in rows],
        low=cells("low"),
        high=cells("high"),
        title="Change of refusal: ablation on harmful, addition on harmless prompts",
        colour_title="Change",
        diverging=True,
        limits=(-1.0, 1.0),
    )


def _projections(points: Sequence[Projection], kinds: tuple[str, str]) -> Figure:
    """Test prompts along both directions, or along one as a histogram."""
    models = list(points[0].places)

    def cloud(harmful: bool) -> Series:
        members = [point for point in points if point.harmful == harmful]
        return Series(
            kinds[0] if harmful else kinds[1],
            [point.places[models[-1]] for point in members],
            x=[point.places[models[0]] for point in members],
            role="other",
        )

    title = "Test prompts along the refusal directions (class gaps)"
    if len(models) == 1:
        return plots.histogram(
            [cloud(True), cloud(False)], title=title, x_title=f"Place in {models[0]}", y_title="Prompts"
        )
    return plots.scatter(
        [cloud(True), cloud(False)],
        title=title,
        x_title="Place along the base direction, in base",
        y_title="Place along the post direction, in post",
    )


def _price(prices: Sequence[InterventionPrice]) -> Figure:
    """KL on plain text and on harmless prompts, own direction beside random ones."""
    rows = [price for price in prices if price.intervention != "none"]
    places = list(dict.fromkeys((price.model, price.intervention) for price in rows))

    def series(direction: str, field: str, name: str) -> Series:
        by_place = {
            (price.model, price.intervention): getattr(price, field)
            for price in rows
            if price.direction == direction
        }
        nothing = Estimate(value=float("nan"))
        return Series.of(name, [by_place.get(place) or nothing for place in places])

    return plots.bars(
        [f"{kind} in {model}" for model, kind in places],
        [
            series("own", "kl", "own direction, plain text"),
            series("random", "kl", "random directions, plain text"),
            series("own", "prompt_kl", "own direction, harmless prompts"),
            series("random", "prompt_kl", "random directions, harmless prompts"),
        ],
        title="What steering refusal costs elsewhere",
        y_title="KL from the unsteered law (nats a token)",
    )


def _grid(template: str, cells: Sequence[Cell], marked: tuple[int, int] | None) -> Figure:
    """Cosines beside their ceiling; `marked` (layer, position) is the post-trained model's chosen place."""
    positions = sorted({cell.position for cell in cells})
    layers = sorted({cell.agreement.layer for cell in cells})

    def matrix(field: str) -> Float[np.ndarray, "position layer"]:
        values = np.full((len(positions), len(layers)), np.nan)
        for cell in cells:
            place = positions.index(cell.position), layers.index(cell.agreement.layer)
            values[place] = getattr(cell.agreement, field).value
        return values

    known = marked is not None and marked[0] in layers and marked[1] in positions
    return plots.heatmaps(
        {
            "base and post": matrix("cosine"),
            "across halves": matrix("crossed"),
            "ceiling: one model, two halves": matrix("ceiling"),
        },
        x=layers,
        y=positions,
        marked=(positions.index(marked[1]), layers.index(marked[0])) if known and marked else None,
        title=f"Cosine of the refusal directions, {TEMPLATES[template]}",
        x_title="Layer",
        y_title="Position from the end",
        diverging=True,
        limits=(-1.0, 1.0),
    )


def _marked(result: RefusalResult, template: str) -> tuple[int, int] | None:
    """Layer and position of the post-trained model's chosen place, which is one of its own template."""
    if template != "own" or not result.choices:
        return None
    place = result.choices["post"].chosen
    return place.layer, place.position
