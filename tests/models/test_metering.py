"""Tokens are counted where they cost something, by what is done with them."""

from __future__ import annotations

import pytest
import torch
from families import build, tiny_tokenizer

import steerlab as sl
from steerlab.activations import LogitDifference, PatchSweep, StatePatch, Zero
from steerlab.activations.in_force import interventions_in_force
from steerlab.models import LanguageModel, load_model
from steerlab.models.metering import Spent, metered

TEXTS = ["The capital of France", "Two plus two is four", "Rome"]


@pytest.fixture
def model() -> LanguageModel:
    return load_model(build("llama"), tokenizer=tiny_tokenizer())


def test_reading_counts_padded_tokens_and_states_that_are_unembedded(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXTS)
    with metered({"a": model}) as spent:
        model.run(tokens, logits="last")
    assert (spent["a"].read, spent["a"].unembedded) == (3 * tokens.width, 3)
    with metered({"a": model}) as spent:
        sl.capture(model, TEXTS, "resid_post")
    assert spent["a"].read == 3 * max(tokens.lengths)
    assert spent["a"].unembedded == spent["a"].generated == spent["a"].patched == 0
    assert spent["a"].seconds > 0


def test_text_is_read_once_and_then_grows_by_a_token(model: LanguageModel) -> None:
    tokens = model.tokenize(TEXTS[:2])
    model.model.generation_config.eos_token_id = None
    for write in (
        lambda: model.generate(TEXTS[:2], max_new_tokens=5),
        lambda: [list(model.stream(text, max_new_tokens=5)) for text in TEXTS[:2]],
    ):
        with metered({"a": model}) as spent:
            written = write()
        assert len(written) == 2
        assert spent["a"].generated == 2 * 4  # the prompt's pass gives the first
        assert spent["a"].unembedded == 2 * 5
    assert spent["a"].read == sum(tokens.lengths)


def test_patching_counts_the_blocks_that_run_again(model: LanguageModel) -> None:
    length = model.lengths(TEXTS[:1])[0]
    for layer, blocks in ((0, model.n_layers - 1), (model.n_layers - 1, 0)):
        cells = [[(StatePatch(sl.Site("resid_post", layer), (0,), Zero()),)]]
        sweep = PatchSweep(model, TEXTS[:1], cells, LogitDifference([3], [4]))
        with metered({"a": model}) as spent:
            found = sweep.run()
        assert spent["a"].patched >= length * blocks
        assert spent["a"].patched <= length * (blocks + 1) * 2  # with the proof that restarting is exact
        assert found.cost.patched <= spent["a"].patched


def test_two_names_of_one_model_are_counted_once_and_hooks_go(model: LanguageModel) -> None:
    parts = list(model.model.modules())
    before = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]
    with metered({"a": model, "b": model}) as spent:
        model.logits(TEXTS)
    assert spent["a"].read > 0
    assert spent["b"] == Spent()
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts] == before
    assert torch.equal(model.logits(TEXTS), model.logits(TEXTS))


def test_a_pass_that_fails_stops_the_clock(model: LanguageModel) -> None:
    def broken(state: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("stop")

    with metered({"a": model}) as spent:
        with pytest.raises(RuntimeError, match="stop"), model.edit("resid_post.0", broken):
            model.logits(TEXTS)
        first = spent["a"].seconds
        model.logits(TEXTS)
    assert spent["a"].seconds > first > 0


def test_counting_is_no_intervention(model: LanguageModel) -> None:
    """What is read while it is counted may be kept and taken up again."""
    with metered({"a": model}):
        assert interventions_in_force(model) == "none"
        with model.edit("resid_post.0", lambda state: state):
            assert interventions_in_force(model) != "none"
            model.logits(TEXTS)
