"""Streaming: the text of `generate` in pieces, steered by the context it is read in, and left at any point."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny

from steerlab.directions import Direction
from steerlab.errors import SteerlabError
from steerlab.models import Generated, Generation, LanguageModel, PromptError, Site
from steerlab.steering import Add

PROMPT = "The capital of"


def read(pieces: Generator[str, None, Generation]) -> tuple[list[str], Generation]:
    """The pieces of a stream, and its value."""
    found: list[str] = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


def added(model: LanguageModel, **options: Any) -> Add:
    rows = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return Add(
        Direction({Site("resid_post", 1): rows}, model.name, model.fingerprint), strength=3.0, **options
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_pieces_are_what_generate_writes(family: str) -> None:
    model = tiny(family)
    (plain,) = model.generate([PROMPT], max_new_tokens=16)
    pieces, value = read(model.stream(PROMPT, max_new_tokens=16))
    assert value == plain
    assert "".join(pieces) == plain.text
    assert len(pieces) > 1
    edit = added(model, positions=Generated())
    with model.steering(edit):
        (steered,) = model.generate([PROMPT], max_new_tokens=16)
        assert read(model.stream(PROMPT, max_new_tokens=16))[1] == steered
    assert steered.token_ids != plain.token_ids


def test_a_character_of_several_tokens_comes_whole(tiny_llama: LanguageModel) -> None:
    """é is two tokens of the byte-level vocabulary, the tick three; each comes as one piece."""
    word = "café ✓!"
    ids = tiny_llama.tokenizer(word, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(word)
    from steerlab.models.streaming import _Text

    text, pieces = _Text(tiny_llama.tokenizer), []
    for end in range(1, len(ids) + 1):
        pieces.append(text.add(ids[:end]))
    assert "".join(pieces) == word
    assert "\ufffd" not in "".join(pieces)
    half = _Text(tiny_llama.tokenizer)
    assert half.add(ids[:4]) + half.rest(ids[:4]) == tiny_llama.tokenizer.decode(ids[:4])


def test_ends_and_contexts_end_a_stream() -> None:
    model = tiny("gpt2", bos=False)
    (free,) = model.generate([PROMPT], max_new_tokens=8)
    model.model.generation_config.eos_token_id = [1, free.token_ids[3]]
    expected = model.generate([PROMPT], max_new_tokens=8)[0]
    assert read(model.stream(PROMPT, max_new_tokens=8))[1] == expected
    assert expected.finished
    model.model.generation_config.eos_token_id = None
    assert model.context is not None
    long = "R" * 60
    assert read(model.stream(long, max_new_tokens=12))[1] == model.generate([long], max_new_tokens=12)[0]
    with pytest.raises(PromptError, match="context holds 64"):
        model.stream("R" * 65, max_new_tokens=3)
    with pytest.raises(SteerlabError, match="at least one"):
        model.stream(PROMPT, max_new_tokens=0)


def test_sampling_is_repeatable_and_follows_the_model(tiny_llama: LanguageModel) -> None:
    """First tokens of 400 streams against the model's probabilities, within three standard errors."""
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = read(tiny_llama.stream(PROMPT, seed=1, **options))
    assert torch.equal(torch.rand(2), expected)
    assert read(tiny_llama.stream(PROMPT, seed=1, **options)) == first
    assert read(tiny_llama.stream(PROMPT, seed=2, **options)) != first
    cold = read(tiny_llama.stream(PROMPT, seed=0, top_p=1e-6, **options))[1]
    assert cold == tiny_llama.generate([PROMPT], max_new_tokens=8)[0]
    draws = [
        read(tiny_llama.stream(PROMPT, seed=seed, max_new_tokens=1, do_sample=True))[1].token_ids[0]
        for seed in range(400)
    ]
    counts = torch.bincount(torch.tensor(draws), minlength=300) / 400
    law = tiny_llama.logits([PROMPT])[0].softmax(-1)
    assert float((counts - law).abs().sum()) < 3 * float((law * (1 - law) / 400).sqrt().sum())


def test_a_stream_left_in_the_middle_leaves_nothing_behind(tiny_llama: LanguageModel) -> None:
    hooks = sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in tiny_llama.model.modules()
    )
    before = tiny_llama.logits([PROMPT])
    pieces = tiny_llama.stream(PROMPT, max_new_tokens=16)
    with contextlib.suppress(KeyboardInterrupt), tiny_llama.steering(added(tiny_llama)):
        next(pieces)
        assert not torch.is_inference_mode_enabled()
        assert tiny_llama.lock.acquire(blocking=False)
        tiny_llama.lock.release()
        raise KeyboardInterrupt
    pieces.close()
    assert torch.equal(tiny_llama.logits([PROMPT]), before)
    left = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in tiny_llama.model.modules())
    assert left == hooks


def test_two_streams_may_be_read_in_turn(tiny_llama: LanguageModel) -> None:
    """Each keeps its own cache, and a step is steered by the context it is taken in."""
    edit = added(tiny_llama)
    plain, steered = (tiny_llama.stream(PROMPT, max_new_tokens=12) for _ in range(2))
    texts = {"plain": "", "steered": ""}
    for _ in range(12):
        texts["plain"] += next(plain, "")
        with tiny_llama.steering(edit):
            tiny_llama.logits(["a"])  # an edit that never acts is an error, also when the stream is over
            texts["steered"] += next(steered, "")
    with tiny_llama.steering(edit):
        assert texts["steered"] == tiny_llama.generate([PROMPT], max_new_tokens=12)[0].text
    assert texts["plain"] == tiny_llama.generate([PROMPT], max_new_tokens=12)[0].text
