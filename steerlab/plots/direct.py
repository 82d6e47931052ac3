"""Names at the ends of lines in place of a legend, where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go

from steerlab.plots import theme
from steerlab.plots.series import Look, Series

_NAME = "direct"
_MOST, _LONGEST = 5, 32
_LINE = 0.062
"""A label's height as a share of the axis: labels that would touch are pushed apart by that much."""
_LETTER = 6.4


def label_directly(figure: go.Figure, series: Sequence[Series], looks: Sequence[Look]) -> None:
    """Write each line's name at its end and drop the legend, where the lines are few and their names short."""
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.fill != "toself"]
    ends = [_end(line) for line in lines]
    names = [theme.text(one.name, 40) for one in series]
    if not 2 <= len(lines) <= _MOST or max(map(len, names)) > _LONGEST or None in ends:
        return
    known = [end for end in ends if end is not None]
    low, high = _span(figure)
    places = _apart([y for _, y in known], _LINE * (high - low), high)
    for (x, _), y, name, look in zip(known, places, names, looks, strict=True):
        colour = theme.INK if look.colour == theme.CONTROL else look.colour
        figure.add_annotation(
            name=_NAME,
            x=x,
            y=y,
            text=name,
            xanchor="left",
            xshift=8,
            showarrow=False,
            font={"color": colour, "size": 12},
        )
    left = min(float(np.nanmin(np.asarray(line.x, dtype=np.float64))) for line in lines)
    right = max(x for x, _ in known)
    room = 0.03 * (right - left or 1.0)
    figure.update_xaxes(
        range=[left - room, right + room]
    )  # plotly would make room for the names inside the axis
    figure.update_layout(showlegend=False, margin={"r": int(20 + _LETTER * max(map(len, names)))})


def with_legend(figure: go.Figure) -> go.Figure:
    """The figure with a legend in place of direct labels, for a width that has no room beside the lines."""
    kept = [note for note in figure.layout.annotations if note.name != _NAME]
    if len(kept) == len(figure.layout.annotations):
        return figure
    copy = go.Figure(figure)
    copy.update_layout(annotations=kept, overwrite=True)
    copy.update_layout(showlegend=True, margin={"r": 20})
    return copy


def _end(line: go.Scatter) -> tuple[float, float] | None:
    """The last point with a number."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (line.x, line.y))
    known = np.flatnonzero(np.isfinite(y))
    return (float(x[known[-1]]), float(y[known[-1]])) if len(known) else None


def _span(figure: go.Figure) -> tuple[float, float]:
    """What the y axis shows: its range, or all that is drawn."""
    if figure.layout.yaxis.range:
        low, high = figure.layout.yaxis.range
    else:
        drawn = np.concatenate([np.asarray(trace.y, dtype=np.float64) for trace in figure.data])
        low, high = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _apart(places: Sequence[float], gap: float, high: float) -> list[float]:
    """The places with at least `gap` between neighbours, moved upwards as little as that takes, none above `high`."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    moved = list(places)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    over = max(moved) - high
    if over > 0:  # from the top down again
        moved[order[-1]] = high
        for above, below in pairwise(reversed(order)):
            moved[below] = min(moved[below], moved[above] - gap)
    return moved
