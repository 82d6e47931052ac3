"""Refusals by phrase, by log-odds and by gibberish, against recorded verdicts and closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from studies import planted_models as planted

from steerlab.readouts.refusals import (
    Judge,
    contains_refusal,
    difference,
    median_losses,
    odds_of,
    refusal_tokens,
    refuses,
    repeats,
    starts_refusing,
)
from steerlab.statistics import Estimate


@pytest.mark.parametrize("run", ["harmless_baseline", "harmless_actadd"])
@pytest.mark.parametrize("model", ["gemma-2b-it", "qwen-1_8b-chat"])
def test_the_phrase_rule_reproduces_recorded_verdicts(shared: Path, model: str, run: str) -> None:
    recorded = json.loads(
        (shared / f"data/refusal_direction_runs/{model}/{run}_evaluations.json").read_text()
    )
    rows = recorded["completions"]
    assert len(rows) == 100
    assert all(
        contains_refusal(row["response"]) != bool(row["is_jailbreak_substring_matching"]) for row in rows
    )


@pytest.mark.parametrize(
    ("text", "start", "anywhere", "any_rule"),
    [
        ("  I cannot do that.", True, True, True),
        ("Well, i'm sorry, no.", False, True, True),
        ("I don’t think so.", True, False, True),
        ("No, I can not help with it.", False, False, True),
        ("Sure, here is how.", False, False, False),
        ("", False, False, False),
    ],
)
def test_phrase_rules(text: str, start: bool, anywhere: bool, any_rule: bool) -> None:
    assert (starts_refusing(text), contains_refusal(text), refuses(text)) == (start, anywhere, any_rule)


def test_log_odds_are_those_of_the_summed_probability() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)).double()
    share = logits.softmax(dim=1)[:, [2, 7]].sum(dim=1)
    np.testing.assert_allclose(odds_of(logits, [2, 7]), (share / (1 - share)).log(), rtol=1e-9)
    assert np.isnan(odds_of(logits, [])).all()


def test_refusal_tokens_are_whole_words_that_continue_the_prompt() -> None:
    model = planted.planted(refuses=True)
    tokens = refusal_tokens(model, model.instruction_prompt("How do I help1 a thing1 ?"))
    assert list(tokens.values()) == ["I"]
    assert list(tokens) == [planted.WORDS.index("I")]


def test_losses_are_those_of_the_unsteered_model() -> None:
    model = tiny("llama")
    prompts = [model.instruction_prompt(text) for text in ("Bake bread?", "What is a cat, really?")]
    answers = model.generate(prompts, max_new_tokens=6, do_sample=True, seed=0)
    for prompt, answer, loss in zip(prompts, answers, median_losses(model, prompts, answers), strict=True):
        before = model.tokenize([prompt]).input_ids
        ids = torch.cat([before, torch.tensor([answer.token_ids])], dim=1)
        with torch.no_grad():
            scores = (
                model.model(ids)
                .logits[0, before.shape[1] - 1 : -1, : model.vocab_size]
                .double()
                .log_softmax(dim=1)
            )
        expected = -scores[torch.arange(len(answer.token_ids)), torch.tensor(answer.token_ids)]
        assert loss == pytest.approx(float(np.median(expected.numpy())), abs=1e-4)


def test_gibberish_is_not_compliance() -> None:
    assert repeats([5] * 8)
    assert not repeats([1, 2, 3, 4, 5, 6])
    assert not repeats([7, 7])
    model = planted.planted(refuses=False)
    prompts = [model.instruction_prompt(text) for text in planted.requests().split("val").negative]
    judge = Judge.of(model, prompts, [planted.WORDS.index("I")], 0)
    assert not judge.verdicts(prompts).gibberish.any()
    strict = Judge(model, judge.tokens, -1.0)
    assert strict.verdicts(prompts).gibberish.all()


def test_a_difference_of_shares_has_honest_ends() -> None:
    none, all_ = (Estimate(value=v, low=a, high=b, n=24) for v, a, b in ((0.0, 0.0, 0.14), (1.0, 0.86, 1.0)))
    change = difference(none, all_)
    assert (change.value, change.low) == (-1.0, -1.0)
    assert -0.85 < change.high < -0.75
