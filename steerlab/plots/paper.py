"""A figure at the width of a paper's column: no title, since a caption says it, and a legend where it is narrow."""

from __future__ import annotations

import textwrap
from typing import Literal

import plotly.graph_objects as go

from steerlab.plots.direct import with_legend

Column = Literal["single", "double"]
INCHES: dict[Column, float] = {"single": 3.3, "double": 7.0}
"""Width of one column and of two."""
_PIXELS = 96
_LETTER, _LINE, _AXIS = 6.6, 15, 70


def paper(figure: go.Figure, column: Column = "double") -> go.Figure:
    """A copy as wide as one column (3.3 in) or two (7 in), to be saved as SVG, PDF or PNG."""
    width = round(_PIXELS * INCHES[column])
    copy = go.Figure(with_legend(figure) if column == "single" else figure)
    room = width - _AXIS
    height = int(figure.layout.height or figure.layout.template.layout.height or 380)
    titles = _wrapped_titles(copy, room)
    copy.update_layout(title=None, width=width, height=height, margin={"t": 14 + titles * _LINE})
    _turn_labels(copy, room)
    if column == "single":
        _thin_maps(copy)
    return copy


def _wrapped_titles(figure: go.Figure, room: float) -> int:
    """Titles of panels in as many lines as their panel needs; how many those are at most."""
    titles = [
        note for note in figure.layout.annotations if note.xref == note.yref == "paper" and not note.name
    ]
    for note in titles:
        letters = max(int(room / len(titles) / _LETTER), 8)
        note.text = "<br>".join(textwrap.wrap(note.text, letters, break_long_words=False))
    return max((note.text.count("<br>") + 1 for note in titles), default=0)


def _turn_labels(figure: go.Figure, room: float) -> None:
    """Labels of categories that would touch stand upright, in as many lines as a category is wide."""
    labels = figure.layout.xaxis.ticktext
    if not labels:
        return
    step = room / len(labels)
    if max(len(line) for label in labels for line in label.split("<br>")) * _LETTER < step:
        return
    lines = max(1, int(step / _LINE))
    plain = [label.replace("<br>", " ") for label in labels]
    wrapped = [
        textwrap.wrap(label, max(16, -(-len(label) // lines) + 4), break_long_words=False) for label in plain
    ]
    longest = max((len(line) for label in wrapped for line in label), default=0)
    figure.update_xaxes(ticktext=["<br>".join(label) for label in wrapped], tickangle=-90)
    figure.update_layout(height=figure.layout.height + max(0, int(longest * _LETTER) - 40))


def _thin_maps(figure: go.Figure) -> None:
    """Cells without their intervals, colour bars with their ends only: what one column has room for."""
    for trace in figure.data:
        if trace.type != "heatmap":
            continue
        if trace.text is not None:
            trace.text = [[str(cell).partition("<br>")[0] for cell in row] for row in trace.text]
        if trace.colorbar.ticktext:
            marked = trace.colorbar
            marked.update(
                tickvals=[marked.tickvals[0], marked.tickvals[-1]],
                ticktext=[marked.ticktext[0], marked.ticktext[-1]],
                tickangle=0,
                tickfont={"size": 9},
            )
