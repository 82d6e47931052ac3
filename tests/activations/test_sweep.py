"""Restarting from a kept stream gives what the whole forward pass gives, in every family."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from families import FAMILIES, build, tiny, tiny_tokenizer
from tolerances import close
from torch import Tensor

from steerlab.activations import record, sweep
from steerlab.errors import PromptError, SiteError, SteeringError, SteerlabError
from steerlab.models import All, LanguageModel, Site, load_model

TEXTS = ["How do I bake bread?", "Is a cat an animal? Yes, a cat is", "Rome", "the dog ran"]
VARIANTS = 3


class Push:
    """Variant i adds its own vector at one site."""

    def __init__(self, model: LanguageModel, site: Site) -> None:
        generator = torch.Generator().manual_seed(1)
        self.sites: Sequence[Site] = (site,)
        self.vectors = torch.randn(VARIANTS, model.width(site), generator=generator).to(model.dtype)

    def apply(self, state: Tensor, site: Site, variants: slice, prompts: Tensor) -> Tensor:
        return state + self.vectors[variants, None, None]


class Plain:
    """The same addition as an ordinary edit."""

    positions = All()

    def __init__(self, vector: Tensor, site: Site) -> None:
        self.vector, self.sites = vector, (site,)

    def apply(self, state: Tensor, site: Site) -> Tensor:
        return state + self.vector

    def check(self, model: LanguageModel) -> None:
        return None


def same(logits: Tensor, prompts: Tensor) -> Tensor:
    return logits.double()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_restarts_exactly(family: str) -> None:
    model = tiny(family)
    recording = record(model, TEXTS, layers=range(model.n_layers), token_budget=40)
    assert recording.restarts
    close(recording.logits, model.logits(TEXTS))
    last = model.n_layers - 1
    for site in (
        Site("resid_post", 0),
        Site("resid_pre", 1),
        Site("resid_post", last),
        Site("mlp_out", last),
    ):
        change = Push(model, site)
        found = sweep(recording, change, VARIANTS, same, token_budget=60)
        assert found.shape == (VARIANTS, len(TEXTS), model.vocab_size)
        for variant in range(VARIANTS):
            with model.steering(Plain(change.vectors[variant], site)):
                expected = model.logits(TEXTS)
            close(found[variant].float(), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_blocks_before_the_change_do_not_run(family: str) -> None:
    model = tiny(family)
    recording = record(model, TEXTS, layers=range(model.n_layers), token_budget=10_000)
    ran = [0] * model.n_layers

    def count(layer: int):
        def hook(*_: object) -> None:
            ran[layer] += 1

        return hook

    # the part inside a block that is always computed
    handles = [
        model.anatomy.tap(Site("mlp_out", layer)).module.register_forward_hook(count(layer))
        for layer in range(model.n_layers)
    ]
    try:
        sweep(recording, Push(model, Site("resid_post", 1)), VARIANTS, same, token_budget=10_000)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 0, len(recording.batches)]
    assert not any("forward" in block.__dict__ for block in model.anatomy.blocks)


def test_changes_of_early_sites_run_the_whole_stack() -> None:
    model = tiny("llama")
    recording = record(model, TEXTS, layers=[1, 2])
    assert recording.start([Site("resid_post", 0)]) == 1
    assert recording.start([Site("resid_post", 1), Site("attn_out", 2)]) == 2
    assert recording.start([Site("attn_out", 0)]) == 0
    assert recording.start([Site("embed")]) == 0
    assert recording.start([Site("ln_final_in")]) == 2
    with pytest.raises(SteeringError, match="before block 2"):
        sweep(recording, Push(model, Site("resid_pre", 1)), VARIANTS, same, start=2)


def test_blocks_that_read_what_skipped_blocks_wrote_are_not_restarted_from() -> None:
    """Block 1 adds what block 0's MLP put out: exact from block 2 on, but not from block 1."""
    model = tiny("llama")
    seen: list[Tensor] = []
    first, second = (model.anatomy.blocks[layer].mlp for layer in (0, 1))
    handles = [
        first.register_forward_hook(lambda module, args, output: seen.append(output)),
        second.register_forward_hook(lambda module, args, output: output + (seen.pop() if seen else 0)),
    ]
    try:
        recording = record(model, TEXTS, layers=[1, 2], token_budget=10_000)
        assert not recording.restarts
        assert recording.layers == (2,)
        assert recording.start([Site("resid_post", 0)]) == 0
        assert recording.start([Site("resid_post", 1)]) == 2
        push = Push(model, Site("resid_pre", 1))
        found = sweep(recording, push, VARIANTS, same)
        for variant in range(VARIANTS):
            with model.steering(Plain(push.vectors[variant], Site("resid_pre", 1))):
                expected = model.logits(TEXTS)
            close(found[variant].float(), expected)
    finally:
        for handle in handles:
            handle.remove()


