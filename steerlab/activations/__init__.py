"""Reading states: `capture` runs a model over prompts and hands back rows, or streams them into `Moments`."""

from __future__ import annotations

from steerlab.activations.differences import DIFFERENCE, capture_differences
from steerlab.activations.moments import Label, Moments, plain_label
from steerlab.activations.reading import capture
from steerlab.activations.states import Activations
from steerlab.activations.sweep import Recording, record, sweep

__all__ = [
    "DIFFERENCE",
    "Activations",
    "Label",
    "Moments",
    "Recording",
    "capture",
    "capture_differences",
    "plain_label",
    "record",
    "sweep",
]
