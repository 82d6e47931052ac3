"""The figures of the branching study, and of the parts beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.statistics import Estimate
from steerlab.studies._branching.parts_result import CommitmentRow, Parts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._branching.aep import Panels
    from steerlab.studies._branching.result import BranchingResult

_RENDERINGS = {"chat": "chat rendering", "plain": "plain rendering", "raw": "raw text"}
_SPREADS: tuple[tuple[str, Literal["other", "control"]], ...] = (
    ("spread", "other"),
    ("predicted", "control"),
)
_POSITION = "Position in the output (tokens)"


def figures(result: BranchingResult) -> dict[str, Figure]:
    """Bars with controls, the local factor by position, how many sequences each position rests on, and the parts."""
    return {
        "branching_factor": _bars(result),
        "by_position": _curves(result),
        "alive": plots.curves(
            [Series(row.name, [100 * share for share in row.alive]) for row in result.measured],
            np.arange(1, result.steps + 1),
            title="Sequences still running at each position",
            x_title=_POSITION,
            y_title="% of sequences",
            y_range=(0, 103),
        ),
        **(parts_figures(result.parts) if result.parts else {}),
    }


def parts_figures(parts: Parts) -> dict[str, Figure]:
    """Sets as bars, AEP panels, shares of nudged tokens, commitment by position."""
    made: dict[str, Figure] = {}
    if parts.sets:
        made["prompt_sets"] = _prompt_sets(parts)
    if parts.panels:
        made |= _aep(parts.panels)
    if any(len(row.share) for row in parts.nudging):
        made["nudged_share"] = _nudged_share(parts)
    settled = [row for row in parts.resampling if math.isfinite(row.at.commitment.value)]
    if settled:
        made["commitment"] = _commitment(settled)
    return made


# -- private, in the order of the page --


def _bars(result: BranchingResult) -> Figure:
    shown = {row.rendering for row in result.measured} | {"plain"}
    renderings = [rendering for rendering in _RENDERINGS if rendering in shown]
    factors: dict[tuple[str, str], Estimate] = {
        (row.model, row.rendering): row.factor for row in result.measured
    }
    for model in ("base", "post"):
        if (model, "plain") not in factors:  # its template writes the plain form
            factors[model, "plain"] = factors[model, "chat"]
    nothing = Estimate(value=math.nan)
    return plots.bars(
        [_RENDERINGS[rendering] for rendering in renderings],
        [
            Series.of(model, [factors.get((model, rendering), nothing) for rendering in renderings])
            for model in ("base", "post")
        ],
        title="Branching factor by rendering",
        y_title="Branching factor",
    )


def _curves(result: BranchingResult) -> Figure:
    return plots.curves(
        [Series.of(row.name, row.curve) for row in result.measured],
        np.arange(1, result.steps + 1),
        title="Local branching factor of the sequences still running",
        x_title=_POSITION,
        y_title="Branching factor",
    )


def _prompt_sets(parts: Parts) -> Figure:
    return plots.bars(
        [f"{row.name}, level {row.level}" for row in parts.sets],
        [
            Series.of("base", [row.base for row in parts.sets]),
            Series.of("post", [row.post for row in parts.sets]),
        ],
        title="Branching factor by prompt set",
        y_title="Branching factor",
    )


def _aep(panels: Sequence[Panels]) -> dict[str, Figure]:
    at = np.arange(1, 1 + max(len(panel.gap) for panel in panels))
    means = [
        Series(f"{panel.name}: {field}", getattr(panel, field), x=at[: len(panel.gap)])
        for panel in panels
        for field in ("entropy", "surprisal")
    ]
    gaps = [
        Series(panel.name, panel.gap, [-bound for bound in panel.band], panel.band, x=at[: len(panel.gap)])
        for panel in panels
    ]
    spreads = [
        Series(f"{panel.name}: {field}", getattr(panel, field), x=at[: len(panel.gap)], role=role)
        for panel in panels
        for field, role in _SPREADS
    ]
    return {
        "aep_means": plots.curves(
            means,
            title="Running means of entropy and surprisal, same sequences",
            x_title=_POSITION,
            y_title="Nats",
        ),
        "aep_gap": plots.curves(
            gaps,
            title="Surprisal minus entropy, inside the martingale band around zero",
            x_title=_POSITION,
            y_title="Nats",
            zero_line=True,
        ),
        "aep_spread": plots.curves(
            spreads,
            title="Spread of the running mean surprisal, and what its autocovariance predicts",
            x_title=_POSITION,
            y_title="Nats",
        ),
    }


def _nudged_share(parts: Parts) -> Figure:
    """Running means: position by position, greedy texts of one pattern are all nudged or none."""
    shown = [row for row in parts.nudging if "prefix" not in row.name and len(row.share)]
    return plots.curves(
        [
            Series(_nudge_name(row.name), _running_mean(row.share), x=np.arange(1, 1 + len(row.share)))
            for row in shown
        ],
        title="Share of tokens nudged so far",
        x_title=_POSITION,
        y_title="Share of the tokens up to here",
        y_range=(0.0, 1.02),
    )


def _running_mean(shares: Sequence[float]) -> list[float]:
    """The mean over this position and all before it."""
    known = np.asarray(shares, dtype=np.float64)
    seen = np.cumsum(np.isfinite(known))
    return list(np.cumsum(np.nan_to_num(known)) / np.maximum(seen, 1))


def _nudge_name(name: str) -> str:
    """Who nudges, as every figure names the models."""
    return name.replace("the post-trained model", "post").replace("the base model itself", "base itself")


def _commitment(rows: Sequence[CommitmentRow]) -> Figure:
    return plots.curves(
        [
            Series.of(
                role,
                [row.at.commitment for row in rows if row.model == role],
                x=[row.at.t for row in rows if row.model == role],
            )
            for role in dict.fromkeys(row.model for row in rows)
        ],
        title="How much of an answer's outcome is settled by its first tokens",
        x_title="Tokens kept",
        y_title="Share of variance between prefixes",
        zero_line=True,
    )
