"""One module a question; here their functions and results by name, imported when first used.

`studies.truthfulness` is the function although its module has the same name: importing a submodule binds the
module to the package, and `_Facade` turns that binding into the function.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerlab.studies.branching import branching
    from steerlab.studies.branching_steered import branching_by_strength
    from steerlab.studies.choice_confidence import choice_confidence, read_choices
    from steerlab.studies.confidence import confidence
    from steerlab.studies.confidence_depth import all_effects, scaled_neurons
    from steerlab.studies.entropy_neurons import checkpoint_neurons
    from steerlab.studies.knowledge import knowledge
    from steerlab.studies.knowledge_maps import answer, trace
    from steerlab.studies.knowledge_statistics import compare_maps
    from steerlab.studies.neuron_head import NeuronHead
    from steerlab.studies.noise_tracing import facts_of, noise_trace
    from steerlab.studies.nudging import nudge, nudge_words
    from steerlab.studies.refusal import refusal
    from steerlab.studies.resampling import resample
    from steerlab.studies.result import Headline, SkippedResult, StudyResult, Table, result_from_dict
    from steerlab.studies.sampling import SamplingLaw
    from steerlab.studies.selection import Selection, read_scores, select_direction, survivors
    from steerlab.studies.side_effects import SideEffects, side_effects
    from steerlab.studies.tracing_pairs import TracingPairs, tracing_pairs
    from steerlab.studies.transfer import transfer, transfer_amount
    from steerlab.studies.truthfulness import truthfulness
    from steerlab.studies.unlock import Unlocked, unlock

_STUDIES = ("truthfulness", "refusal", "confidence", "branching", "knowledge")
#: Modules that are called like their function.
_FUNCTIONS = (*_STUDIES, "side_effects", "choice_confidence", "tracing_pairs", "transfer", "unlock")
_NAMES = {
    **{study: study for study in _STUDIES},
    "Headline": "result",
    "SkippedResult": "result",
    "StudyResult": "result",
    "Table": "result",
    "result_from_dict": "result",
    "Selection": "selection",
    "read_scores": "selection",
    "select_direction": "selection",
    "survivors": "selection",
    "SideEffects": "side_effects",
    "side_effects": "side_effects",
    "Unlocked": "unlock",
    "SamplingLaw": "sampling",
    "branching_by_strength": "branching_steered",
    "TracingPairs": "tracing_pairs",
    "tracing_pairs": "tracing_pairs",
    "answer": "knowledge_maps",
    "trace": "knowledge_maps",
    "compare_maps": "knowledge_statistics",
    "facts_of": "noise_tracing",
    "noise_trace": "noise_tracing",
    "choice_confidence": "choice_confidence",
    "read_choices": "choice_confidence",
    "NeuronHead": "neuron_head",
    "all_effects": "confidence_depth",
    "checkpoint_neurons": "entropy_neurons",
    "scaled_neurons": "confidence_depth",
    "nudge": "nudging",
    "nudge_words": "nudging",
    "resample": "resampling",
    "transfer": "transfer",
    "transfer_amount": "transfer",
    "unlock": "unlock",
}

__all__ = [
    "Headline",
    "NeuronHead",
    "SamplingLaw",
    "Selection",
    "SideEffects",
    "SkippedResult",
    "StudyResult",
    "Table",
    "TracingPairs",
    "Unlocked",
    "all_effects",
    "answer",
    "branching",
    "branching_by_strength",
    "checkpoint_neurons",
    "choice_confidence",
    "compare_maps",
    "confidence",
    "facts_of",
    "knowledge",
    "noise_trace",
    "nudge",
    "nudge_words",
    "read_choices",
    "read_scores",
    "refusal",
    "resample",
    "result_from_dict",
    "scaled_neurons",
    "select_direction",
    "side_effects",
    "survivors",
    "trace",
    "tracing_pairs",
    "transfer",
    "transfer_amount",
    "truthfulness",
    "unlock",
]


class _Facade(ModuleType):
    """This package, with a study's function under its name rather than its module."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FUNCTIONS and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"steerlab.studies has no {name!r}: it has {', '.join(__all__)}")
    value = getattr(import_module(f"steerlab.studies.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Facade
