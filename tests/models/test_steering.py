"""Steering: which tokens are edited under a KV cache, how edits compose, and that nothing stays behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import tiny
from tolerances import close
from torch import Tensor

from steerlab.models import (
    AfterInstruction,
    All,
    Edit,
    FirstGenerated,
    Generated,
    Index,
    LanguageModel,
    Last,
    Selector,
    Site,
    SiteError,
    Span,
    SteeringError,
    WholePrompt,
    Window,
)

SITE = Site("resid_post", 0)  # Gemma-3's next layer has no sliding window, so every token counts
TEXTS = ["How do I bake bread?", "Is a cat an animal? Yes, a cat is", "Rome"]
SELECTORS: list[Selector] = [
    All(),
    Last(),
    Index(1),
    Index(-2),
    Generated(),
    AfterInstruction(),
    Span("instruction"),
    AfterInstruction() | Generated(),
    Last() | Generated(),
    WholePrompt(),
    FirstGenerated(2),
    Last() | FirstGenerated(1),
    Window(-3, None),
    Window(2, 9),
    Window(6, 8) | Index(0),
    All() - Index(0),
    Generated() - FirstGenerated(1),
    (Window(-4) - Last()) | Index(0),
]


class Add:
    def __init__(
        self, vector: Tensor, sites: Sequence[Site] = (SITE,), positions: Selector | None = None
    ) -> None:
        self.vector, self.sites, self.positions = vector, sites, positions or All()
        self.seen: list[torch.dtype] = []

    def apply(self, state: Tensor, site: Site) -> Tensor:
        self.seen.append(state.dtype)
        return state + self.vector

    def check(self, model: LanguageModel) -> None:
        return None


class Double(Add):
    def apply(self, state: Tensor, site: Site) -> Tensor:
        return 2 * state


class Broken(Add):
    def apply(self, state: Tensor, site: Site) -> Tensor:
        raise RuntimeError("boom")


@pytest.fixture
def vector() -> Tensor:
    return 3 * torch.randn(32, generator=torch.Generator().manual_seed(3))


def hooks_left(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def state_of(model: LanguageModel, text: Any, site: Site) -> Tensor:
    found: list[Tensor] = []
    tokens = model.tokenize([text])
    model.run(tokens, read={site: found.append})
    return found[0][0]


def recomputed(
    model: LanguageModel, prompt: Any, vector: Tensor, positions: Selector, steps: int
) -> list[int]:
    """Greedy text with everything recomputed at each step and the vector added by position, by hand."""
    tokens = model.tokenize([prompt])
    chosen = set(positions.resolve(tokens, 0))
    ids, length = tokens.input_ids, tokens.lengths[0]
    block = model.model.get_submodule(model.anatomy.names.blocks)[SITE.layer]
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        state = (output if isinstance(output, Tensor) else output[0]).clone()
        for index in range(state.shape[1]):
            if index in chosen or (index >= length and positions.selects(index - length, length)):
                state[:, index] += vector
        return state if isinstance(output, Tensor) else (state, *output[1:])

    written: list[int] = []
    block.forward = forward
    try:
        with torch.no_grad():
            for _ in range(steps):
                logits = model.model(input_ids=ids, use_cache=False).logits[0, -1, : model.vocab_size]
                written.append(int(logits.argmax()))
                ids = torch.cat([ids, torch.tensor([written[-1:]])], dim=1)
                if written[-1] == 1:
                    break
    finally:
        del block.forward
    return written


@pytest.mark.parametrize("positions", SELECTORS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom"])
def test_steered_generation_with_cache_and_padding_equals_recomputing(
    family: str, positions: Selector, vector: Tensor
) -> None:
    model = tiny(family, chat=family == "llama")
    prompts = [model.instruction_prompt(text) for text in TEXTS]
    with model.steering(Add(vector, positions=positions)):
        together = model.generate(prompts, max_new_tokens=6)
    for prompt, generation in zip(prompts, together, strict=True):
        assert list(generation.token_ids) == recomputed(model, prompt, vector, positions, 6)
    if not any(positions.resolve(model.tokenize([prompt]), 0) for prompt in prompts):
        assert together != model.generate(prompts, max_new_tokens=6)
        return
    with model.steering(Add(vector, positions=positions)):
        steered = model.logits(prompts)
    assert bool(((steered - model.logits(prompts)).abs().amax(1) > 1e-4).all())


def test_a_prompt_of_one_token_is_still_a_prompt(tiny_gpt2: LanguageModel, vector: Tensor) -> None:
    tokens = tiny_gpt2.tokenize(["R"])
    assert tokens.lengths == (1,)
    for positions in (Generated(), Last()):
        with tiny_gpt2.steering(Add(vector, positions=positions)):
            (steered,) = tiny_gpt2.generate(["R"], max_new_tokens=5)
        assert list(steered.token_ids) == recomputed(tiny_gpt2, "R", vector, positions, 5)


def test_reading_inside_steering_sees_the_edit_at_the_chosen_tokens_only(
    tiny_llama: LanguageModel, vector: Tensor
) -> None:
    prompt = tiny_llama.instruction_prompt(TEXTS[0])
    plain = state_of(tiny_llama, prompt, SITE)
    chosen = Span("instruction").resolve(tiny_llama.tokenize([prompt]), 0)
    with tiny_llama.steering(Add(vector, positions=Span("instruction"))):
        steered = state_of(tiny_llama, prompt, SITE)
    expected = plain.clone()
    expected[chosen] += vector
    close(steered, expected)


def test_edits_compose_in_the_order_given_and_contexts_nest(
    tiny_llama: LanguageModel, vector: Tensor
) -> None:
    add, double = Add(vector), Double(vector)
    assert isinstance(add, Edit)
    plain = state_of(tiny_llama, TEXTS[0], SITE)
    with tiny_llama.steering(add, double):
        close(state_of(tiny_llama, TEXTS[0], SITE), 2 * (plain + vector))
    with tiny_llama.steering(double, add):
        close(state_of(tiny_llama, TEXTS[0], SITE), 2 * plain + vector)
    with tiny_llama.steering(add):
        with tiny_llama.steering(double):
            close(state_of(tiny_llama, TEXTS[0], SITE), 2 * (plain + vector))
        close(state_of(tiny_llama, TEXTS[0], SITE), plain + vector)
    close(state_of(tiny_llama, TEXTS[0], SITE), plain)


def test_an_inner_edit_between_attention_and_mlp_comes_before_an_outer_one_behind_the_block(
    tiny_llama: LanguageModel, vector: Tensor
) -> None:
    middle = Site("resid_mid", 0)
    with tiny_llama.steering(Add(vector, [middle])):
        changed = state_of(tiny_llama, TEXTS[0], SITE)
    with tiny_llama.steering(Double(vector)), tiny_llama.steering(Add(vector, [middle])):
        close(state_of(tiny_llama, TEXTS[0], SITE), 2 * changed)


def test_no_hook_stays_behind_on_any_way_out(tiny_llama: LanguageModel, vector: Tensor) -> None:
    with tiny_llama.steering(Add(vector)):
        assert hooks_left(tiny_llama) > 0
        tiny_llama.logits(TEXTS)
    assert hooks_left(tiny_llama) == 0
    with pytest.raises(RuntimeError, match="boom"), tiny_llama.steering(Broken(vector)):
        tiny_llama.generate(TEXTS, max_new_tokens=2)
    assert hooks_left(tiny_llama) == 0
    with pytest.raises(KeyError), tiny_llama.steering(Add(vector)):
        raise KeyError
    assert hooks_left(tiny_llama) == 0
    failing = {SITE: lambda state: 1 / 0}
    with pytest.raises(ZeroDivisionError):
        tiny_llama.run(tiny_llama.tokenize(TEXTS), read=failing)
    assert hooks_left(tiny_llama) == 0
    assert len(tiny_llama.model.model.layers) == tiny_llama.n_layers


def test_an_edit_that_never_acted_is_an_error(tiny_llama: LanguageModel, vector: Tensor) -> None:
    with pytest.raises(SteeringError, match="never acted"), tiny_llama.steering(Add(vector)):
        pass
    with (
        pytest.raises(SteeringError, match="never acted"),
        tiny_llama.steering(Add(vector, positions=Generated())),
    ):
        tiny_llama.logits(TEXTS)
    with (
        pytest.raises(SteeringError, match="never acted"),
        tiny_llama.steering(Add(vector, [Site("resid_post", 2)])),
    ):
        state_of(tiny_llama, TEXTS[0], SITE)  # the stack is cut below the edit
    assert hooks_left(tiny_llama) == 0


def test_raw_calls_know_positions_only_where_they_can(tiny_llama: LanguageModel, vector: Tensor) -> None:
    tokens = tiny_llama.tokenize(TEXTS[:1])
    plain = tiny_llama.model(tokens.input_ids).logits
    with pytest.raises(SteeringError, match="raw model"), tiny_llama.steering(Add(vector, positions=Last())):
        tiny_llama.model(tokens.input_ids)
    with tiny_llama.steering(Add(vector)):
        assert not torch.allclose(tiny_llama.model(tokens.input_ids).logits, plain)
    with torch.no_grad(), tiny_llama.steering(Add(vector, positions=Generated())):
        raw = tiny_llama.model.generate(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            suppress_tokens=list(range(300, 320)),
        )
    assert raw[0, tokens.width :].tolist() == recomputed(tiny_llama, TEXTS[0], vector, Generated(), 4)


def test_an_edit_belongs_to_the_thread_that_entered(tiny_llama: LanguageModel, vector: Tensor) -> None:
    plain = tiny_llama.logits(TEXTS)
    elsewhere: list[Tensor] = []
    with tiny_llama.steering(Add(vector)):
        worker = threading.Thread(target=lambda: elsewhere.append(tiny_llama.logits(TEXTS)))
        worker.start()
        worker.join()
        assert not torch.allclose(tiny_llama.logits(TEXTS), plain)
    assert torch.equal(elsewhere[0], plain)


def test_half_precision_models_are_edited_in_float32(vector: Tensor) -> None:
    from families import build, tiny_tokenizer

    from steerlab.models import load_model

    model = load_model(build("llama").to(torch.bfloat16), tokenizer=tiny_tokenizer())
    edit = Add(vector)
    plain = state_of(model, TEXTS[0], SITE)
    with model.steering(edit):
        steered = state_of(model, TEXTS[0], SITE)
    assert edit.seen == [torch.float32]
    assert steered.dtype == torch.bfloat16
    assert torch.equal(steered, (plain.float() + vector).bfloat16())


def test_wrong_edits_are_refused_before_anything_runs(tiny_llama: LanguageModel, vector: Tensor) -> None:
    with pytest.raises(SteeringError, match="at least one"), tiny_llama.steering():
        pass
    with pytest.raises(SteeringError, match="names no site"), tiny_llama.steering(Add(vector, [])):
        pass
    with (
        pytest.raises(SiteError, match="layers 0 to 2"),
        tiny_llama.steering(Add(vector, [Site("resid_post", 3)])),
    ):
        pass
    assert hooks_left(tiny_llama) == 0
