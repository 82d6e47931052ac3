"""Several heat maps over the same axes side by side, each with its own colours, one cell marked in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots

from steerlab.plots import theme


def heatmaps(
    maps: Mapping[str, ArrayLike],
    x: Sequence[object],
    y: Sequence[object],
    *,
    title: str,
    marked: tuple[int, int] | None = None,
    framed: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    x_title: str = "",
    y_title: str = "",
    diverging: bool = False,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """One panel for each of `maps` [y, x], first row on top; cells that are NaN stay empty.

    marked: (row, column) of a cell to frame in every panel. framed: by panel, further cells. diverging: colours
    centred at zero in every panel. limits: the ends of the scale of all panels.

    Raises:
        ValueError: no maps, or one of another shape than [len(y), len(x)].
    """
    cells = _checked(maps, (len(y), len(x)))
    styled = theme.themed(title, x_title, y_title)
    figure = make_subplots(
        rows=1, cols=len(cells), subplot_titles=[theme.text(name) for name in cells], shared_yaxes=True,
        horizontal_spacing=0.04,
    )  # fmt: skip
    figure.update_layout(styled.layout)
    labels_x, labels_y = ([str(value) for value in axis] for axis in (x, y))
    for column, (name, values) in enumerate(cells.items(), start=1):
        at = {"row": 1, "col": column}
        scale = _scale(
            values, diverging, limits, figure.layout[f"xaxis{column if column > 1 else ''}"].domain
        )
        figure.add_trace(
            go.Heatmap(
                z=values,
                x=labels_x,
                y=labels_y,
                name=theme.text(name),
                hovertemplate=f"{theme.text(x_title)} %{{x}}, {theme.text(y_title)} %{{y}}<br>"
                f"<b>{theme.text(name)} %{{z:.3g}}</b><extra></extra>",
                xgap=1,
                ygap=1,
                **scale,
            ),
            **at,
        )
        if marked is not None:
            figure.add_shape(**_frame(marked, width=3), **at)
        for cell in (framed or {}).get(name, ()):
            figure.add_shape(**_frame(cell, width=2), **at)
    _lay_out(figure, x, y, x_title, y_title)
    return figure


# -- private --

_BAR = 44
"""Pixels of a colour bar with its numbers."""


def _checked(maps: Mapping[str, ArrayLike], shape: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """The maps as arrays. Raises ValueError where there are none or one has another shape."""
    if not maps:
        raise ValueError("side by side needs at least one map")
    cells = {name: np.asarray(values, dtype=np.float64) for name, values in maps.items()}
    for name, values in cells.items():
        if values.shape != shape:
            raise ValueError(f"panel {name!r} needs values {list(shape)}, got {values.shape}")
    return cells


def _lay_out(figure: go.Figure, x: Sequence[object], y: Sequence[object], x_title: str, y_title: str) -> None:
    """Axes, titles of panels, and the height that labels and colour bars leave the cells."""
    turned, below = _tick_room([str(value) for value in x], bool(x_title))
    figure.update_xaxes(title_text=theme.text(x_title), type="category", automargin=False, tickangle=turned)
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, zeroline=False)
    figure.update_yaxes(title_text=theme.text(y_title), row=1, col=1)
    figure.update_annotations(font_size=13)
    figure.update_layout(meta={"x": theme.full_labels(x), "y": theme.full_labels(y)})
    figure.update_layout(
        height=int(np.clip(90 + 30 * len(y), 220, 500)) + below, margin={"t": 76, "b": below}
    )


def _limits(
    values: NDArray[np.float64], diverging: bool, limits: tuple[float, float] | None
) -> tuple[float, float]:
    """The ends of one panel's scale."""
    known = values[np.isfinite(values)]
    if limits is not None or len(known) == 0:
        return limits or ((-1.0, 1.0) if diverging else (0.0, 1.0))
    reach = float(np.abs(known).max()) or 1.0
    low, high = (-reach, reach) if diverging else (float(known.min()), float(known.max()))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _scale(
    values: NDArray[np.float64],
    diverging: bool,
    limits: tuple[float, float] | None,
    across: tuple[float, float],
) -> dict[str, Any]:
    """Colours of one panel, their ends, and the bar that shows them below the panel, which lies `across` the figure."""
    low, high = _limits(values, diverging, limits)
    return {
        "zmin": low,
        "zmax": high,
        "colorscale": theme.DIVERGING if diverging else theme.SEQUENTIAL,
        "colorbar": _colorbar(*across, low, high),
    }


def _tick_room(labels: Sequence[str], titled: bool) -> tuple[int, int]:
    """The angle of the labels below the panels, and the pixels that they, a title and the colour bar take there."""
    longest = max((len(label) for label in labels), default=0)
    turned = longest > 3
    return (-90 if turned else 0), int(min(7 * longest, 160) if turned else 18) + (28 if titled else 8) + _BAR


def _colorbar(left: float, right: float, low: float, high: float) -> dict[str, Any]:
    """A bar at the foot of the figure, under the panel that spans `left` to `right` of it: both ends and the middle."""
    marked = [low, (low + high) / 2, high]
    return {
        "orientation": "h",
        "x": (left + right) / 2,
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "ypad": 4,
        "tickvals": marked,
        "ticktext": [f"{value:.2g}" for value in marked],
        "len": (right - left) * 0.95,
        "thickness": 9,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
    }


def _frame(cell: tuple[int, int], *, width: int) -> dict[str, Any]:
    """A rectangle round the cell at (row, column)."""
    row, column = cell
    return {
        "type": "rect",
        "x0": column - 0.5,
        "x1": column + 0.5,
        "y0": row - 0.5,
        "y1": row + 0.5,
        "line": {"width": width, "color": theme.INK},
    }
