"""The figures of every study: heat map, curves, scatter, bars, reliability diagram, histogram.

Each takes plain arrays and labels and gives a `plotly.graph_objects.Figure` in the house theme. Every string
is shown letter by letter, whatever it holds. Categories are numbered positions with labels, so that two equal
or number-like labels stay two categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from steerlab.plots import theme
from steerlab.plots.series import Look, Series, looks

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
                "title": {"text": theme.text(colour_title)},
                "thickness": 12,
                "outlinewidth": 0,
                "len": 0.9,
            },
            text=_cell_texts(cells, ends, _CELLS_WITH_INTERVAL),
            texttemplate="%{text}" if cells.size <= _CELLS_WITH_TEXT else None,
            customdata=_hover_cells(cells, ends, x, y),
            hovertemplate="%{customdata}<extra></extra>",
            xgap=2 if cells.size <= _CELLS_WITH_TEXT else 0,
            ygap=2 if cells.size <= _CELLS_WITH_TEXT else 0,
        )
    )
    figure.update_xaxes(showgrid=False, zeroline=False, **_category_axis(x, 18))
    figure.update_yaxes(showgrid=False, zeroline=False, autorange="reversed", **_category_axis(y, 30))
    figure.update_layout(height=int(np.clip(150 + 34 * len(y), 320, 620)))
    return figure


def curves(
    series: Sequence[Series],
    x: ArrayLike | None = None,
    *,
    title: str,
    x_title: str = "",
    y_title: str = "",
    y_range: tuple[float, float] | None = None,
    zero_line: bool = False,
) -> go.Figure:
    """Lines over x (of the figure or of each series) with their intervals as bands."""
    figure = theme.themed(title, x_title, y_title)
    for one, look in zip(series, looks(series), strict=True):
        at = _positions(one, x)
        ends = one.ends()
        if ends is not None:
            figure.add_trace(_band(at, *ends, look, one.name))
        figure.add_trace(_line(one, at, look))
    if zero_line:
        figure.add_hline(y=0, line={"color": theme.CONTROL, "width": 1, "dash": "dot"})
    figure.update_layout(hovermode="x unified")
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    return figure


def scatter(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str = "",
    y_title: str = "",
    diagonal: bool = False,
) -> go.Figure:
    """Clouds of points, one a series with its own x; `labels` show on hover. diagonal: the line y = x."""
    figure = theme.themed(title, x_title, y_title)
    if diagonal:
        _add_diagonal(figure, series)
    for one, look in zip(series, looks(series), strict=True):
        labels = [theme.text(label, 90) for label in one.labels or [""] * len(one.values())]
        figure.add_trace(
            go.Scatter(
                x=_positions(one, None),
                y=one.values(),
                mode="markers",
                name=theme.text(one.name, 40),
                marker={"color": look.colour, "symbol": _solid(look.marker), "size": 7, "opacity": 0.75},
                error_y=_faint(one.error_bars(), look),
                customdata=labels,
                hovertemplate="%{customdata}<br>%{x:.3g}, %{y:.3g}<extra>%{fullData.name}</extra>",
            )
        )
    return figure


def bars(
    categories: Sequence[object],
    series: Sequence[Series],
    *,
    title: str,
    x_title: str = "",
    y_title: str = "",
    y_range: tuple[float, float] | None = None,
) -> go.Figure:
    """Groups of bars, one group a category and one bar a series, with intervals as error bars."""
    figure = theme.themed(title, x_title, y_title)
    for one, look in zip(series, looks(series), strict=True):
        if len(one.values()) != len(categories):
            raise ValueError(f"series {one.name!r} needs one value for each of {len(categories)} categories")
        figure.add_trace(
            go.Bar(
                x=np.arange(len(categories)),
                y=one.values(),
                name=theme.text(one.name, 40),
                marker={
                    "color": look.colour,
                    "pattern": {"shape": "" if look.dash in ("solid", "dot") else "/"},
                },
                error_y=one.error_bars(),
                customdata=one.hover_ends(),
                hovertemplate="%{y:.3g}%{customdata[0]}<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_xaxes(showgrid=False, zeroline=False, **_category_axis(categories, 26))
    figure.update_layout(barmode="group", bargap=0.28, bargroupgap=0.06)
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    return figure


def reliability(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str = "Confidence",
    y_title: str = "Share right",
) -> go.Figure:
    """Share right (y) against mean confidence (x) by bin, with the diagonal and the counts of bins (n)."""
    figure = theme.themed(title, "", y_title)
    figure.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="perfectly calibrated",
            line={"color": theme.CONTROL, "width": 1.2, "dash": "dot"},
            hoverinfo="skip",
        )
    )
    counted = any(one.n is not None for one in series)
    for one, look in zip(series, looks(series), strict=True):
        at = _positions(one, None)
        line = _line(one, at, look)
        line.update(mode="lines+markers", error_y=_faint(one.error_bars(), look))
        figure.add_trace(line)
        if one.n is not None:
            figure.add_trace(
                go.Bar(
                    x=at,
                    y=np.asarray(one.n),
                    width=0.03,
                    yaxis="y2",
                    showlegend=False,
                    marker={"color": theme.fade(look.colour, 0.55)},
                    name=theme.text(one.name, 40),
                    hovertemplate="%{y} answers near %{x:.2f}<extra>%{fullData.name}</extra>",
                )
            )
    figure.update_xaxes(range=[-0.02, 1.02], title={"text": theme.text(x_title)})
    figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_layout(barmode="overlay", height=460 if counted else 400)
    if counted:
        figure.update_layout(
            yaxis={"domain": [0.28, 1]},
            yaxis2={"domain": [0, 0.18], "title": {"text": "answers"}, "rangemode": "tozero", "nticks": 3},
            xaxis={"anchor": "y2"},
        )
    return figure


def histogram(
    series: Sequence[Series],
    *,
    title: str,
    x_title: str = "",
    y_title: str = "Draws",
    bins: int = 40,
    marks: Sequence[tuple[str, float]] = (),
) -> go.Figure:
    """Distributions of each series (its y) over common bins; `marks`: named vertical lines (an observed value)."""
    figure = theme.themed(title, x_title, y_title)
    finite = [one.values()[np.isfinite(one.values())] for one in series]
    pooled = np.concatenate([*finite, np.array([value for _, value in marks], dtype=np.float64)])
    edges = np.histogram_bin_edges(pooled, bins=bins) if len(pooled) else np.array([0.0, 1.0])
    for one, values, look in zip(series, finite, looks(series), strict=True):
        counts, _ = np.histogram(values, bins=edges)
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=np.diff(edges),
                name=theme.text(one.name, 40),
                marker={"color": theme.fade(look.colour, 0.6), "line": {"width": 0}},
                hovertemplate="%{y} near %{x:.3g}<extra>%{fullData.name}</extra>",
            )
        )
    for (name, value), look in zip(
        marks, looks([Series(name, [value]) for name, value in marks]), strict=True
    ):
        figure.add_vline(x=value, line={"color": look.colour, "width": 2})
        figure.add_annotation(
            x=value, y=1, yref="paper", yanchor="bottom", text=theme.text(name, 30), showarrow=False,
            font={"color": look.colour, "size": 12},
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0)
    return figure


def draws_something(figure: go.Figure) -> bool:
    """False when no trace holds a finite number to show."""
    return any(_has_numbers(trace["z"] if trace.type == "heatmap" else trace["y"]) for trace in figure.data)


# -- private, in the order they are called --


def _has_numbers(values: object) -> bool:
    if values is None:
        return False
    numbers = np.asarray(values, dtype=np.float64)
    return bool(np.isfinite(numbers).any())


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
    def one(i: int, j: int) -> str:
        interval = f" [{ends[0][i, j]:.3g}, {ends[1][i, j]:.3g}]" if ends is not None else ""
        return f"{theme.text(y[i], 60)}<br>{theme.text(x[j], 60)}<br><b>{cells[i, j]:.3g}</b>{interval}"

    return [[one(i, j) for j in range(len(x))] for i in range(len(y))]


def _category_axis(labels: Sequence[object], limit: int) -> dict[str, Any]:
    """Numbered positions with the labels as ticks: all of them, or thinned where they would collide."""
    step = max(1, -(-len(labels) // 40))
    shown = list(range(0, len(labels), step))
    return {
        "type": "linear",
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [theme.text(labels[position], limit) for position in shown],
        "range": [-0.5, len(labels) - 0.5],
    }


def _positions(one: Series, x: ArrayLike | None) -> NDArray[np.float64]:
    at = np.asarray(one.x if one.x is not None else x if x is not None else np.arange(len(one.values())))
    if at.shape != one.values().shape:
        raise ValueError(f"series {one.name!r}: x has shape {at.shape}, y has {one.values().shape}")
    return at.astype(np.float64)


def _band(
    at: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], look: Look, name: str
) -> go.Scatter:
    known = np.isfinite(low) & np.isfinite(high)
    return go.Scatter(
        x=np.concatenate([at[known], at[known][::-1]]),
        y=np.concatenate([high[known], low[known][::-1]]),
        fill="toself",
        fillcolor=theme.fade(look.colour, 0.16),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=theme.text(name, 40),
    )


def _line(one: Series, at: NDArray[np.float64], look: Look) -> go.Scatter:
    return go.Scatter(
        x=at,
        y=one.values(),
        mode="lines+markers" if len(at) <= 40 else "lines",
        name=theme.text(one.name, 40),
        legendgroup=theme.text(one.name, 40),
        line={"color": look.colour, "width": 2.2, "dash": look.dash},
        marker={"symbol": _solid(look.marker), "size": 7},
        customdata=one.hover_ends(),
        hovertemplate="%{y:.3g}%{customdata[0]}<extra>%{fullData.name}</extra>",
    )


def _solid(marker: str) -> str:
    return "circle" if marker == "x-thin-open" else marker


def _faint(error_bars: dict[str, Any] | None, look: Look) -> dict[str, Any] | None:
    return None if error_bars is None else {**error_bars, "color": theme.fade(look.colour, 0.6), "width": 3}


def _add_diagonal(figure: go.Figure, series: Sequence[Series]) -> None:
    pooled = np.concatenate(
        [np.zeros(0), *(np.concatenate([_positions(s, None), s.values()]) for s in series)]
    )
    pooled = pooled[np.isfinite(pooled)]
    if len(pooled):
        ends = [float(pooled.min()), float(pooled.max())]
        line = {"color": theme.CONTROL, "width": 1.2, "dash": "dot"}
        figure.add_trace(
            go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        )
