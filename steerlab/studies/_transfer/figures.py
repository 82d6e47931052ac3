"""The figures of the transfer study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.plots import Series
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._transfer.result import TransferResult

_DIAGNOSTICS = {
    "R² of differences": "r2_diff",
    "the same, shuffled pairs": "r2_shuffled",
    "split half": "split_half",
    "cosine with native": "cos_native",
    "energy of the direction read": "energy_in",
}


def figures(result: TransferResult) -> dict[str, Figure]:
    """Outcomes by condition, the rank × samples map, the map's diagnostics by layer, the strength curve."""
    made = {"conditions": _conditions(result)}
    made |= {"sweep": _sweep(result)} if result.sweep else {}
    made["alignment"] = _alignment(result)
    made |= {"strength": _strength(result)} if len(result.curve) > 1 else {}
    return made


# -- private, in the order of the page --


def _conditions(result: TransferResult) -> Figure:
    rows = result.conditions
    return plots.bars(
        [row.name for row in rows],
        [
            Series.of("in the unlocked manner", [row.behaves for row in rows], role="post"),
            Series.of("right", [row.right for row in rows], role="base"),
        ],
        title=f"What {result.setting.target} writes on test questions",
        y_title="Share of answers",
        y_range=(0.0, 1.05),
    )


def _sweep(result: TransferResult) -> Figure:
    ranks = sorted({cell.rank for cell in result.sweep})
    questions = sorted({cell.rows for cell in result.sweep})
    cells = {(cell.rank, cell.rows): cell for cell in result.sweep}

    def matrix(field: str) -> Float[np.ndarray, "rank questions"]:
        rows = [[cells.get((rank, n)) for n in questions] for rank in ranks]
        return np.array(
            [[np.nan if cell is None else _number(getattr(cell, field)) for cell in row] for row in rows]
        )

    return plots.heatmaps(
        {
            "unlocked manner": matrix("behaves"),
            "R² of differences": np.clip(matrix("r2_diff"), -1, 1),
            "cosine with native": matrix("cos_native"),
        },
        x=questions,
        y=ranks,
        title="Truncated maps by rank and questions",
        x_title="Questions fitted on",
        y_title="Rank",
        diverging=True,
        limits=(-1.0, 1.0),
    )


def _number(value: Estimate | float) -> float:
    return value.value if isinstance(value, Estimate) else value


def _alignment(result: TransferResult) -> Figure:
    rows = result.report.layers
    return plots.curves(
        [
            Series(
                name,
                [getattr(row, field) for row in rows],
                role="control" if field == "r2_shuffled" else "other",
            )
            for name, field in _DIAGNOSTICS.items()
        ],
        [row.target for row in rows],
        title="The map on held-out questions",
        x_title="Target layer",
        zero_line=True,
    )


def _strength(result: TransferResult) -> Figure:
    strengths, outcomes, repeats = zip(*result.curve, strict=True)
    return plots.curves(
        [
            Series("outcome on dev questions", list(outcomes), role="post"),
            Series("repeated text", list(repeats), role="control"),
        ],
        list(strengths),
        title="What a strength does",
        x_title="α",
        y_title="Share",
    )
