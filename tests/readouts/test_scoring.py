"""Log-odds of two continuations, and what loops: equal to transformers' own logits, row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import steerlab as sl
from steerlab.models import Generation, LanguageModel, Prompt
from steerlab.readouts.repetition import loops
from steerlab.readouts.scoring import continuation_log_odds


def alone(model: LanguageModel, text: Prompt, start: int) -> float:
    """ln P of a text's tokens from a place on, by transformers' own forward of that text alone, float32."""
    ids = model.token_ids([text])[0]
    with torch.no_grad():
        law = model.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(law[at - 1, ids[at]]) for at in range(start, len(ids)))


@pytest.mark.parametrize(
    "ends", [(" Yes", " No"), (" Yes, gladly.", " No, never in my life."), (" a dog", " a")]
)
def test_log_odds_are_those_of_each_text_alone(ends: tuple[str, str]) -> None:
    model = sl.load("zoo:small-post")
    prompts = [
        model.instruction_prompt(text) for text in ("How do I feed a horse?", "Go.", "Is the sky blue?")
    ]
    found = continuation_log_odds(model, prompts, [ends[0]] * 3, [ends[1]] * 3)
    by_hand = []
    for prompt in prompts:
        texts = [replace(prompt, text=prompt.text + end) for end in ends]
        first, second = model.token_ids(texts)
        shortest = min(len(first), len(second))
        same = next((at for at in range(shortest) if first[at] != second[at]), shortest - 1)
        by_hand.append(alone(model, texts[0], same) - alone(model, texts[1], same))
    assert np.allclose(found, by_hand, atol=1e-5 * max(map(abs, by_hand)))


def test_batches_of_any_size_give_the_same() -> None:
    model = sl.load("zoo:small-post")
    prompts = [model.instruction_prompt("word " * (1 + row)) for row in range(6)]
    towards, away = [" Yes", " Yes and no"] * 3, [" No", " Never"] * 3
    whole = continuation_log_odds(model, prompts, towards, away)
    small = continuation_log_odds(model, prompts, towards, away, token_budget=1)
    assert np.allclose(whole, small, atol=1e-5 * np.abs(whole).max())


def test_what_loops() -> None:
    ids = [(1, 2) * 10, tuple(range(20)), (5,), (), (1, 2, 3, 4, 5, 6, 7, 8) * 2, (9,) * 30]
    assert loops([Generation("", each, True) for each in ids]).tolist() == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
