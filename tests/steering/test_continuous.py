"""Continuous batching writes what `generate` writes, steered through slots, and refuses hooks that would not act."""

from __future__ import annotations

import pytest
import torch

from steerlab import zoo
from steerlab.directions import Direction
from steerlab.errors import ModelError, SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import Ablate, Add, Slots, generate_batch

SITE = Site("resid_post", 1)
QUESTIONS = (
    "How do I feed a horse?",
    "What is 12 + 13?",
    "Tell me a story about a small dog and a river.",
    "Why?",
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    try:
        return zoo.load_bundled("small-post")
    except ModelError as error:
        pytest.skip(str(error))


def direction(model: LanguageModel) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return Direction(vectors={SITE: vector}, model_name=model.name, fingerprint=model.fingerprint)


def test_the_same_tokens_as_generate_steered_or_not(model: LanguageModel) -> None:
    prompts = [model.instruction_prompt(text) for text in QUESTIONS]
    plain = model.generate(prompts, max_new_tokens=16)
    assert [one.token_ids for one in generate_batch(model, prompts, max_new_tokens=16)] == [
        one.token_ids for one in plain
    ]
    slots = Slots(model, [SITE], rank=1)
    try:
        for edit in (Add(direction(model), strength=3.0), Ablate(direction(model), sites=[SITE])):
            with model.steering(edit):
                expected = model.generate(prompts, max_new_tokens=16)
            with slots.steering(edit):
                found = generate_batch(model, prompts, max_new_tokens=16)
            assert [one.token_ids for one in found] == [one.token_ids for one in expected]
            assert [one.finished for one in found] == [one.finished for one in expected]
    finally:
        slots.remove()


def test_hooks_are_refused_before_anything_runs(model: LanguageModel) -> None:
    with pytest.raises(SteeringError, match="put constant interventions into Slots"):  # noqa: SIM117  # one block each
        with model.steering(Add(direction(model))):
            generate_batch(model, ["a"], max_new_tokens=2)
    with pytest.raises(SteeringError, match="at least one token"):
        generate_batch(model, ["a"], max_new_tokens=0)
