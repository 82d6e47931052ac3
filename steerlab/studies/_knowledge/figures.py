"""The figures of the knowledge study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.statistics import Estimate
from steerlab.studies._knowledge.noise import NoiseTrace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._knowledge.result import EffectMap, KnowledgeResult


def figures(result: KnowledgeResult) -> dict[str, Figure]:
    """The maps with their difference, maps of other kinds, cross-model maps, recovery, noise."""
    made: dict[str, Figure] = {}
    for kind in dict.fromkeys(effects.kind for effects in result.maps):
        if result.own(kind):
            made["maps" if kind == "resid_post" else f"maps_{kind}"] = maps_figure(result, kind)
    crossed = {
        f"{effects.source} into {effects.target}": effects
        for effects in result.maps
        if effects.source != effects.target
    }
    if crossed:
        made["crossed"] = _side_by_side(crossed, "States of one model in the other's runs")
    if result.recovery:
        made["recovery"] = recovery_figure(result)
    for trace in result.noise:
        made[f"noise_{trace.model}"] = _noise_figure(trace)
        if trace.severed:
            made[f"severed_{trace.model}"] = _severed_figure(trace)
    return made


def maps_figure(result: KnowledgeResult, kind: str) -> Figure:
    own = result.own(kind)
    title = f"Effect of a true prompt's {kind} in the false prompt's run"
    if kind != "resid_post" or result.comparison is None:
        return _side_by_side(own, title)
    names = own["base"]
    difference = np.full(names.values.shape, np.nan)
    for cell in result.comparison.cells:
        difference[cell.row, cell.column] = cell.difference.value
    return plots.heatmaps(
        {**{name: own_map.values for name, own_map in own.items()}, "post less base": difference},
        x=names.columns,
        y=names.rows,
        title="Effect of a true prompt's state in the false prompt's run",
        y_title="Layer",
        diverging=True,
        framed={"post less base": [(cell.row, cell.column) for cell in result.significant]},
    )


def recovery_figure(result: KnowledgeResult) -> Figure:
    rows = list(result.recovery)
    nothing = Estimate(value=float("nan"))
    return plots.bars(
        [f"{row.source} → {row.target}, {row.place}" for row in rows],
        [
            Series.of("the source's states", [row.recovered for row in rows], role="post"),
            Series.of("of another pair", [row.shuffled or nothing for row in rows], role="other"),
            Series.of("random shift", [row.random or nothing for row in rows], role="control"),
        ],
        title="Effect of the other model's states, as a share of the own",
        y_title="Recovered",
    )


def _side_by_side(maps: dict[str, EffectMap], title: str) -> Figure:
    first = next(iter(maps.values()))
    alike = {
        name: effects
        for name, effects in maps.items()
        if (effects.rows, effects.columns) == (first.rows, first.columns)
    }
    return plots.heatmaps(
        {name: effects.values for name, effects in alike.items()},
        x=first.columns,
        y=first.rows,
        title=title,
        y_title="Head" if first.kind == "heads" else "Layer",
        diverging=True,
    )


def _noise_figure(trace: NoiseTrace) -> Figure:
    maps = {
        part.kind if part.window == 1 else f"{part.kind}, {part.window} layers": np.array(
            [[cell.value for cell in row] for row in part.effects]
        )
        for part in trace.restored
        if part.layers == trace.restored[0].layers
    }
    # Short prompts have no tokens of some roles.
    seen = np.isfinite(np.stack(list(maps.values()))).any(axis=(0, 1))
    return plots.heatmaps(
        {name: values[:, seen] for name, values in maps.items()},
        x=[role for role, any_ in zip(trace.roles, seen, strict=True) if any_],
        y=trace.restored[0].layers,
        title=f"What restoring a clean state gives back ({trace.model})",
        y_title="Layer",
        diverging=True,
    )


def _severed_figure(trace: NoiseTrace) -> Figure:
    return plots.curves(
        [
            Series.of(name, list(curve), role="control" if name == "whole" else "other")
            for name, curve in trace.severed.items()
        ],
        np.arange(len(next(iter(trace.severed.values())))),
        title=f"Restored at the subject's last token, later paths severed ({trace.model})",
        x_title="Layer",
        y_title="Indirect effect",
        zero_line=True,
    )
