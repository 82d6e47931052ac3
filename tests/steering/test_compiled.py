"""Under torch.compile: slots made before compiling, contents changed without compiling again, and no silent nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import build, tiny, tiny_tokenizer
from tolerances import close
from torch._dynamo.utils import counters

import steerlab as sl
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import Ablate, Add, Clamp, Decay, Rotate, Scale, Slots, is_compiled

TEXTS = ["the cat sat on", "a dog is not red"]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def direction(model: LanguageModel, sites: list[Site]) -> Direction:
    generator = torch.Generator().manual_seed(3)
    vectors = {site: torch.randn(model.width(site), generator=generator) for site in sites}
    return Direction(vectors=vectors, model_name=model.name, fingerprint=model.fingerprint)


def logits(model: LanguageModel) -> torch.Tensor:
    tokens = model.tokenize(TEXTS)
    with torch.no_grad():
        found: torch.Tensor = model.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            position_ids=tokens.position_ids,
            use_cache=False,
        ).logits[:, -1, : model.vocab_size]
    return found


def made(model: LanguageModel) -> list[tuple[Any, ...]]:
    site, other = Site("resid_post", 1), Site("mlp_out", 2)
    vector = direction(model, [site, other])
    return [
        (Add(vector.at(site), strength=3.0),),
        (Add(vector, strength=-1.0, layers="all"), Clamp(vector.at(site), 2.0)),
        (Clamp(vector.at(other), 0.5),),
        (Scale(factor=0.0, coordinates=[1, 2], sites=[Site("mlp_post", 1)]),),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi", "mixtral"])
def test_slots_give_what_hooks_give_and_never_compile_again(family: str) -> None:
    """float32, dynamo with the eager backend; graphs are counted after the first pass."""
    hooked, model = tiny(family), tiny(family)
    sites = [
        Site("resid_post", 1),
        Site("mlp_out", 2),
        *([Site("mlp_post", 1)] if family != "mixtral" else []),
    ]
    cases = [edits for edits in made(hooked) if all(site in sites for edit in edits for site in edit.sites)]
    plain = logits(hooked)
    slots = Slots(model, sites, rank=2)
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)
    model.model.compile(backend="eager")
    assert is_compiled(model)
    close(logits(model), plain)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for edits in cases:
        with hooked.steering(*edits):
            expected = logits(hooked)
        with slots.steering(*edits):
            close(logits(model), expected)
        assert not torch.allclose(expected, plain, atol=1e-3)
    close(logits(model), plain)
    assert counters["stats"]["unique_graphs"] == graphs


def test_ablation_at_every_read_of_the_stream_fits_slots() -> None:
    hooked, model = tiny("llama"), tiny("llama")
    sites = hooked.sites("resid_pre") + hooked.sites("resid_post")
    ablation = Ablate(direction(hooked, [Site("resid_post", 1)]), sites=sites)
    slots = Slots(model, sites, rank=1)
    with hooked.steering(ablation):
        expected = logits(hooked)
    with slots.steering(ablation):
        close(logits(model), expected)


def test_the_inductor_backend_compiles_slots() -> None:
    hooked, model = (tiny("llama", num_hidden_layers=1) for _ in range(2))
    site = Site("resid_post", 0)
    slots = Slots(model, [site])
    try:
        model.model.compile()
        logits(model)
    except Exception as error:  # no compiler on this machine
        pytest.skip(f"torch.compile does not work here: {str(error)[:80]}")
    vector = direction(hooked, [site])
    for strength in (1.0, -2.0):
        with hooked.steering(Add(vector, strength=strength, layers="all")):
            expected = logits(hooked)
        with slots.steering(Add(vector, strength=strength, layers="all")):
            close(logits(model), expected)


def test_generation_goes_through_the_slots() -> None:
    hooked, model = tiny("llama"), tiny("llama")
    site = Site("resid_post", 1)
    vector = direction(hooked, [site])
    slots = Slots(model, [site])
    with hooked.steering(Add(vector, strength=4.0, layers="all")):
        expected = hooked.generate(TEXTS, max_new_tokens=6)
    with slots.steering(Add(vector, strength=4.0, layers="all")):
        found = model.generate(TEXTS, max_new_tokens=6)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_bfloat16_slots_are_the_hooks() -> None:
    hooked, model = (
        sl.load(build("llama").to(torch.bfloat16), tokenizer=tiny_tokenizer(), dtype="auto") for _ in range(2)
    )
    site = Site("resid_post", 1)
    vector = direction(hooked, [site])
    slots = Slots(model, [site])
    torch.testing.assert_close(logits(model), logits(hooked), atol=0, rtol=0)
    with hooked.steering(Add(vector, strength=2.0, layers="all")):
        expected = logits(hooked)
    with slots.steering(Add(vector, strength=2.0, layers="all")):
        close(logits(model), expected, rtol=0.02)


def test_hooks_after_compiling_are_an_error_and_not_silence() -> None:
    model = tiny("llama")
    site = Site("resid_post", 1)
    vector = direction(model, [site])
    model.model.compile(backend="eager")
    logits(model)
    with pytest.raises(SteeringError, match="compiled already"):
        Slots(model, [site])
    with pytest.raises(SteeringError, match="would not be in its program"), model.steering(Add(vector)):
        raise AssertionError("entered")
    part = tiny("gpt2")
    part.anatomy.blocks[1].compile(backend="eager")
    vector = direction(part, [site])
    with pytest.raises(SteeringError, match="Slots"), part.steering(Add(vector)):
        raise AssertionError("entered")


def test_what_fits_no_slot_is_refused_with_the_reason() -> None:
    model = tiny("llama")
    site, other = Site("resid_post", 1), Site("resid_post", 2)
    vector = direction(model, [site, other])
    slots = Slots(model, [site], rank=0)
    for edit, match in (
        (Add(vector.at(site), positions=sl.Last()), "acts on every token"),
        (Add(vector.at(site), schedule=Decay(0.5)), "has a schedule"),
        (Rotate(vector.at(site)), "no linear change"),
        (Add(vector.at(other)), "no slot at resid_post.2"),
        (Clamp(vector.at(site), 1.0), "have rank 1, its slot 0"),
    ):
        with pytest.raises(SteeringError, match=match):
            slots.set(edit)
    with (
        pytest.raises(SteeringError, match="No forward pass went through"),
        slots.steering(Add(vector.at(site))),
    ):
        pass
    with pytest.raises(SteeringError, match="at least one intervention"), slots.steering():
        pass
    with pytest.raises(SteeringError, match="no module's output"):
        Slots(model, [Site("resid_mid", 1)])
    with pytest.raises(SteeringError, match="at least one site"):
        Slots(model, [])
    before = logits(model)
    slots.remove()
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
