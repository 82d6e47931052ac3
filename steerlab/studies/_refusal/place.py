"""Is a low cosine a different direction or a different place? Cosines over layer and position, and projections.

Base and post-trained models are usually read through different templates, at tokens that are not the same. The grid
gives the cosine of their directions at every layer and every token after the instruction, counted from the end, twice:
each model in its own template, and both in one plain template, where the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from steerlab.readouts.agreement import Agreement, agreement_by_layer
from steerlab.readouts.requests import Reading
from steerlab.record import Record
from steerlab.statistics import Number

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
        agreements = agreement_by_layer(
            base.states[:, :, position],
            post.states[:, :, position],
            base.labels,
            clusters=np.arange(rows),
            strata=np.zeros(rows, dtype=np.int64),
            layers=layers,
            seed=seed,
        )
        cells += [Cell(template=template, position=position, agreement=agreement) for agreement in agreements]
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
