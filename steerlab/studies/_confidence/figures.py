"""The figures of the confidence study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.neurons.overlap import NeuronSet
from steerlab.plots import Series
from steerlab.readouts.confidence import Calibration
from steerlab.studies._confidence.choices import Choices
from steerlab.studies._confidence.depth import FixedValues

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.neurons.gap import Gap
    from steerlab.studies._confidence.result import ConfidenceResult


def figures(result: ConfidenceResult) -> dict[str, Figure]:
    """Every figure that has something to show, in reading order."""
    made = {
        "text_confidence": _entropies(result),
        "next_token_reliability": _reliability(
            [(row.model, row.calibration) for row in result.texts], "Next token of plain text"
        ),
    }
    if result.answers:
        made["answer_confidence"] = _reliability(
            [(row.model, row.calibration) for row in result.answers], f"TRUE or FALSE, {result.form}"
        )
    if result.choices is not None and result.choices.answers:
        made["choice_confidence"] = choices_figure(result.choices)
    if result.neurons.sets:
        made["entropy_neurons"] = _neurons(result.neurons.sets)
    if result.depth is not None and result.depth.gap is not None:
        made["explained_gap"] = _explained(result.depth.gap)
    if result.depth is not None and result.depth.fixed:
        made["entropy_by_activation"] = _by_activation(result.depth.fixed)
    return made


# -- private, in the order of the page --


def _entropies(result: ConfidenceResult) -> Figure:
    edges = np.asarray(result.texts[0].histogram_edges)
    return plots.curves(
        [Series(row.model, [100 * share for share in row.histogram]) for row in result.texts],
        (edges[:-1] + edges[1:]) / 2,
        title="Entropy of the next-token law on plain text",
        x_title="Entropy (nats)",
        y_title="% of tokens",
    )


def _reliability(calibrations: Sequence[tuple[str, Calibration]], title: str) -> Figure:
    series = [
        Series(
            name,
            [group.accuracy.value for group in calibration.curve],
            [group.accuracy.low for group in calibration.curve],
            [group.accuracy.high for group in calibration.curve],
            x=[group.confidence for group in calibration.curve],
            n=[group.n for group in calibration.curve],
        )
        for name, calibration in calibrations
    ]
    return plots.reliability(series, title=f"Reliability: {title}")


def choices_figure(choices: Choices) -> Figure:
    calibrations = [
        (name, calibration)
        for row in choices.answers
        for name, calibration in (
            (row.model, row.calibration),
            (f"{row.model}, one temperature", row.after),
        )
    ]
    return _reliability(calibrations, f"multiple choice, {choices.form}")


def _neurons(sets: Sequence[NeuronSet]) -> Figure:
    def log(variance: float) -> float:
        # LogitVar spans orders of magnitude; a variance of exactly zero has no logarithm.
        return math.log10(variance) if variance > 0 else math.nan

    clouds = [
        Series(
            f"{chosen.model}, all",
            [log(variance) for variance in chosen.cloud_logit_var],
            x=chosen.cloud_norm,
            role="control",
        )
        for chosen in sets
    ]
    candidates = [
        Series(
            f"{chosen.model} candidates",
            [log(neuron.logit_var) for neuron in chosen.candidates],
            x=[neuron.norm for neuron in chosen.candidates],
            labels=[
                f"neuron {chosen.layer}.{neuron.neuron}{', in both' if neuron.shared else ''}"
                for neuron in chosen.candidates
            ],
        )
        for chosen in sets
    ]
    return plots.scatter(
        clouds + candidates,
        title="Last-layer neurons by their weights",
        x_title="|w_out|",
        y_title="log10 LogitVar",
    )


def _explained(gap: Gap) -> Figure:
    rows = gap.explained
    return plots.bars(
        [f"{row.neurons}: {row.way}" for row in rows],
        [
            Series.of("share of the entropy gap explained", [row.share for row in rows], role="post"),
            Series.of("random sets of like norm", [row.random for row in rows], role="control"),
        ],
        title="What explains the entropy gap between base and post",
        y_title="Share of the gap",
        frame=(-1.0, 1.25),
    )


def _by_activation(fixed: Sequence[FixedValues]) -> Figure:
    return plots.curves(
        [
            Series(f"{row.model}, neuron {row.neuron}", row.entropy, x=np.linspace(0, 1, len(row.values)))
            for row in fixed
        ],
        title="Entropy with one neuron held at a value",
        x_title="Value, as a quantile of the neuron's own activations",
        y_title="Entropy (nats a token)",
    )
