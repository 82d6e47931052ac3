"""The logit lens is the model's own law at the last layer and TransformerLens' at every layer; a patchscope at its own
place changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, build, tiny, tiny_tokenizer
from tolerances import close
from transformer_lens.model_bridge import TransformerBridge

import steerlab as sl
from steerlab.errors import DirectionError, PromptError, SiteError, SteerlabError

PROMPTS = ["the cat sat", "a dog runs on the mat"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_says_what_the_model_says(family: str) -> None:
    model = tiny(family)
    last = f"resid_post.{model.n_layers - 1}"
    read = sl.lens(model, sl.capture(model, PROMPTS, last, positions=sl.Last()), top=5)
    law = model.logits(PROMPTS).log_softmax(dim=-1)
    best = law.topk(5, dim=-1)
    close(read.log_probabilities[sl.Site.parse(last)], best.values)
    close(law.gather(1, read.ids[sl.Site.parse(last)]), best.values)


def test_every_layer_is_transformer_lens_own(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    model = sl.load(tmp_path)
    tokens = model.tokenize(PROMPTS[:1]).input_ids
    _, cache = bridge.run_with_cache(tokens)
    states = sl.capture(model, PROMPTS[:1], "resid_post", positions=sl.All())
    read = sl.lens(model, states, top=model.vocab_size)
    for layer in range(model.n_layers):
        logits = bridge.unembed(bridge.ln_final(cache[f"blocks.{layer}.hook_resid_post"]))[0]
        theirs = logits[:, : model.vocab_size].log_softmax(dim=-1)  # without padded rows of the unembedding
        site = sl.Site("resid_post", layer)
        mine = torch.empty_like(theirs).scatter_(1, read.ids[site], read.log_probabilities[site])
        close(mine, theirs.detach())


def test_words_and_directions_are_read() -> None:
    model = tiny("llama")
    states = sl.capture(model, PROMPTS, "resid_post", positions=sl.Last())
    word = model.tokenizer.decode([40])
    read = sl.lens(model, states, top=2, words=[word])
    site = states.sites[-1]
    law = model.unembed(states[site]).log_softmax(dim=-1)
    close(read.asked[site][:, 0], law[:, model.token_id(word)])
    assert [len(row) for row in read[site]] == [2, 2]
    assert read[site][0][0].text == model.tokenizer.decode([int(law[0].argmax())])
    assert word in repr(
        sl.lens(model, {site: model.unembedding[model.token_id(word)] * 50}, top=1)[site][0][0]
    )
    direction = sl.fit_direction(states, [1, 0], hold_out=False)
    assert len(sl.lens(model, direction)[direction.sites[0]]) == 1
    assert "Likeliest words" in read._repr_html_()


def test_a_state_put_back_in_its_own_place_changes_nothing() -> None:
    model = tiny("llama")
    prompt = PROMPTS[1]
    states = sl.capture(model, [prompt], ["resid_post.0", "resid_post.1"], positions=sl.Last())
    read = sl.patchscope(model, states, prompt=prompt, positions=sl.Last(), top=3)
    law = model.logits([prompt]).log_softmax(dim=-1).topk(3, dim=-1).values
    for site in states.sites:
        close(read.log_probabilities[site], law)


def test_a_patchscope_reads_what_was_put_in() -> None:
    """Rows keep their order whatever the batch, and the placeholder is the last question mark."""
    model = tiny("llama")
    states = sl.capture(model, PROMPTS * 40, "resid_post.1", positions=sl.Last())
    read = sl.patchscope(model, states, prompt="a? the cat ? is", top=1)
    values = read.log_probabilities[states.sites[0]].flatten()
    assert len(values) == 80
    close(values[::2], values[:1].expand(40))
    other = sl.patchscope(model, states, prompt="a? the cat ? is", into=0, top=1)
    assert not torch.equal(other.log_probabilities[states.sites[0]].flatten(), values)


def test_wrong_states_are_sentences() -> None:
    model = tiny("llama")
    states = sl.capture(model, PROMPTS, "mlp_post.0", positions=sl.Last())
    with pytest.raises(SteerlabError, match="take those of the residual stream"):
        sl.lens(model, states)
    good = sl.capture(model, PROMPTS, "resid_post.0", positions=sl.Last())
    for reads in (sl.lens, sl.patchscope):
        with pytest.raises(SteerlabError, match="whole number above 0"):
            reads(model, good, top=0)
        with pytest.raises(SteerlabError, match=r"write \[' cat'\]"):
            reads(model, good, words=" cat")
        for nothing in ({}, good[0]):
            with pytest.raises(SteerlabError, match="rows by site"):
                reads(model, nothing)
    by_text = sl.lens(model, {"resid_post.0": good[0]}, top=1)
    assert by_text.sites == good.sites
    with pytest.raises(PromptError):
        sl.lens(model, good, words=["not one token at all"])
    with pytest.raises((SiteError, DirectionError), match="layers 0 to"):
        sl.patchscope(model, good, into=9)
    with pytest.raises(SteerlabError, match="was not read"):
        sl.lens(model, good)["resid_post.2"]
