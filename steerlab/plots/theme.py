"""One look for every figure: BASE is blue and POST vermilion everywhere, controls are grey.

The colours are Okabe and Ito's (2008), told apart under every common colour-blindness and in grey print; BASE
and POST also differ in marker and dash. Cosines and differences use a diverging scale centred at zero,
everything else a single-hue scale. `text` makes any string safe to hand to plotly, which reads a little HTML
in labels.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go
import plotly.io as pio

SeriesRole = Literal["base", "post", "control", "other"]

BASE = "#0072B2"
POST = "#D55E00"
CONTROL = "#8C9196"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
INK = "#24292F"
GRID = "rgba(128, 136, 146, 0.22)"

SEQUENTIAL = [[0.0, "#F3F6FA"], [0.25, "#C6D9EA"], [0.5, "#7FB0D4"], [0.75, "#2E7FB5"], [1.0, "#084B7A"]]
DIVERGING = [
    [0.0, "#9A3B00"],
    [0.25, "#E6935A"],
    [0.5, "#F7F7F5"],
    [0.75, "#6DAAD3"],
    [1.0, "#084B7A"],
]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_TICK_LINES = 6
_X_TITLE, _Y_TITLE = 44, 34
"""Characters in a line of an axis title: what a narrow figure has room for."""
_CONTROL_WORDS = ("control", "random", "shuffled", "null", "unsteered", "chance", "split-half")


def text(value: object, limit: int | None = None) -> str:
    """`value` as plotly shows it letter by letter: markup and MathJax are escaped, long text is cut."""
    plain = " ".join(str(value).split())
    if limit is not None and len(plain) > limit:
        plain = plain[: limit - 1].rstrip() + "…"
    # plotly decodes entities once, after it has looked for tags; %{...} would be read as a template
    return html.escape(plain, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def role_of(name: str) -> SeriesRole:
    """Which role a series plays, by its name: "base", "post + addition", "random direction" ..."""
    words = name.lower()
    if any(word in words for word in _CONTROL_WORDS):
        return "control"
    if words.startswith("base"):
        return "base"
    return "post" if words.startswith("post") else "other"


def fade(colour: str, opacity: float) -> str:
    """A hex colour with an opacity."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def _template() -> go.layout.Template:
    axis = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "ticks": "",
        "title": {"standoff": 10, "font": {"size": 13}},
        "tickfont": {"size": 12},
    }
    return go.layout.Template(
        layout={
            "font": {"family": _FONT, "size": 13, "color": INK},
            "title": {"x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 15}},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "colorway": [BASE, POST, *OTHERS],
            "margin": {"l": 56, "r": 20, "t": 44, "b": 48},
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "font": {"size": 12},
            },
            "hoverlabel": {"font": {"family": _FONT, "size": 12}, "align": "left"},
            "hovermode": "closest",
            "height": 380,
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def _registered() -> go.layout.Template:
    if "steerlab" not in pio.templates:
        pio.templates["steerlab"] = _template()
    return pio.templates["steerlab"]


def themed(title: str, x_title: str = "", y_title: str = "") -> go.Figure:
    """An empty figure in the house theme, with escaped titles."""
    figure = go.Figure()
    figure.update_layout(template=_registered())
    figure.update_layout(title={"text": text(title)})
    figure.update_xaxes(title={"text": axis_title(x_title, _X_TITLE)})
    figure.update_yaxes(title={"text": axis_title(y_title, _Y_TITLE)})
    return figure


def axis_title(title: str, width: int = _X_TITLE) -> str:
    """A title of an axis, in lines of `width` characters."""
    return "<br>".join(text(line) for line in textwrap.wrap(" ".join(title.split()), width))


def _lines(label: object, width: int) -> str:
    """A tick label in lines of `width` characters; only one that fills six lines is cut."""
    plain = " ".join(str(label).split())
    lines = textwrap.wrap(plain, width, max_lines=_TICK_LINES, placeholder="…") or [""]
    return "<br>".join(text(line) for line in lines)


def category_axis(labels: Sequence[object], width: int) -> dict[str, Any]:
    """Numbered positions with the labels as ticks, in lines of `width`: all, or thinned where they would collide."""
    step = max(1, -(-len(labels) // 40))
    shown = list(range(0, len(labels), step))
    return {
        "type": "linear",
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [_lines(labels[position], width) for position in shown],
        "range": [-0.5, len(labels) - 0.5],
        "showgrid": False,
        "zeroline": False,
        "ticklabeloverflow": "allow",
    }


def full_labels(labels: Sequence[object]) -> list[str]:
    """Uncut labels, carried along in a figure for the tables made from it."""
    return [text(label) for label in labels]
