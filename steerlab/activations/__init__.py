"""Reading states: `capture` runs a model over prompts and hands back rows, or streams them into `Moments`."""

from __future__ import annotations

from steerlab.activations.attention import attention_pattern
from steerlab.activations.attribution import PatchAgreement, PatchAttribution
from steerlab.activations.differences import DIFFERENCE, capture_differences
from steerlab.activations.measures import (
    Divergence,
    LogitDifference,
    LogProbability,
    PatchMeasure,
    Probability,
)
from steerlab.activations.moments import Label, Moments, plain_label
from steerlab.activations.patches import Cell, StatePatch, window
from steerlab.activations.patching import Cost, Patched, PatchResult, PatchSweep
from steerlab.activations.reading import capture
from steerlab.activations.sources import Mapped, Mean, Noise, RandomShift, Run, Shift, Source, Zero
from steerlab.activations.states import Activations
from steerlab.activations.sweep import Recording, record, sweep
from steerlab.old_names import old_names

__all__ = [
    "DIFFERENCE",
    "Activations",
    "Cell",
    "Cost",
    "Divergence",
    "Label",
    "LogProbability",
    "LogitDifference",
    "Mapped",
    "Mean",
    "Moments",
    "Noise",
    "PatchAgreement",
    "PatchAttribution",
    "PatchMeasure",
    "PatchResult",
    "PatchSweep",
    "Patched",
    "Probability",
    "RandomShift",
    "Recording",
    "Run",
    "Shift",
    "Source",
    "StatePatch",
    "Zero",
    "attention_pattern",
    "capture",
    "capture_differences",
    "plain_label",
    "record",
    "sweep",
    "window",
]

__getattr__ = old_names(__name__, {"Patch": "steerlab.activations.StatePatch"})
