"""The figures of the study of differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._difference.result import DifferenceResult


def figures(result: DifferenceResult) -> dict[str, Figure]:
    """By layer, the words' numbers beside their nulls, by place, by position, and the topic's where it is given."""
    made = {"layers": _layers(result), "nulls": _nulls(result), "places": _places(result)}
    made["positions"] = _positions(result)
    if result.read.topic is not None:
        made["topic"] = _topic(result)
    return made


# -- private, in the order of the page --


def _layers(result: DifferenceResult) -> Figure:
    at = [row.layer for row in result.layers]
    series = [Series.of("post minus base", [row.shared for row in result.layers], x=at, role="post")]
    random = [row.lora for row in result.layers if row.lora is not None]
    if len(random) == len(at):
        series.append(Series.of("random LoRA, least to greatest", random, x=at, role="control"))
    return plots.curves(
        series,
        title="What the texts' differences have in common",
        x_title="Layer",
        y_title="Share of the stream's norm",
        zero_line=True,
    )


def _nulls(result: DifferenceResult) -> Figure:
    own = [Estimate(value=result.stands_out), Estimate(value=10 * result.alike)]
    return plots.bars(
        ["stands out", "alike × 10"],
        [
            Series.of("post minus base", own, role="post"),
            *(
                Series.of(null.name, [null.stands_out, null.alike.transform(lambda value: 10 * value)])
                for null in result.nulls
                if null.stands_out is not None and null.alike is not None
            ),
        ],
        title="Words of one half of the texts, on the other half",
        y_title="Standard deviations; cosine × 10",
    )


def _places(result: DifferenceResult) -> Figure:
    places = list(dict.fromkeys(row.place for row in result.places))
    layers = [row.layer for row in result.layers]
    value = {(row.layer, row.place): row.shared.value for row in result.places}
    return plots.heatmap(
        np.array([[value[layer, place] for layer in layers] for place in places]),
        layers,
        places,
        title="Shared difference by place and layer",
        x_title="Layer",
        colour_title="Share of the norm",
    )


def _positions(result: DifferenceResult) -> Figure:
    return plots.bars(
        [row.behind for row in result.positions],
        [Series.of("KL(base ‖ post)", [row.kl for row in result.positions], role="post")],
        title="Next-token laws by position",
        x_title="Behind text token",
        y_title="Nats",
    )


def _topic(result: DifferenceResult) -> Figure:
    return plots.curves(
        [
            Series.of(
                "topic's words", [row.topic for row in result.layers if row.topic is not None], role="post"
            )
        ],
        [row.layer for row in result.layers],
        title="Rank of the topic's words in the difference",
        x_title="Layer",
        y_title="Rank AUC",
        y_range=(0.0, 1.03),
    )
