"""Generation: seeds, end tokens, the checkpoint's own settings set aside, the context's end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build, tiny, tiny_tokenizer
from tolerances import close
from transformers import GenerationConfig

from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, PromptError, load_model

TEXTS = ["The capital of", "Is a cat an animal? Yes"]


def test_sampling_with_a_seed_is_repeatable_and_leaves_the_global_state(tiny_llama: LanguageModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = tiny_llama.generate(TEXTS, max_new_tokens=8, do_sample=True, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert tiny_llama.generate(TEXTS, max_new_tokens=8, do_sample=True, seed=1) == first
    assert tiny_llama.generate(TEXTS, max_new_tokens=8, do_sample=True, seed=2) != first


def test_a_cold_temperature_is_greedy(tiny_llama: LanguageModel) -> None:
    greedy = tiny_llama.generate(TEXTS, max_new_tokens=8)
    assert tiny_llama.generate(TEXTS, max_new_tokens=8, do_sample=True, temperature=1e-4, seed=0) == greedy
    assert tiny_llama.generate(TEXTS, max_new_tokens=8, do_sample=True, top_p=1e-6, seed=0) == greedy


def test_the_sampled_law_is_the_models(tiny_llama: LanguageModel) -> None:
    """First tokens of 2,000 samples against the model's probabilities."""
    draws = tiny_llama.generate(["Rome"] * 2000, max_new_tokens=1, do_sample=True, seed=0, token_budget=10**6)
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in draws]), minlength=300) / 2000
    law = tiny_llama.logits(["Rome"])[0].softmax(-1)
    assert float((counts - law).abs().sum()) / 2 < 3 * float((law * (1 - law) / 2000).sqrt().sum()) / 2


def test_recommended_settings_of_the_checkpoint_are_set_aside(capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny("llama")
    module = build("llama")
    recommended = GenerationConfig(
        repetition_penalty=5.0, temperature=0.1, top_k=1, do_sample=True, max_new_tokens=2, eos_token_id=1
    )
    module.generation_config = recommended
    model = load_model(module, tokenizer=tiny_tokenizer())
    assert model.generate(TEXTS, max_new_tokens=12) == plain.generate(TEXTS, max_new_tokens=12)
    assert model.model.generation_config is recommended
    assert capsys.readouterr() == ("", "")


def test_every_end_token_ends_and_is_kept_among_the_ids() -> None:
    model = tiny("llama")
    (free,) = model.generate(TEXTS[:1], max_new_tokens=8)
    assert not free.finished
    end = free.token_ids[3]
    first = free.token_ids.index(end)
    model.model.generation_config.eos_token_id = [1, end]
    both = model.generate(TEXTS, max_new_tokens=8)
    assert both[0].finished
    assert both[0].token_ids == free.token_ids[: first + 1]
    model.model.generation_config.eos_token_id = None
    assert model.generate(TEXTS[:1], max_new_tokens=8)[0].token_ids[: first + 1] == both[0].token_ids


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_ends_at_the_context_whoever_the_neighbours_are(family: str) -> None:
    model = tiny(family, bos=False)
    long = "R" * 60
    room = model.context - model.tokenize([long]).lengths[0]
    assert 0 < room < 12
    together = model.generate([long, *TEXTS], max_new_tokens=12)
    assert len(together[0].token_ids) == room
    assert together == [model.generate([text], max_new_tokens=12)[0] for text in [long, *TEXTS]]
    full = "R" * 64
    assert model.generate([full], max_new_tokens=3)[0].token_ids == ()
    with pytest.raises(PromptError, match="context holds 64"):
        model.generate(["R" * 65], max_new_tokens=3)


def test_small_budgets_change_nothing(tiny_gpt2: LanguageModel) -> None:
    texts = [*TEXTS, "Rome", "Two plus two is", "a"]
    assert tiny_gpt2.generate(texts, max_new_tokens=5, token_budget=1) == tiny_gpt2.generate(
        texts, max_new_tokens=5
    )
    close(tiny_gpt2.logits(texts, token_budget=1), tiny_gpt2.logits(texts))


def test_all_logits_of_a_batch(tiny_gpt2: LanguageModel) -> None:
    for side in ("left", "right"):
        tokens = tiny_gpt2.tokenize(TEXTS, padding_side=side)
        whole = tiny_gpt2.logits(tokens, last_only=False)
        assert whole.shape == (2, tokens.width, tiny_gpt2.vocab_size)
        last = torch.stack(
            [whole[row, tokens.column(row, length - 1)] for row, length in enumerate(tokens.lengths)]
        )
        close(last, tiny_gpt2.logits(TEXTS))


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"do_sample": True, "temperature": 0.0}, {"do_sample": True, "top_p": 0.0}],
)
def test_settings_that_mean_nothing_are_refused(tiny_llama: LanguageModel, options: dict[str, Any]) -> None:
    with pytest.raises(SteerlabError):
        tiny_llama.generate(TEXTS, **{"max_new_tokens": 2, **options})
