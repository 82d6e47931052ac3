"""The figures of every study: curves, scatter, bars, reliability diagram, histogram.

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
from steerlab.plots.direct import label_directly
from steerlab.plots.series import Look, Series, looks


def curves(
    series: Sequence[Series],
    x: ArrayLike | None = None,
    *,
    title: str,
    x_title: str = "",
    y_title: str = "",
    y_range: tuple[float, float] | None = None,
    zero_line: bool = False,
    x_names: Sequence[object] | None = None,
) -> go.Figure:
    """Lines over x (of the figure or of each series) with their intervals as bands; `x_names` stand at 0, 1, ..."""
    figure = theme.themed(title, x_title, y_title)
    for line, look in zip(series, looks(series), strict=True):
        at = _positions(line, x)
        ends = line.ends()
        if ends is not None:
            figure.add_trace(_band(at, *ends, look, line.name))
        figure.add_trace(_line(line, at, look))
    if zero_line:
        figure.add_hline(y=0, line={"color": theme.CONTROL, "width": 1, "dash": "dot"})
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(_whole_ticks(figure))
    if x_names is not None:
        named = [theme.text(name, 24) for name in x_names]
        figure.update_xaxes(tickmode="array", tickvals=list(range(len(named))), ticktext=named)
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    label_directly(figure, series, looks(series))
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
    for points, look in zip(series, looks(series), strict=True):
        labels = [theme.text(label, 90) for label in points.labels or [""] * len(points.values())]
        figure.add_trace(
            go.Scatter(
                x=_positions(points, None),
                y=points.values(),
                mode="markers",
                name=theme.text(points.name, 40),
                marker={"color": look.colour, "symbol": _solid(look.marker), "size": 7, "opacity": 0.75},
                error_y=_faint(points.error_bars(), look),
                meta=points.meta(),
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
    frame: tuple[float, float] | None = None,
) -> go.Figure:
    """Groups of bars, one group a category and one bar a series, with intervals as error bars.

    frame: what is shown of y at most; a bar that leaves it carries its value, a whisker is cut there.

    Raises:
        ValueError: a series without one value for each category.
    """
    figure = theme.themed(title, x_title, y_title)
    for group, look in zip(series, looks(series), strict=True):
        if len(group.values()) != len(categories):
            raise ValueError(
                f"series {group.name!r} needs one value for each of {len(categories)} categories"
            )
        figure.add_trace(
            go.Bar(
                x=np.arange(len(categories)),
                y=group.values(),
                name=theme.text(group.name, 40),
                marker={
                    "color": look.colour,
                    "pattern": {"shape": "" if look.dash in ("solid", "dot") else "/"},
                },
                error_y=group.error_bars(),
                meta=group.meta(),
                customdata=group.hover_ends(),
                hovertemplate="%{y:.3g}%{customdata[0]}<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_xaxes(theme.category_axis(categories, 14))
    figure.update_layout(
        meta={"x": theme.full_labels(categories)}, barmode="group", bargap=1 - _GROUP, bargroupgap=0.06
    )
    if y_range is not None:
        figure.update_yaxes(range=list(y_range))
    if frame is not None:
        _frame(figure, series, frame)
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
    counted = any(curve.n is not None for curve in series)
    for number, (curve, look) in enumerate(zip(series, looks(series), strict=True)):
        at = _positions(curve, None)
        line = _line(curve, at, look)
        line.update(mode="lines+markers", error_y=_faint(curve.error_bars(), look))
        figure.add_trace(line)
        if curve.n is not None:
            figure.add_trace(
                go.Bar(
                    x=at,
                    y=np.asarray(curve.n),
                    width=0.018,
                    offset=0.018 * (number - len(series) / 2),
                    yaxis="y2",
                    showlegend=False,
                    marker={"color": theme.fade(look.colour, 0.7)},
                    name=theme.text(curve.name, 40),
                    hovertemplate="%{y} answers near %{x:.2f}<extra>%{fullData.name}</extra>",
                )
            )
    figure.update_xaxes(range=[-0.02, 1.02], title={"text": theme.axis_title(x_title)})
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
    finite = [sample.values()[np.isfinite(sample.values())] for sample in series]
    pooled = np.concatenate([*finite, np.array([value for _, value in marks], dtype=np.float64)])
    edges = np.histogram_bin_edges(pooled, bins=bins) if len(pooled) else np.array([0.0, 1.0])
    for sample, values, look in zip(series, finite, looks(series), strict=True):
        counts, _ = np.histogram(values, bins=edges)
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=np.diff(edges),
                name=theme.text(sample.name, 40),
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


def _whole_ticks(figure: go.Figure) -> dict[str, Any]:
    """Ticks at whole numbers only, where all of x are whole (layers, tokens) and few."""
    at = np.concatenate([np.zeros(0), *(np.asarray(trace.x, dtype=np.float64) for trace in figure.data)])
    few = len(at) > 0 and bool((at == np.round(at)).all()) and at.max() - at.min() <= 12
    return {"dtick": 1} if few else {}


def _positions(line: Series, x: ArrayLike | None) -> NDArray[np.float64]:
    at = np.asarray(line.x if line.x is not None else x if x is not None else np.arange(len(line.values())))
    if at.shape != line.values().shape:
        raise ValueError(f"series {line.name!r}: x has shape {at.shape}, y has {line.values().shape}")
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


def _line(line: Series, at: NDArray[np.float64], look: Look) -> go.Scatter:
    return go.Scatter(
        x=at,
        y=line.values(),
        mode="lines+markers" if len(at) <= 40 else "lines",
        name=theme.text(line.name, 40),
        legendgroup=theme.text(line.name, 40),
        line={"color": look.colour, "width": 2.2, "dash": look.dash},
        marker={"symbol": _solid(look.marker), "size": 7},
        meta=line.meta(),
        customdata=line.hover_ends(),
        hovertemplate="%{y:.3g}%{customdata[0]}<extra>%{fullData.name}</extra>",
    )


_GROUP = 0.72
"""Width of a group of bars: 1 less the gap between groups."""


def _frame(figure: go.Figure, series: Sequence[Series], frame: tuple[float, float]) -> None:
    """Keep y inside `frame` where something leaves it, and write the value at a bar that does."""
    low, high = frame
    drawn = np.concatenate([np.concatenate([one.values(), *(one.ends() or ())]) for one in series])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or (drawn.min() >= low and drawn.max() <= high):
        return
    room = 0.08 * (high - low)
    figure.update_yaxes(range=[max(low, drawn.min()) - room, min(high, drawn.max()) + room])
    for number, one in enumerate(series):
        for category, value in enumerate(one.values()):
            if np.isfinite(value) and not low <= value <= high:
                figure.add_annotation(
                    x=category + (number - (len(series) - 1) / 2) * _GROUP / len(series),
                    y=low if value < low else high,
                    yanchor="top" if value < low else "bottom",
                    xanchor="left",
                    xshift=12,
                    text=f"{value:.3g}",
                    showarrow=False,
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