def test_a_change_sees_which_prompt_it_changes() -> None:
    """Patching every prompt with its own recorded states changes nothing, with those of others it does."""
    model = tiny("gemma2")
    site = Site("resid_post", 1)
    states: dict[int, Tensor] = {}
    for number, text in enumerate(TEXTS):
        tokens = model.tokenize([text])
        model.run(tokens, read={site: lambda state, number=number: states.update({number: state[0].clone()})})

    class Patch:
        """Variant i puts the last token's state of the prompt `shift[i]` further on."""

        sites = (site,)
        shift = (0, 1)

        def apply(self, state: Tensor, site: Site, variants: slice, prompts: Tensor) -> Tensor:
            new = state.clone()
            for variant, shift in enumerate(self.shift[variants]):
                for row, number in enumerate(prompts.tolist()):
                    source = states[(number + shift) % len(TEXTS)]
                    new[variant, row, len(states[number]) - 1] = source[-1]
            return new

    recording = record(model, TEXTS, layers=range(model.n_layers))
    found = sweep(recording, Patch(), 2, same)
    close(found[0].float(), recording.logits)
    assert (found[1].float() - recording.logits).abs().max() > 0.1


def test_two_sites_of_one_place_both_act() -> None:
    model = tiny("llama")

    class Twice(Push):
        def __init__(self) -> None:
            super().__init__(model, Site("resid_pre", 2))
            self.sites = (Site("resid_pre", 2), Site("resid_post", 1))

    change = Twice()
    found = sweep(record(model, TEXTS, layers=[2]), change, VARIANTS, same)
    with model.steering(Plain(2 * change.vectors[0], Site("resid_pre", 2))):
        close(found[0].float(), model.logits(TEXTS))


def test_steering_around_a_sweep_must_be_that_of_the_recording() -> None:
    model = tiny("llama")
    outer = Plain(torch.full((model.d_model,), 0.5), Site("attn_out", 0))
    at_entry = Plain(torch.full((model.d_model,), 0.25), Site("resid_pre", 2))
    push = Push(model, Site("resid_pre", 2))
    plain = record(model, TEXTS, layers=[2])
    with model.steering(outer, at_entry):
        recording = record(model, TEXTS, layers=[2])
        found = sweep(recording, push, VARIANTS, same)
        with model.steering(Plain(push.vectors[0], Site("resid_pre", 2))):
            close(found[0].float(), model.logits(TEXTS))
        with pytest.raises(SteeringError, match="steered otherwise"):
            sweep(plain, push, VARIANTS, same)
        sweep(plain, push, VARIANTS, same, start=0)
    with pytest.raises(SteeringError, match="steered otherwise"):
        sweep(recording, push, VARIANTS, same)


def test_measure_sees_the_numbers_of_the_prompts() -> None:
    model = tiny("llama")
    recording = record(model, TEXTS, layers=[2], token_budget=30)

    def difference(logits: Tensor, prompts: Tensor) -> Tensor:
        return (logits - recording.logits[prompts]).abs().amax(dim=-1)

    nothing = Push(model, Site("resid_post", 1))
    nothing.vectors = torch.zeros_like(nothing.vectors)
    found = sweep(recording, nothing, VARIANTS, difference, token_budget=20)
    assert found.shape == (VARIANTS, len(TEXTS))
    assert float(found.max()) < 1e-5


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    texts = ["Rome", "Rome is", "a cat"]
    recording = record(model, texts, layers=[1])
    change = Push(model, Site("resid_post", 0))
    whole = sweep(recording, change, VARIANTS, same)
    forward, sizes, limit = model.anatomy.base.forward, [], 2

    def small(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("out of memory")
        return forward(**inputs)

    monkeypatch.setattr(model.anatomy.base, "forward", small)
    close(sweep(recording, change, VARIANTS, same), whole)
    assert max(sizes) == VARIANTS * max(len(batch.prompts) for batch in recording.batches)
    again = record(model, texts, layers=[1])
    close(again.logits, recording.logits)
    limit = 0
    with pytest.raises(SteerlabError, match="even alone"):
        sweep(recording, change, VARIANTS, same)
    with pytest.raises(SteerlabError, match="even alone"):
        record(model, texts)


def test_bad_input_is_refused() -> None:
    model = tiny("llama")
    with pytest.raises(PromptError, match="list"):
        record(model, "one")
    with pytest.raises(SiteError, match="layers 0 to"):
        record(model, TEXTS, layers=[7])
    recording = record(model, TEXTS)
    with pytest.raises(SiteError):
        sweep(recording, Push(model, Site("resid_post", 9)), 1, same)
    with pytest.raises(SteerlabError, match="at least one"):
        sweep(recording, Push(model, Site("resid_post", 1)), 0, same)
    with pytest.raises(SteeringError, match="before block 2"):
        sweep(recording, Push(model, Site("resid_pre", 2)), 1, same, start=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_restart_too(dtype: torch.dtype) -> None:
    model = load_model(build("llama").to(dtype), tokenizer=tiny_tokenizer(), dtype=dtype)
    recording = record(model, TEXTS, layers=[1])
    assert recording.restarts
