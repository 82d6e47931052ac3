"""Beam search, assisted decoding, raw calls in chunks, and what conditions count in rows that are over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from families import build, tiny, tiny_tokenizer
from tolerances import close
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

import steerlab as sl
from steerlab.directions import Direction
from steerlab.errors import SteeringError, SteerlabError
from steerlab.models import LanguageModel, Site, load_model
from steerlab.models.generation import end_token_ids
from steerlab.steering import Add, Condition, Decay

TEXTS = ["the cat sat on", "a dog is not red, is it"]
SITE = Site("resid_post", 1)


def direction(model: LanguageModel, site: Site = SITE) -> Direction:
    vector = torch.randn(model.width(site), generator=torch.Generator().manual_seed(3))
    return Direction({site: vector}, model_name=model.name, fingerprint=model.fingerprint)


@contextmanager
def plain_hook(model: LanguageModel, vector: Tensor) -> Iterator[None]:
    """A hook of torch's own that adds at every token."""

    def hook(module: object, args: object, output: object) -> object:
        if isinstance(output, Tensor):
            return output + vector
        return (output[0] + vector, *output[1:])

    handle = model.anatomy.blocks[1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def transformers_own(model: LanguageModel, text: str, **settings: object) -> tuple[int, ...]:
    """transformers' generate on one prompt, with our end tokens and without the rows that are no tokens."""
    tokens, ends = model.tokenize([text]), end_token_ids(model)
    rows = model.anatomy.head.weight.shape[0]
    config = GenerationConfig(
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=list(ends) or None,
        suppress_tokens=list(range(model.vocab_size, rows)) or None,
        **settings,
    )
    with torch.inference_mode():
        ids = model.model.generate(
            tokens.input_ids, attention_mask=tokens.attention_mask, generation_config=config
        )
    written = ids[0, tokens.width :].tolist()
    stop = next((place + 1 for place, token in enumerate(written) if token in ends), len(written))
    return tuple(written[:stop])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_steered_beams_are_transformers_beams_under_a_plain_hook(family: str) -> None:
    model = tiny(family)
    vector = direction(model)
    with plain_hook(model, 2.0 * vector[SITE]):
        expected = [transformers_own(model, text, num_beams=3) for text in TEXTS]
    with model.steering(Add(vector, strength=2.0)):
        found = model.generate(TEXTS, max_new_tokens=8, num_beams=3)
    assert [one.token_ids for one in found] == expected
    plain = model.generate(TEXTS, max_new_tokens=8, num_beams=3)
    assert [one.token_ids for one in plain] != expected


@pytest.mark.parametrize("positions", [sl.All(), sl.Generated(), sl.Last(), sl.FirstGenerated(2)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_assisted_decoding_writes_the_tokens_of_greedy_decoding(family: str, positions: sl.Selector) -> None:
    model, assistant = tiny(family), tiny(family, seed=7)
    edit = Add(direction(model), strength=4.0, positions=positions)
    with model.steering(edit):
        expected = model.generate(TEXTS, max_new_tokens=10)
        found = model.generate(TEXTS, max_new_tokens=10, assistant=assistant)
        # An assistant that proposes what the unsteered model would write is refused by the steered one as well.
        again = model.generate(TEXTS, max_new_tokens=10, assistant=tiny(family))
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.token_ids for one in again] == [one.token_ids for one in expected]


def test_a_scheduled_conditional_edit_under_assisted_decoding() -> None:
    model, assistant = tiny("llama"), tiny("llama", seed=7)
    condition = Condition(direction(model, Site("resid_post", 0)), threshold=0.0)
    edit = Add(direction(model), strength=6.0, schedule=Decay(0.7), condition=condition)
    with model.steering(edit):
        expected = model.generate(TEXTS, max_new_tokens=10)
        found = model.generate(TEXTS, max_new_tokens=10, assistant=assistant)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_searches_that_mean_no_law_are_refused() -> None:
    model = tiny("llama")
    for options, said in (
        ({"num_beams": 0}, "at least one beam"),
        ({"num_beams": 2, "do_sample": True}, "are greedy"),
        ({"num_beams": 2, "assistant": model}, "exclude each other"),
        ({"assistant": tiny("llama", bos=False)}, None),
    ):
        if said is None:
            continue
        with pytest.raises(SteerlabError, match=said):
            model.generate(TEXTS, max_new_tokens=2, **options)
    from steerlab import zoo

    with pytest.raises(SteerlabError, match="another vocabulary"):
        model.generate(TEXTS, max_new_tokens=2, assistant=zoo.load_bundled("small-base"))


def in_chunks(model: LanguageModel, ids: Tensor, sizes: list[int]) -> Tensor:
    """Logits at the last token of a raw prefill in chunks."""
    cache, place = DynamicCache(), 0
    with torch.inference_mode():
        for size in sizes:
            output = model.model(
                input_ids=ids[:, place : place + size], past_key_values=cache, use_cache=True
            )
            place += size
    assert place == ids.shape[1]
    logits: Tensor = output.logits[:, -1]
    return logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_raw_chunks_are_exact_where_the_prompts_end_does_not_matter_and_refused_where_it_does(
    family: str,
) -> None:
    model = tiny(family)
    tokens = model.tokenize(TEXTS[1:])
    ids = tokens.input_ids
    vector = direction(model)
    sizes = [3, ids.shape[1] - 3]
    with model.steering(Add(vector, strength=3.0)):
        whole = model.model(input_ids=ids, use_cache=False).logits[:, -1]
        close(in_chunks(model, ids, sizes), whole)
    early = Condition(direction(model, Site("resid_post", 0)), threshold=0.0, positions=None)
    with model.steering(Add(vector, strength=3.0, condition=early)):
        whole = model.model(input_ids=ids, use_cache=False).logits[:, -1]
        close(in_chunks(model, ids, sizes), whole)
    for edit in (
        Add(vector, positions=sl.Last()),
        Add(vector, positions=sl.Generated()),
        Add(vector, positions=sl.WholePrompt()),
        Add(vector, schedule=Decay(0.5)),
        Add(vector, condition=Condition(direction(model, Site("resid_post", 0)), threshold=-1e9)),
    ):
        with (
            pytest.raises(SteeringError, match=r"where the prompt ends|need the prompt"),
            model.steering(edit),
        ):
            in_chunks(model, ids, sizes)
        if edit.condition is not None or not edit.positions.in_prompt:
            continue
        with model.steering(edit), model.prompted(tokens):
            found = in_chunks(model, ids, sizes)[:, : model.vocab_size]
            close(found, model.logits(tokens))


def test_raw_assisted_generation_is_refused_where_the_prompts_end_matters() -> None:
    model, assistant = tiny("llama"), tiny("llama", seed=7)
    tokens = model.tokenize(TEXTS[:1])

    def raw() -> Tensor:
        return model.model.generate(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            max_new_tokens=8,
            do_sample=False,
            assistant_model=assistant.model,
            pad_token_id=0,
        )

    with (
        pytest.raises(SteeringError, match="proposed tokens"),
        model.steering(Add(direction(model), positions=sl.Generated())),
    ):
        raw()
    with model.steering(Add(direction(model), strength=4.0)):
        found = raw()[0, tokens.width :].tolist()
        expected = model.generate(TEXTS[:1], max_new_tokens=8)[0].token_ids
    assert tuple(found[: len(expected)]) == expected


def test_rows_that_are_over_are_not_counted() -> None:
    """Every generated token counts once in a row that runs, and not at all in one that has written its end."""
    model = load_model(build("llama"), tokenizer=tiny_tokenizer())
    first = [one.token_ids for one in model.generate(TEXTS, max_new_tokens=6)]
    # A token that ends one row early and the other late or never.
    spots = {
        token: [ids.index(token) if token in ids else len(ids) for ids in first]
        for ids in first
        for token in ids
    }
    end = max(spots, key=lambda token: abs(spots[token][0] - spots[token][1]))
    model.model.generation_config.eos_token_id = end
    ran = [one.token_ids for one in model.generate(TEXTS, max_new_tokens=6)]
    assert len(ran[0]) != len(ran[1])
    condition = Condition(direction(model, Site("resid_post", 0)), threshold=-1e9, positions=None)
    with model.steering(Add(direction(model), strength=0.0, condition=condition)) as applied:
        model.generate(TEXTS, max_new_tokens=6)
    prompts = sum(model.tokenize(TEXTS).lengths)
    # A token is decided where it is read: the last of a text never is.
    expected = prompts + sum(len(ids) - 1 for ids in ran)
    assert applied.counts[0].seen == expected
    assert applied.counts[0].held == expected


@pytest.mark.parametrize("family", ["bamba", "mamba", "falcon_h1"])
def test_running_states_are_searched_but_not_assisted(family: str) -> None:
    model, plain = tiny(family), tiny("llama")
    assert len(model.generate(["Is a cat", "The capital of"], max_new_tokens=3, num_beams=2)) == 2
    for helped, helper in ((model, plain), (plain, model)):
        with pytest.raises(
            SteerlabError,
            match=f"tiny-{family.replace('_', '.')} keeps a running state".replace(".", "[_.-]"),
        ):
            helped.generate("Is a cat", max_new_tokens=3, assistant=helper)


def test_an_error_inside_a_search_stays_what_it_is() -> None:
    """Numbers that are not finite are named as such, with beams too."""
    model = tiny("llama")
    huge = sl.Add(torch.full((32,), 3e38), 10.0, sites="resid_post.1")
    with model.steering(huge), pytest.raises(SteerlabError, match="not finite at new token 0"):
        model.generate("Is a cat", max_new_tokens=3, num_beams=2)
