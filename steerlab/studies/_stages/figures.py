"""The figures of the study of stages: a map of all quantities, and their trajectories study by study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.readouts.contrasts import file_name
from steerlab.results import study_title

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._stages.changes import Trajectory
    from steerlab.studies._stages.result import StagesResult

_LIMIT = 20.0  # units of noise at which colours end


def figures(result: StagesResult) -> dict[str, Figure]:
    """The map first, then one figure for each study and measure."""
    made = {"stages": _map(result)}
    for study in dict.fromkeys(one.quantity.study for one in result.trajectories):
        mine = [one for one in result.trajectories if one.quantity.study == study]
        for measure in dict.fromkeys(one.quantity.measure for one in mine):
            some = [one for one in mine if one.quantity.measure == measure]
            made[f"{study}_{file_name(measure)}"] = _curves(result, study, measure, some)
    return made


# -- private --


def _map(result: StagesResult) -> Figure:
    values = np.array([one.from_first for one in result.trajectories], dtype=np.float64)
    largest = float(np.nanmax(np.abs(values), initial=2.0))
    reach = min(_LIMIT, largest)
    return plots.heatmap(
        values,
        x=result.labels,
        y=[one.quantity.name for one in result.trajectories],
        title="What changed since the first stage",
        x_title="Stage",
        colour_title="units of noise",
        diverging=True,
        limits=(-reach, reach),
    )


def _curves(result: StagesResult, study: str, measure: str, some: Sequence[Trajectory]) -> Figure:
    stages = range(len(result.labels))
    series = [
        Series.of(one.quantity.of, one.at, x=list(stages), role=_role(at)) for at, one in enumerate(some)
    ]
    if some[0].controls:
        series.append(Series.of("other contrasts", some[0].controls, x=list(stages), role="control"))
    quantity = some[0].quantity
    return plots.curves(
        series,
        title=f"{study_title(study)}: {measure}",
        x_title="Stage",
        y_title="Share" if quantity.share else quantity.unit.capitalize() or measure.capitalize(),
        y_range=(0.0, 1.03) if quantity.share else None,
        x_names=result.labels,
    )


def _role(at: int) -> plots.theme.SeriesRole | None:
    return ("post", "base")[at] if at < 2 else None
