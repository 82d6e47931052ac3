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
        domain = figure.layout[f"xaxis{column if column > 1 else ''}"].domain
        figure.add_trace(
            go.Heatmap(
                z=values,
                x=labels_x,
                y=labels_y,
                name=theme.text(name),
                colorbar=_colorbar(*domain),
                hovertemplate=f"{theme.text(x_title)} %{{x}}, {theme.text(y_title)} %{{y}}<br>"
                f"<b>{theme.text(name)} %{{z:.3g}}</b><extra></extra>",
                xgap=1,
                ygap=1,
                **_colours(values, diverging, limits),
            ),
            **at,
        )
        for cell in [*([marked] if marked is not None else []), *(framed or {}).get(name, ())]:
            figure.add_shape(**_frame(cell, width=3 if cell == marked else 2), **at)
        figure.update_xaxes(title_text=theme.text(x_title), type="category", **at)
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_yaxes(title_text=theme.text(y_title), row=1, col=1)
    figure.update_annotations(font_size=13)
    figure.update_layout(meta={"x": theme.full_labels(x), "y": theme.full_labels(y)})
    figure.update_layout(height=int(np.clip(260 + 30 * len(y), 360, 620)), margin={"t": 90, "b": 150})
    return figure


# -- private --


def _checked(maps: Mapping[str, ArrayLike], shape: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
    """The maps as arrays. Raises ValueError where there are none or one has another shape."""
    if not maps:
        raise ValueError("side by side needs at least one map")
    cells = {name: np.asarray(values, dtype=np.float64) for name, values in maps.items()}
    for name, values in cells.items():
        if values.shape != shape:
            raise ValueError(f"panel {name!r} needs values {list(shape)}, got {values.shape}")
    return cells


def _colours(
    values: NDArray[np.float64], diverging: bool, limits: tuple[float, float] | None
) -> dict[str, Any]:
    """The colour scale of one panel and its ends."""
    reach = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    low, high = limits or ((-reach, reach) if diverging else (None, None))
    return {"zmin": low, "zmax": high, "colorscale": theme.DIVERGING if diverging else theme.SEQUENTIAL}


def _colorbar(left: float, right: float) -> dict[str, Any]:
    """A horizontal bar under the panel that spans `left` to `right` of the figure."""
    return {
        "orientation": "h",
        "x": (left + right) / 2,
        "y": -0.42,
        "yanchor": "top",
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
