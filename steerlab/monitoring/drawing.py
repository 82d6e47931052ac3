"""Scores as a figure, as coloured text for a notebook, and as coloured text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.showing import isolated, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.text import Text

_QUIET, _LOUD = (247, 247, 247), (214, 96, 77)


class Scored(Protocol):
    """Written tokens with a score each."""

    @property
    def values(self) -> Float[np.ndarray, " token"]:
        """The scores."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens' texts."""


def coloured_html(scores: Scored, limit: float | None, scale: tuple[float, float]) -> str:
    """The text, each token's ground coloured by its score; what is above the threshold is underlined."""
    return "".join(
        f'<span style="background:rgb{colour};color:#222{";text-decoration:underline" if above else ""}" '
        f'title="{value:.3g}">{escape(isolated(token))}</span>'
        for token, value, colour, above in _coloured(scores, limit, scale)
    )


def coloured_text(scores: Scored, limit: float | None, scale: tuple[float, float]) -> Text:
    """The same for a terminal."""
    from rich.text import Text

    text = Text()
    for token, _, (red, green, blue), above in _coloured(scores, limit, scale):
        style = f"#222222 on rgb({red},{green},{blue})"
        text.append(visible(token), style=f"{style} underline" if above else style)
    return text


def scores_figure(
    scores: Scored, number: int, limit: float | None, band: Sequence[float] | np.ndarray | None
) -> Figure:
    """Scores along a text, markers coloured by them, with the threshold and the band of what is usual."""
    import plotly.graph_objects as go

    places = list(range(len(scores.tokens)))
    figure = plots.curves(
        [plots.Series("score", scores.values, x=places)],
        title=f"Scores of text {number}",
        x_title="token written",
        y_title="projection on the probe",
    )
    figure.data = ()
    figure.add_trace(
        go.Scatter(
            x=places,
            y=scores.values,
            mode="lines+markers",
            line={"color": "#bbbbbb", "width": 1},
            marker={"color": scores.values, "colorscale": "RdBu_r", "size": 8, "line": {"width": 0.5}},
            customdata=[visible(token) for token in scores.tokens],
            hovertemplate="%{customdata}<br>%{y:.3g}<extra></extra>",
            showlegend=False,
        )
    )
    if band is not None:
        figure.add_hrect(
            y0=float(band[0]), y1=float(band[1]), line_width=0, fillcolor="#888888", opacity=0.15,
            annotation_text="95 % of scores without it", annotation_position="bottom left",
        )  # fmt: skip
    if limit is not None:
        figure.add_hline(y=limit, line={"dash": "dot", "width": 1}, annotation_text="alarm")
    if len(places) <= 60:
        figure.update_xaxes(
            tickmode="array", tickvals=places, ticktext=[visible(token).strip() for token in scores.tokens],
            tickangle=-60,
        )  # fmt: skip
    return figure


# -- private --


def _coloured(
    scores: Scored, limit: float | None, scale: tuple[float, float]
) -> Iterator[tuple[str, float, tuple[int, int, int], bool]]:
    low, high = scale
    for token, value in zip(scores.tokens, scores.values.tolist(), strict=True):
        share = float(np.clip((value - low) / (high - low), 0.0, 1.0)) if np.isfinite(value) else 0.0
        red, green, blue = (round(a + share * (b - a)) for a, b in zip(_QUIET, _LOUD, strict=True))
        yield token, value, (red, green, blue), limit is not None and value > limit
