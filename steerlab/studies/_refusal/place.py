"""Is a low cosine a different direction or a different place? Cosines over layer and position, and projections.

Base and post-trained models are usually read through different templates, at tokens that are not the same. The grid
gives the cosine of their directions at every layer and every token after the instruction, counted from the end, twice:
each model in its own template, and both in one plain template, where the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.plots import Series
from steerlab.readouts.agreement import Agreement, agreement_by_layer
from steerlab.readouts.requests import Reading
from steerlab.record import Record
from steerlab.results import Table
from steerlab.statistics import Estimate, Number, bootstrap_mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TEMPLATES = {"own": "each model in its own template", "plain": "both models in the plain template"}


class Cell(Record):
    """The two directions at one layer and position (from the prompt's end), in one kind of template."""

    template: Literal["own", "plain"]
    position: int
    agreement: Agreement


class Projection(Record):
    """Where a test prompt lies along each model's direction, in class gaps from the middle of the training means."""

    harmful: bool
    places: dict[str, Number]


def grid(
    template: Literal["own", "plain"], readings: Mapping[str, Reading], *, seed: int
) -> tuple[Cell, ...]:
    """Cells at every layer and every position that both models have, counted from the end."""
    base, post = readings["base"], readings["post"]
    shared = min(base.n_positions, post.n_positions)
    layers, rows = range(len(base.states)), base.states.shape[1]
    cells: list[Cell] = []
    for position in range(-shared, 0):
        found = agreement_by_layer(
            base.states[:, :, position],
            post.states[:, :, position],
            base.labels,
            clusters=np.arange(rows),
            strata=np.zeros(rows, dtype=np.int64),
            layers=layers,
            seed=seed,
        )
        cells += [Cell(template=template, position=position, agreement=one) for one in found]
    return tuple(cells)


def projections(
    along: Mapping[str, Float[np.ndarray, " prompt"]], harmful: Sequence[bool]
) -> tuple[Projection, ...]:
    """The same prompts along each model's direction."""
    return tuple(
        Projection(
            harmful=bool(kind), places={name: round(float(values[row]), 4) for name, values in along.items()}
        )
        for row, kind in enumerate(harmful)
    )


def grid_table(template: str, cells: Sequence[Cell]) -> Table:
    """Every cell with its controls."""
    columns = ["position", "layer", "cosine", "across halves", "ceiling (same model)", "shuffled labels"]
    return Table(
        key=f"grid_{template}",
        title=f"Cosine of the two refusal directions by layer and position, {TEMPLATES[template]}",
        columns=[*columns, "random below"],
        rows=[
            [one.position, at.layer, at.cosine, at.crossed, at.ceiling, at.shuffled, at.random]
            for one in cells
            for at in [one.agreement]
        ],
        note="Position -1 is the prompt's last token; where templates differ in length the shared positions from the "
        "end are compared. Across halves: base found on one half of the prompts, post on the other. Ceiling: one model "
        "with itself across the same halves.",
    )


def projection_table(
    points: Sequence[Projection],
    kinds: tuple[str, str],
    apart: Callable[[str], Estimate | None],
    seed: int,
) -> Table:
    """Mean place of each kind along each model's direction, and how well it tells them apart."""
    models = list(points[0].places) if points else []

    def mean(model: str, harmful: bool) -> Estimate:
        return bootstrap_mean([one.places[model] for one in points if one.harmful == harmful], seed=seed)

    return Table(
        key="projections",
        title="Test prompts along each model's own direction",
        columns=["model", *kinds, "AUROC"],
        rows=[[model, mean(model, True), mean(model, False), apart(model)] for model in models],
        note="Mean place in class gaps from the middle of the training means: 0.5 and -0.5 are the training means.",
    )


def grid_figure(template: str, cells: Sequence[Cell], marked: tuple[int, int] | None) -> Figure:
    """Cosines beside their ceiling; `marked` (layer, position) is the post-trained model's chosen place."""
    positions = sorted({one.position for one in cells})
    layers = sorted({one.agreement.layer for one in cells})

    def matrix(field: str) -> Float[np.ndarray, "position layer"]:
        found = np.full((len(positions), len(layers)), np.nan)
        for one in cells:
            place = positions.index(one.position), layers.index(one.agreement.layer)
            found[place] = getattr(one.agreement, field).value
        return found

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


def projection_figure(points: Sequence[Projection], kinds: tuple[str, str]) -> Figure:
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
        x_title="Place along the base direction, base model",
        y_title="Place along the post direction, post-trained model",
    )
