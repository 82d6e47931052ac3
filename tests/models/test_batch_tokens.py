"""One number of tokens for every forward pass: more passes, the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab.batching import batch_tokens, tokens_of_a_batch
from steerlab.models import LanguageModel
from steerlab.readouts.sampling import sample_tokens

PROMPTS = ["A cat sat.", "A dog ran far away.", "No.", "It is so."]


def passes(model: LanguageModel, work: Callable[[], object]) -> int:
    """How many forward passes a piece of work takes."""
    seen: list[int] = []
    hook = model.model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    try:
        work()
    finally:
        hook.remove()
    return len(seen)


@pytest.mark.parametrize("what", ["capture", "logits", "generate"])
def test_fewer_tokens_are_more_passes(what: str) -> None:
    model = tiny()
    work: Callable[[], object] = {
        "capture": lambda: sl.capture(model, PROMPTS, "resid_post"),
        "logits": lambda: model.logits(PROMPTS),
        "generate": lambda: model.generate(PROMPTS, max_new_tokens=1),
    }[what]
    assert passes(model, work) == 1
    with batch_tokens(1):
        assert passes(model, work) == len(PROMPTS)


def test_beams_count_as_rows_and_an_assistant_takes_one_prompt() -> None:
    model = tiny()
    longest = max(model.lengths(PROMPTS)) + 1

    def written(**search: object) -> int:
        return passes(model, lambda: model.generate(PROMPTS, max_new_tokens=1, **search))  # type: ignore[arg-type]

    with batch_tokens(2 * longest * len(PROMPTS)):
        assert (written(), written(num_beams=2), written(num_beams=4)) == (1, 1, 2)
    with batch_tokens(10_000):
        assert written(assistant=tiny("llama")) >= len(PROMPTS)


def test_states_and_samples_stay_what_they_were() -> None:
    model = tiny()
    prompts = [
        ids
        for ids, length in zip(
            model.tokenize(PROMPTS).input_ids.tolist(), model.lengths(PROMPTS), strict=True
        )
        if length
    ]

    def drawn() -> torch.Tensor:
        found = sample_tokens(
            model.model, prompts, vocab_size=model.vocab_size, stop_ids=(), samples=3, max_new_tokens=4
        )
        return torch.from_numpy(found.tokens)

    before, tokens = sl.capture(model, PROMPTS, "resid_post.1"), drawn()
    with batch_tokens(9):
        after, again = sl.capture(model, PROMPTS, "resid_post.1"), drawn()
    site = sl.Site("resid_post", 1)
    torch.testing.assert_close(before[site], after[site], atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens, again)


def test_the_number_holds_inside_alone_and_is_positive() -> None:
    assert tokens_of_a_batch(2048) == 2048
    with batch_tokens(16), batch_tokens(None):
        assert tokens_of_a_batch(2048) == 2048
    with pytest.raises(sl.SteerlabError, match="at least 1"), batch_tokens(0):
        pass
    assert tokens_of_a_batch(2048) == 2048
