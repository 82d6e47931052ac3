"""Attention probabilities: equal to TransformerLens' and transformers' own, in batches, steered; sentences."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import FAMILIES, build, tiny, tiny_tokenizer
from tolerances import close
from torch import Tensor

import steerlab as sl
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel

PROMPTS = ["The capital of France is", "Is a cat an animal? Yes", "Rome"]
#: Their modules take no part in transformers' attention interface, or no block has attention.
NOT_EAGER = {"falcon", "falcon_7b", "falcon_alibi"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _no_chatter() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def eager(family: str) -> LanguageModel:
    network = build(family)
    network.set_attn_implementation("eager")
    return sl.load(network, tiny_tokenizer())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_EAGER])
def test_it_is_transformers_own(family: str) -> None:
    """To 1e-5, every family, each prompt of a padded batch against a run by itself."""
    model = eager(family)
    names = model.anatomy.names
    if names.attention is None:
        pytest.skip("no attention")
    found = sl.attention_pattern(model, PROMPTS)
    for prompt, pattern in zip(PROMPTS, found, strict=True):
        ids = model.tokenize(prompt).input_ids
        with torch.no_grad():
            theirs = model.model(ids, output_attentions=True, use_cache=False).attentions
        right = [one[0].float() for one in theirs if one is not None]
        assert len(right) == len(pattern) > 0
        for own, other in zip(pattern.values(), right, strict=True):
            assert own.dtype == torch.float32
            close(own, other, scale=1.0, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_transformer_lens_hook_pattern(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = sl.load(tmp_path, attn_implementation="eager", device="cpu")
    bridged = sl.load(
        tmp_path, backend="transformer_lens", attn_implementation="eager", device="cpu", dtype=torch.float32
    )
    prompt = PROMPTS[1]
    ids = model.tokenize(prompt).input_ids
    _, cache = bridged.source.run_with_cache(ids)
    found = sl.attention_pattern(model, prompt)[0]
    through = sl.attention_pattern(bridged, prompt)[0]
    assert list(found) == [0, 1, 2]
    for layer, pattern in found.items():
        close(pattern, cache[f"blocks.{layer}.attn.hook_pattern"][0].float(), scale=1.0, rtol=1e-5)
        close(through[layer], pattern, scale=1.0, rtol=1e-5)


def test_it_is_the_softmax_of_queries_and_keys() -> None:
    """GPT-2's first layer by hand."""
    model = eager("gpt2")
    found = sl.attention_pattern(model, PROMPTS[0], 0)[0][0]
    block = model.anatomy.blocks[0]
    stream = sl.capture(model, PROMPTS[0], "resid_pre.0", positions=sl.All())["resid_pre.0"]
    joined: Tensor = block.attn.c_attn(block.ln_1(stream))  # type: ignore[operator,union-attr]
    query, key = (
        part.unflatten(-1, (model.n_heads, -1)).transpose(0, 1)
        for part in joined.split(model.d_model, dim=-1)[:2]
    )
    scores = query @ key.transpose(1, 2) / model.head_dim**0.5
    n = len(stream)
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
    close(found, scores.softmax(-1), scale=1.0, rtol=1e-5)
    close(found.sum(-1), torch.ones(model.n_heads, n))
    assert not found.triu(1).any()


def test_steering_changes_what_comes_behind_it_and_layers_are_chosen() -> None:
    model = eager("llama")
    plain = sl.attention_pattern(model, PROMPTS)
    with model.steering(sl.Add(torch.ones(model.d_model), 3.0, sites="resid_post.0")):
        steered = sl.attention_pattern(model, PROMPTS, [2, 0])
    assert list(steered[0]) == [0, 2]
    for before, after in zip(plain, steered, strict=True):
        assert torch.equal(before[0], after[0])
        assert not torch.allclose(before[2], after[2], atol=1e-4) or before[2].shape[-1] < 3
    assert sum(len(module._forward_hooks) for module in model.model.modules()) == 0
    one = sl.attention_pattern(model, PROMPTS, token_budget=1)
    for a, b in zip(plain, one, strict=True):
        close(a[1], b[1], scale=1.0, rtol=1e-5)


def test_what_has_no_pattern_is_refused_in_a_sentence() -> None:
    model = eager("llama")
    for given, layers, said in (
        (tiny("llama"), None, r"attn_implementation='eager'"),
        (eager("mamba"), None, "No block of tiny-mamba has attention"),
        (model, 3, "has the layers 0 to 2, not 3"),
        (model, -1, "not -1"),
        (model, [], "Layers are numbers"),
        (model, "resid_post", "Layers are numbers"),
        (model.model, None, "read from a model of sl.load"),
    ):
        with pytest.raises(SteerlabError, match=said):
            sl.attention_pattern(given, PROMPTS, layers)  # type: ignore[arg-type]
    mixed = eager("qwen3_next")
    having = list(sl.attention_pattern(mixed, PROMPTS)[0])
    missing = next(layer for layer in range(mixed.n_layers) if layer not in having)
    with pytest.raises(SteerlabError, match=f"Layer {missing} of .* has no attention but another mixer"):
        sl.attention_pattern(mixed, PROMPTS, missing)
