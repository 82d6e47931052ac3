"""Single neurons: which of the last layer set a model's entropy, what each does, and which two models share.

`checkpoint_neurons` reads three tensors, `NeuronHead` ablates last-layer neurons in closed form.
"""

from __future__ import annotations

from steerlab.neurons.effects import all_effects, scaled_neurons
from steerlab.neurons.head import NeuronHead
from steerlab.neurons.listing import EntropyNeurons, entropy_neurons
from steerlab.neurons.weights import checkpoint_neurons

__all__ = [
    "EntropyNeurons",
    "NeuronHead",
    "all_effects",
    "checkpoint_neurons",
    "entropy_neurons",
    "scaled_neurons",
]
