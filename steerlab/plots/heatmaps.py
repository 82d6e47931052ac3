"""Heat maps: a matrix as colours, small ones with their values and intervals written into the cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from steerlab.plots import theme

_CELLS_WITH_TEXT = 64
_CELLS_WITH_INTERVAL = 16


def heatmap(
    values: ArrayLike,
    x: Sequence[object],
    y: Sequence[object],
    *,
    title: str,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    x_title: str = "",
    y_title: str = "",
    colour_title: str = "",
    diverging: bool = False,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """`values` [y, x] as colours, first row on top; small maps carry their values and intervals as text.

    diverging: a scale centred at zero (cosines, differences), symmetric. limits: the ends of the scale.

    Raises:
        ValueError: values of another shape than [len(y), len(x)].
    """
    cells = np.asarray(values, dtype=np.float64)
    if cells.shape != (len(y), len(x)):
        raise ValueError(f"a heat map needs values [{len(y)}, {len(x)}], got {cells.shape}")
    ends = _ends(cells, low, high)
    zmin, zmax = limits or _limits(cells, diverging)
    figure = theme.themed(title, x_title, y_title)
    figure.add_trace(
        go.Heatmap(
            z=cells,
            zmin=zmin,
            zmax=zmax,
            colorscale=theme.DIVERGING if diverging else theme.SEQUENTIAL,
            colorbar={
                "title": {"text": theme.text(colour_title), "font": {"size": 12}},
                "tickfont": {"size": 12},
                "thickness": 12,
                "outlinewidth": 0,
                "len": 0.86,
                "nticks": 5,
            },
            text=_cell_texts(cells, ends, _CELLS_WITH_INTERVAL),
            texttemplate="%{text}" if cells.size <= _CELLS_WITH_TEXT else None,
            meta=None if ends is None else {"low": ends[0].tolist(), "high": ends[1].tolist()},
            customdata=_hover_cells(cells, ends, x, y),
            hovertemplate="%{customdata}<extra></extra>",
            xgap=2 if cells.size <= _CELLS_WITH_TEXT else 0,
            ygap=2 if cells.size <= _CELLS_WITH_TEXT else 0,
        )
    )
    figure.update_xaxes(theme.category_axis(x, 12))
    figure.update_yaxes(theme.category_axis(y, 18))
    figure.update_yaxes(range=[len(y) - 0.5, -0.5])
    figure.update_layout(
        meta={"x": theme.full_labels(x), "y": theme.full_labels(y)},
        height=int(np.clip(150 + 34 * len(y), 320, 620)),
    )
    return figure


def _ends(
    cells: NDArray[np.float64], low: ArrayLike | None, high: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if low is None or high is None:
        return None
    ends = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if any(end.shape != cells.shape for end in ends):
        raise ValueError(f"low and high need the shape of the values, {cells.shape}")
    return ends


def _limits(cells: NDArray[np.float64], diverging: bool) -> tuple[float, float]:
    finite = cells[np.isfinite(cells)]
    if len(finite) == 0:
        return (-1.0, 1.0) if diverging else (0.0, 1.0)
    if diverging:
        reach = float(np.abs(finite).max()) or 1.0
        return -reach, reach
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _cell_texts(
    cells: NDArray[np.float64],
    ends: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    with_interval: int,
) -> list[list[str]]:
    """What stands in each cell: the value, and below it the interval where there is room."""
    texts = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in cells]
    if ends is None or cells.size > with_interval:
        return texts
    low, high = ends
    return [
        [
            f"<b>{shown}</b><br>[{low[i, j]:.2f}, {high[i, j]:.2f}]"
            if shown and np.isfinite(low[i, j])
            else shown
            for j, shown in enumerate(row)
        ]
        for i, row in enumerate(texts)
    ]


def _hover_cells(
    cells: NDArray[np.float64],
    ends: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    x: Sequence[object],
    y: Sequence[object],
) -> list[list[str]]:
    def hover_text(i: int, j: int) -> str:
        interval = f" [{ends[0][i, j]:.3g}, {ends[1][i, j]:.3g}]" if ends is not None else ""
        return f"{theme.text(y[i], 60)}<br>{theme.text(x[j], 60)}<br><b>{cells[i, j]:.3g}</b>{interval}"

    return [[hover_text(i, j) for j in range(len(x))] for i in range(len(y))]
