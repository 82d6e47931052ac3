"""What ablating each last-layer neuron does to confidence, and neurons scaled at inference.

Everything works on the last stream of some texts (`NeuronHead`): nothing is run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from steerlab.models import LanguageModel, Site
from steerlab.neurons.head import NeuronHead
from steerlab.progress import track
from steerlab.steering import Scale

_CELLS = 2**26  # logits held at once


@dataclass(frozen=True)
class AllEffects:
    """Every neuron of the last layer mean-ablated, means over tokens, nats, [neuron].

    total, direct: |change of entropy|, norm recomputed and its scale frozen. signed: change of entropy. loss:
    change of loss.
    """

    total: Float[np.ndarray, " neuron"]
    direct: Float[np.ndarray, " neuron"]
    signed: Float[np.ndarray, " neuron"]
    loss: Float[np.ndarray, " neuron"]

    def through_norm(self, floor: float = 1e-4) -> Float[np.ndarray, " neuron"]:
        """1 − direct / total; NaN below the floor."""
        return np.where(self.total > floor, 1 - self.direct / np.maximum(self.total, floor), np.nan)


def all_effects(head: NeuronHead, neurons: Sequence[int] | None = None) -> AllEffects:
    """Every neuron, or those named."""
    chosen = range(head.n_neurons) if neurons is None else neurons
    before, loss = head.entropy(head.logits), head.loss(head.logits)
    rows = []
    for neuron in track(list(chosen), "ablating neurons", len(chosen)):
        after, scored = head.confidence_of(neuron)
        change = after - before
        direct = head.confidence_of(neuron, frozen=True)[0] - before
        rows.append(
            [
                float(change.abs().mean()),
                float(direct.abs().mean()),
                float(change.mean()),
                float((scored - loss).mean()),
            ]
        )
    return AllEffects(*np.array(rows).T)


def scaled_neurons(
    model: LanguageModel, neurons: Sequence[int], factor: float, *, layer: int | None = None
) -> Scale:
    """An intervention that multiplies neurons of a layer (the last by default): confidence up or down at inference."""
    at = model.n_layers - 1 if layer is None else layer
    return Scale(factor=factor, coordinates=list(neurons), sites=[Site("mlp_post", at)])


def within(model: LanguageModel, texts: Sequence[str]) -> list[str]:
    """As many texts as keep all logits within the memory meant for them; one at least."""
    room, kept = _CELLS // model.vocab_size, list[str]()
    for text, length in zip(texts, model.lengths(list(texts)), strict=True):
        room -= length
        if kept and room < 0:
            break
        kept.append(text)
    return kept
