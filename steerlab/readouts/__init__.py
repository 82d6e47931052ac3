"""What a model is asked and what is read from its answers, shared by the studies.

Sampling with the law that was sampled from, resampling, nudging, questions and answers, refusals, requests, confidence,
agreement of two directions, what the surface of prompts tells, and what states say in words.
"""

from __future__ import annotations

from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.logit_lens import Lens, lens, patchscope
from steerlab.readouts.nudging import nudge, nudge_words
from steerlab.readouts.resampling import resample
from steerlab.readouts.sampling import sample_tokens
from steerlab.readouts.surface import Shortcuts, shortcuts, shortcuts_table

__all__ = [
    "Lens",
    "SamplingLaw",
    "Shortcuts",
    "lens",
    "nudge",
    "nudge_words",
    "patchscope",
    "resample",
    "sample_tokens",
    "shortcuts",
    "shortcuts_table",
]
