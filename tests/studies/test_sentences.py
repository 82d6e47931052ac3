"""No study says "nan": a stored result whose every number is unknown still speaks in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from steerlab.neurons.gap import Explained, Gap
from steerlab.results import result_from_dict
from steerlab.statistics import Estimate
from steerlab.studies._confidence import sentences as of_confidence
from steerlab.studies._confidence.depth import Depth
from steerlab.studies._knowledge import sentences as of_knowledge

RUN = Path(__file__).parents[1] / "goldens" / "compare" / "results"


def unknown(stored: Any) -> Any:
    """The same with every estimate unknown."""
    if isinstance(stored, dict):
        blank = (
            {"value": None, "low": None, "high": None} if {"value", "low", "high"} <= stored.keys() else {}
        )
        return {**{name: unknown(value) for name, value in stored.items()}, **blank}
    return [unknown(value) for value in stored] if isinstance(stored, list) else stored


def result_of(name: str) -> Any:
    return result_from_dict(unknown(json.loads((RUN / f"{name}.json").read_text("utf-8"))))


def test_unknown_numbers_are_never_nan_in_a_sentence() -> None:
    result = result_of("confidence")
    said = [
        *of_confidence.text_summary(result.texts, result.changes),
        *of_confidence.answer_summary(result.answers, result.changes, result.form, result.words),
        *of_confidence.neuron_summary(result.neurons),
        *of_confidence.depth_summary(result.depth),
        *of_knowledge.sentences(result_of("knowledge")),
    ]
    assert len(said) > 10
    assert not [sentence for sentence in said if "nan" in sentence.lower().split()]
    assert not [
        sentence for sentence in said if "nan," in sentence or "nan:" in sentence or "nan)" in sentence
    ]


def test_without_random_neurons_nothing_is_compared_with_them() -> None:
    known, nothing = Estimate(value=0.4, low=0.3, high=0.5), Estimate(value=math.nan)
    for share, words in ((known, "without random neurons of like norm"), (nothing, "is not known")):
        row = Explained(
            neurons="entropy neurons of base", n=10, way="activations swapped", share=share, random=nothing
        )
        gap = Gap(base=known, post=known, gap=known, explained=(row,), crossed=())
        (sentence,) = of_confidence.depth_summary(Depth(gap=gap))
        assert words in sentence
