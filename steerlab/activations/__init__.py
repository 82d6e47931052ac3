"""Reading states: `capture` runs a model over prompts and hands back rows, or streams them into `Moments`."""

from __future__ import annotations

from steerlab.activations.moments import Label, Moments, plain_label
from steerlab.activations.reading import capture
from steerlab.activations.states import Activations
from steerlab.activations.sweep import Recording, record, sweep

__all__ = ["Activations", "Label", "Moments", "Recording", "capture", "plain_label", "record", "sweep"]
