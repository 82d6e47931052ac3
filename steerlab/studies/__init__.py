"""One private package a question; their public functions by name, imported when first used.

A package registers its study (`steerlab.registry.Study`) and holds `study.py` (the function), `result.py`,
`sentences.py` and its own measures. Studies of other people that are installed are here by their names as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from steerlab.old_names import old_names
from steerlab.registry import STUDIES

if TYPE_CHECKING:
    from steerlab.studies._branching.single import branching_factor
    from steerlab.studies._branching.steered import branching_by_strength
    from steerlab.studies._branching.study import branching
    from steerlab.studies._confidence.choices import choice_confidence, read_choices
    from steerlab.studies._confidence.study import confidence
    from steerlab.studies._contrast.study import contrast
    from steerlab.studies._difference.study import difference
    from steerlab.studies._knowledge.maps import answer, trace
    from steerlab.studies._knowledge.noise import noise_trace
    from steerlab.studies._knowledge.noise_effects import facts_of, noise_effects
    from steerlab.studies._knowledge.pairs import TracingPairs, tracing_pairs
    from steerlab.studies._knowledge.statistics import compare_maps
    from steerlab.studies._knowledge.study import knowledge
    from steerlab.studies._pair import Pair, amounts_of
    from steerlab.studies._refusal.study import refusal
    from steerlab.studies._stages.readings import StageReadings, controls_of, read_stage
    from steerlab.studies._stages.study import (
        compare_stages,
        known_stages,
        require_stages,
        stages,
    )
    from steerlab.studies._transfer.study import transfer, transfer_amount
    from steerlab.studies._transfer.unlock import Unlocked, unlock
    from steerlab.studies._truthfulness.study import truthfulness

#: Parts of studies that people use by themselves; the studies are found in the registry.
_PARTS = {
    "Pair": "_pair",
    "StageReadings": "_stages.readings",
    "TracingPairs": "_knowledge.pairs",
    "amounts_of": "_pair",
    "Unlocked": "_transfer.unlock",
    "answer": "_knowledge.maps",
    "branching_by_strength": "_branching.steered",
    "branching_factor": "_branching.single",
    "choice_confidence": "_confidence.choices",
    "compare_maps": "_knowledge.statistics",
    "compare_stages": "_stages.study",
    "controls_of": "_stages.readings",
    "facts_of": "_knowledge.noise_effects",
    "noise_effects": "_knowledge.noise_effects",
    "known_stages": "_stages.study",
    "noise_trace": "_knowledge.noise",
    "read_choices": "_confidence.choices",
    "read_stage": "_stages.readings",
    "require_stages": "_stages.study",
    "trace": "_knowledge.maps",
    "tracing_pairs": "_knowledge.pairs",
    "transfer_amount": "_transfer.study",
    "unlock": "_transfer.unlock",
}

#: Names that moved out, for one more release.
_MOVED = {
    "Headline": "results",
    "NeuronHead": "neurons",
    "SamplingLaw": "readouts",
    "Selection": "selection",
    "SideEffects": "steering",
    "SkippedResult": "results",
    "StudyResult": "results",
    "Table": "results",
    "all_effects": "neurons",
    "checkpoint_neurons": "neurons",
    "nudge": "readouts",
    "nudge_words": "readouts",
    "read_scores": "selection",
    "resample": "readouts",
    "result_from_dict": "results",
    "scaled_neurons": "neurons",
    "select_direction": "selection",
    "side_effects": "steering",
    "survivors": "selection",
}

_moved = old_names(__name__, {name: f"steerlab.{room}.{name}" for name, room in _MOVED.items()})

__all__ = [
    "Pair",
    "StageReadings",
    "TracingPairs",
    "Unlocked",
    "amounts_of",
    "answer",
    "branching",
    "branching_by_strength",
    "branching_factor",
    "choice_confidence",
    "compare_maps",
    "compare_stages",
    "confidence",
    "contrast",
    "controls_of",
    "difference",
    "facts_of",
    "knowledge",
    "known_stages",
    "noise_effects",
    "noise_trace",
    "read_choices",
    "read_stage",
    "refusal",
    "require_stages",
    "stages",
    "trace",
    "tracing_pairs",
    "transfer",
    "transfer_amount",
    "truthfulness",
    "unlock",
]


def __getattr__(name: str) -> object:
    value: object
    if name.startswith("_"):  # a package of ours while it is being imported, or nothing
        raise AttributeError(f"steerlab.studies has no {name!r}.")
    if name in _PARTS:
        value = getattr(import_module(f"steerlab.studies.{_PARTS[name]}"), name)
    elif name in STUDIES:
        value = STUDIES[name].load()
    elif name in _MOVED:
        return _moved(name)
    else:
        raise AttributeError(f"steerlab.studies has no {name!r}: it has {', '.join(__dir__())}.")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_PARTS, *STUDIES})
