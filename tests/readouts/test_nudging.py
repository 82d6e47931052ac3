"""Nudging a base model with another one's words, against laws known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st
from toy import NONE, Chain, fixed, model_of

from steerlab.errors import PromptError
from steerlab.readouts import sampling
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.nudging import first_word, not_nudged, nudge, nudge_words
from steerlab.readouts.sampling import sample_tokens
from steerlab.studies._branching import estimators


def test_a_uniform_base_is_nudged_everywhere_or_nowhere() -> None:
    """C11: base uniform over four, γ = .3: every step nudged, process BF 1, base BF 4; γ = .2: none, both 4."""
    base, aligned = model_of(fixed([0.25] * 4)), model_of(fixed([0.1, 0.7, 0.1, 0.1]))
    always = nudge(base, aligned, [[0]] * 3, gamma=0.3, law=NONE, max_new_tokens=12)
    assert always.nudged.all()
    assert (always.tokens == 1).all()
    assert math.exp(estimators.sequence_weighted(always.process)) == pytest.approx(1)
    assert math.exp(estimators.sequence_weighted(always.base)) == pytest.approx(4, abs=1e-5)
    assert (always.share == 1).all()
    never = nudge(base, aligned, [[0]] * 3, gamma=0.2, law=NONE, max_new_tokens=12)
    assert not never.nudged.any()
    for values in (never.process, never.base):
        assert math.exp(estimators.sequence_weighted(values)) == pytest.approx(4, abs=1e-5)


def test_the_process_law_fits_its_own_draws() -> None:
    rows = torch.tensor(
        [[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.3, 0.3, 0.2, 0.2]]
    )
    found = nudge(
        model_of(Chain(rows)),
        model_of(fixed([0.1, 0.7, 0.1, 0.1])),
        [[0]] * 40,
        gamma=0.5,
        law=NONE,
        samples=20,
    )
    assert abs(estimators.martingale_z(found.process, found.surprisal)) < 4
    assert 0.1 < found.nudged.mean() < 0.9
    assert np.isnan(found.away(1)[found.nudged]).all()
    np.testing.assert_array_equal(np.isnan(found.away(2)) | ~np.isnan(found.away(1)), True)


def test_forced_prefixes_and_random_tokens() -> None:
    base, aligned = model_of(fixed([0.25] * 4)), model_of(fixed([0.1, 0.7, 0.1, 0.1]))
    forced = nudge(base, aligned, [[0]] * 3, prefix=5, law=NONE, max_new_tokens=12)
    assert forced.nudged[:, :5].all()
    assert not forced.nudged[:, 5:].any()
    random = nudge(base, None, [[0]] * 60, gamma=0.3, law=NONE, max_new_tokens=12)
    assert np.bincount(random.tokens.ravel(), minlength=4) / random.tokens.size == pytest.approx(
        [0.25] * 4, abs=0.03
    )


def test_no_nudge_equals_plain_sampling() -> None:
    model = tiny("llama")
    prompts = [model.tokenize([text]).input_ids[0].tolist() for text in ("the cat", "a dog sat on")]
    law = SamplingLaw()
    plain = sample_tokens(
        model.model,
        prompts,
        vocab_size=model.vocab_size,
        stop_ids={1},
        samples=3,
        max_new_tokens=8,
        law=law,
        seed=5,
    )
    found = nudge(
        model, tiny("llama", seed=1), prompts, gamma=0.0, samples=3, max_new_tokens=8, law=law, seed=5
    )
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    expected = not_nudged(plain)
    np.testing.assert_array_equal(found.nudged, expected.nudged)
    for name in ("base", "process", "surprisal"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


def test_ended_rows_leave_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all free steps end a text: every row is what it is in a batch of its own."""
    rows = torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.2, 0.4], [0.3, 0.3, 0.4]])
    base, aligned = model_of(Chain(rows), (2,)), model_of(fixed([0.6, 0.1, 0.3]), (2,))
    together = nudge(base, aligned, [[0], [1, 0]], gamma=0.45, law=NONE, samples=20, max_new_tokens=9)
    monkeypatch.setattr(sampling, "_BATCH_CELLS", 3)
    alone = nudge(base, aligned, [[0], [1, 0]], gamma=0.45, law=NONE, samples=20, max_new_tokens=9)
    for name in ("prompt", "tokens", "process", "base", "surprisal", "nudged"):
        np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))
    assert 0 < together.nudged.sum() < (together.tokens >= 0).sum()
    after = np.cumsum(together.tokens == 2, axis=1) - (together.tokens == 2) > 0
    np.testing.assert_array_equal(together.tokens == -1, after)


def test_a_nudger_reads_what_it_is_asked_for() -> None:
    """A prompt is read once; behind its prefix a nudger reads no more, and a model that nudges itself reads once."""
    base, aligned = model_of(fixed([0.25] * 4)), model_of(fixed([0.1, 0.7, 0.1, 0.1]))

    def read(nudger: Any, **options: Any) -> tuple[int, int]:
        base.model.tokens_read = aligned.model.tokens_read = 0
        nudge(base, nudger, [[0, 1, 2]], samples=5, max_new_tokens=6, law=NONE, **options)
        return base.model.tokens_read, aligned.model.tokens_read

    whole = 3 + 5 * 5
    assert read(aligned) == (whole, whole)
    assert read(aligned, prefix=2) == (whole, 3 + 5 * 1)
    assert read(aligned, gamma=0.0) == (whole, 0)
    assert read(base) == (whole, 0)
    assert read(None) == (whole, 0)


def test_nudging_needs_one_vocabulary_and_words_do_not(shared: Path) -> None:
    from steerlab.models import load_model

    base, other = tiny("llama"), load_model(shared / "models" / "stories260K")
    with pytest.raises(PromptError, match="use nudge_words"):
        nudge(base, other, [[0, 5]])
    with pytest.raises(PromptError, match="is a probability"):
        nudge(base, None, [[0]], gamma=2)
    with pytest.raises(PromptError, match="at least one prompt"):
        nudge(base, None, [])
    (text, share), *_ = nudge_words(base, other, ["Once upon a time"], gamma=0.9, max_new_tokens=6)
    assert text.strip()
    assert 0 < share <= 1


@given(st.text(alphabet=" \nabc.", max_size=12))
def test_first_words_are_beginnings(text: str) -> None:
    word = first_word(text)
    assert text.startswith(word)
    assert len(word.split()) == (1 if text.strip() else 0)
