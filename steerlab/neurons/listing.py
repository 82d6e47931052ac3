"""A model's entropy-neuron candidates, and what ablating each does to its confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steerlab import plots
from steerlab.datasets import plain_text
from steerlab.models import LanguageModel, OutputWeights
from steerlab.neurons.effects import all_effects, within
from steerlab.neurons.head import NeuronHead
from steerlab.neurons.weights import (
    Neurons,
    OutputSpace,
    Rule,
    Spaces,
    checkpoint_neurons,
    layer_neurons,
    with_kurtosis,
)
from steerlab.plots import Series
from steerlab.record import Record
from steerlab.statistics import Number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_TEXTS = 20  # packaged passages that are read where none are given


class ListedNeuron(Record):
    """One neuron of the last layer.

    norm: |w_out|. logit_var, null_share: see `neurons.weights`. candidate: whether the rule chose it. entropy,
    absolute: change of the entropy and of its absolute value under mean ablation, nats a token; via_norm: the share
    that acts through the final norm; loss: change of the loss. NaN where the model itself was not run.
    """

    neuron: int
    norm: Number
    logit_var: Number
    null_share: Number
    candidate: bool
    entropy: Number = float("nan")
    absolute: Number = float("nan")
    via_norm: Number = float("nan")
    loss: Number = float("nan")


class EntropyNeurons(Record):
    """Neurons of the last layer, candidates first in the rule's order."""

    model: str
    layer: int
    rule: Literal["published", "null space", "universal"]
    width: int
    null_size: int
    rows: tuple[ListedNeuron, ...]

    @property
    def candidates(self) -> tuple[ListedNeuron, ...]:
        """The chosen ones."""
        return tuple(row for row in self.rows if row.candidate)

    def __str__(self) -> str:
        chosen = ", ".join(f"{self.layer}.{row.neuron}" for row in self.candidates)
        return f"{self.model}: entropy neurons by the {self.rule} rule: {chosen}"

    def plot(self) -> Figure:
        """Output norm against LogitVar."""

        def cloud(name: str, rows: Sequence[ListedNeuron]) -> Series:
            return Series(
                name,
                [float(np.log10(row.logit_var)) if row.logit_var > 0 else float("nan") for row in rows],
                x=[row.norm for row in rows],
                labels=[f"neuron {self.layer}.{row.neuron}" for row in rows],
                role="other",
            )

        others = [row for row in self.rows if not row.candidate]
        return plots.scatter(
            [*([cloud("others", others)] if others else []), cloud("candidates", self.candidates)],
            title=f"Last-layer neurons of {self.model}",
            x_title="|w_out|",
            y_title="log10 LogitVar",
        )


def entropy_neurons(
    source: LanguageModel | OutputWeights,
    *,
    count: int = 10,
    rule: Rule = "published",
    texts: Sequence[str] | None = None,
    every: bool = False,
    seed: int = 0,
) -> EntropyNeurons:
    """List the last layer's entropy-neuron candidates; of a loaded model also what ablating each does.

    Args:
        source: a loaded model, or three tensors of a checkpoint (`models.read_output_weights`).
        count: candidates.
        rule: "published", "null space" or "universal", see `Neurons.chosen`.
        texts: what confidence is measured on; None takes the packaged passages.
        every: list all neurons of the layer behind the candidates.

    Raises:
        ModelError: a model without a final norm, or with a norm behind the last MLP.
    """
    if isinstance(source, LanguageModel):
        neurons, space, tensors = _of_model(source, seed)
        name = source.name
    else:
        neurons, space = checkpoint_neurons(source, seed=seed)
        tensors, name = (source.w_out, source.unembedding, source.gain), "checkpoint"
    if rule == "universal":
        neurons = with_kurtosis(neurons, *tensors, space)
    chosen = neurons.chosen(rule, count)
    listed = [*chosen, *(n for n in range(len(neurons.norm)) if every and n not in chosen)]
    effects = _effects(source, texts, listed) if isinstance(source, LanguageModel) else {}
    rows = [
        ListedNeuron(
            neuron=neuron,
            norm=float(neurons.norm[neuron]),
            logit_var=float(neurons.logit_var[neuron]),
            null_share=float(neurons.null_share[neuron]),
            candidate=row < len(chosen),
            **{field: float(values[row]) for field, values in effects.items()},
        )
        for row, neuron in enumerate(listed)
    ]
    return EntropyNeurons(
        model=name,
        layer=neurons.layer,
        rule=rule,
        width=len(neurons.norm),
        null_size=space.null_size,
        rows=tuple(rows),
    )


# -- private --


def _of_model(model: LanguageModel, seed: int) -> tuple[Neurons, OutputSpace, tuple[Any, Any, Any]]:
    last = model.n_layers - 1
    space = Spaces(seed).of(model)
    tensors = (model.w_into_stream(last), model.unembedding, model.final_norm_gain)
    return layer_neurons(model, last, space), space, tensors


def _effects(model: LanguageModel, texts: Sequence[str] | None, neurons: list[int]) -> dict[str, Any]:
    lines = list(texts) if texts is not None else plain_text()[:_TEXTS]
    effects = all_effects(NeuronHead(model, within(model, lines)), neurons)
    return {
        "entropy": effects.signed,
        "absolute": effects.total,
        "via_norm": effects.through_norm(),
        "loss": effects.loss,
    }
