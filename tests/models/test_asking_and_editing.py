"""`ask`, `generate` of one text, `edit`, and what `steering` and `load` take."""

from __future__ import annotations

import pytest
import torch
from families import build, tiny, tiny_tokenizer
from torch import Tensor

import steerlab as sl
from steerlab.errors import ModelError, PromptError, SiteError, SteeringError
from steerlab.models import LanguageModel

SITE = sl.Site("resid_post", 1)


def direction(model: LanguageModel) -> sl.Direction:
    generator = torch.Generator().manual_seed(3)
    rows = 5 * torch.randn(model.d_model, generator=generator)
    return sl.Direction({SITE: rows}, model.name, model.fingerprint)


def test_one_text_gives_one_generation_and_a_list_a_list(tiny_llama: LanguageModel) -> None:
    one = tiny_llama.generate("The cat", max_new_tokens=4)
    assert [one] == tiny_llama.generate(["The cat"], max_new_tokens=4)
    assert len(tiny_llama.generate("The cat").token_ids) <= 64
    assert torch.equal(tiny_llama.logits("The cat"), tiny_llama.logits(["The cat"]))
    with pytest.raises(PromptError, match="one column"):
        tiny_llama.generate({"text": ["The cat"]})


@pytest.mark.parametrize("chat", [True, False])
def test_asking_is_one_instruction_greedily(chat: bool) -> None:
    model = tiny(chat=chat)
    prompt = model.instruction_prompt("Is a cat an animal?")
    answer = model.generate(prompt, max_new_tokens=6).text.strip()
    assert model.ask("Is a cat an animal?", max_new_tokens=6) == answer
    with model.steering(sl.Add(direction(model), 9.0)):
        steered = model.ask("Is a cat an animal?", max_new_tokens=6)
    assert steered != answer
    sampled = [model.ask("A cat?", max_new_tokens=6, do_sample=True, seed=1) for _ in range(2)]
    assert sampled[0] == sampled[1]
    with pytest.raises(PromptError, match="One question"):
        model.ask(["a", "b"])
    with pytest.raises(PromptError, match="empty"):
        model.ask(" ")


def test_a_function_edits_states_as_an_edit_does(tiny_llama: LanguageModel) -> None:
    model, made = tiny_llama, direction(tiny_llama)
    with model.steering(sl.Add(made, 2.0, positions=sl.Last())):
        wanted = model.logits(["a cat", "two dogs sit"])
    with model.edit("resid_post.1", lambda state: state + 2 * made[SITE], positions=sl.Last()) as applied:
        got = model.logits(["a cat", "two dogs sit"])
    torch.testing.assert_close(got, wanted)
    assert applied.counts[0].passes == 1

    def in_place(state: Tensor) -> Tensor:
        state.mul_(0.5)
        return state

    with model.edit("resid_post", in_place):
        halved = model.logits("a cat")
    with model.steering(sl.Scale(0.5, sites="resid_post")):
        torch.testing.assert_close(model.logits("a cat"), halved)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda state: None, "let it return the new state"),
        (lambda state: state[..., :3], "what it returns has to be the same"),
        (lambda state: state.double(), "float64 at resid_post.1; the state is"),
        (lambda state: state / 0, "not finite"),
    ],
)
def test_a_function_that_gives_something_else_is_named(
    tiny_llama: LanguageModel, function: object, words: str
) -> None:
    before = tiny_llama.logits("a cat")
    with pytest.raises(SteeringError, match=words), tiny_llama.edit(SITE, function):  # type: ignore[arg-type]
        tiny_llama.logits("a cat")
    assert torch.equal(tiny_llama.logits("a cat"), before)


def test_an_edit_that_is_none_or_never_runs_is_named(tiny_llama: LanguageModel) -> None:
    with pytest.raises(SteeringError, match="never acted"), tiny_llama.edit(SITE, lambda state: state):
        pass
    with pytest.raises(SteeringError, match="needs a function"), tiny_llama.edit(SITE, 2.0):  # type: ignore[arg-type]
        pass
    with (
        pytest.raises(SiteError, match="layers 0 to 2"),
        tiny_llama.edit("resid_post.7", lambda state: state),
    ):
        pass


def test_steering_takes_edits_lists_and_directions(tiny_llama: LanguageModel) -> None:
    model, made = tiny_llama, direction(tiny_llama)
    add, ablate = sl.Add(made, 1.0), sl.Ablate(made, sites=[SITE])
    with model.steering(add, ablate):
        both = model.logits("a cat")
    with model.steering([add, ablate]):
        assert torch.equal(model.logits("a cat"), both)
    with model.steering(add):
        one = model.logits("a cat")
    for given in (made, [made], (made,)):
        with model.steering(given):
            assert torch.equal(model.logits("a cat"), one)


@pytest.mark.parametrize("given", [(), ([],), ("refusal",), (sl.Add,), (None,), ([1.0],)])
def test_what_is_no_edit_says_what_to_give(tiny_llama: LanguageModel, given: tuple[object, ...]) -> None:
    with pytest.raises(SteeringError, match=r"give model\.steering"), tiny_llama.steering(*given):  # type: ignore[arg-type]
        pass


def test_loading_takes_the_tokenizer_in_second_place() -> None:
    model = sl.load(build("llama"), tiny_tokenizer())
    assert model.n_layers == 3
    assert sl.load(model) is model


@pytest.mark.parametrize("given", [None, 5, ["zoo:small-post"], {"name": "zoo:small-post"}])
def test_loading_nothing_says_what_to_give(given: object) -> None:
    with pytest.raises(ModelError, match="zoo:small-post"):
        sl.load(given)
