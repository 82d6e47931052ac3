"""Price of steering on unrelated text, against transformers' own loss and a KL computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny

from steerlab.errors import SteerlabError
from steerlab.models import All, Prompt, Site
from steerlab.steering.price import side_effects

TEXTS = ["the cat sat on the mat", "a dog", "one two three four five six", "the dog ran to the cat"]


class Shift:
    """Adds a constant at one site."""

    def __init__(self, model, size: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.vector = size * torch.randn(model.d_model, generator=generator)
        self.sites, self.positions = (Site("resid_post", 0),), All()

    def apply(self, state, site):
        return state + self.vector

    def check(self, model) -> None:
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_loss_and_divergence_equal_a_direct_computation(family: str) -> None:
    model = tiny(family)
    edit = Shift(model, 0.5)
    found = side_effects(model, TEXTS, {"shift": [edit], "none": [Shift(model, 0.0)]}, token_budget=16)

    kl: list[float] = []
    before: list[float] = []
    after: list[float] = []
    for text in TEXTS:
        tokens = model.tokenize([text])
        with torch.no_grad():
            plain = model.model(tokens.input_ids).logits[0, :, : model.vocab_size].double().log_softmax(-1)
            with model.steering(edit):
                steered = (
                    model.model(tokens.input_ids).logits[0, :, : model.vocab_size].double().log_softmax(-1)
                )
        target = tokens.input_ids[0, 1:]
        at = torch.arange(len(target))
        before += (-plain[at, target]).tolist()
        after += (-steered[at, target]).tolist()
        kl += (plain.exp() * (plain - steered)).sum(-1)[:-1].tolist()
    shift = found["shift"]
    assert shift.texts == len(TEXTS)
    assert shift.tokens == len(kl)
    assert shift.kl.value == pytest.approx(np.mean(kl), abs=1e-5)
    assert shift.loss.value == pytest.approx(np.mean(before), abs=1e-5)
    assert shift.loss_change.value == pytest.approx(np.mean(after) - np.mean(before), abs=1e-5)
    assert shift.kl.low > 0
    assert found["none"].kl.value == pytest.approx(0, abs=1e-6)
    assert found["none"].loss_change.value == pytest.approx(0, abs=1e-6)


def test_last_token_only_compares_the_next_token_law() -> None:
    model = tiny("llama")
    edit = Shift(model, 0.5)
    found = side_effects(model, TEXTS, {"shift": [edit]}, positions="last")["shift"]
    plain = model.logits(TEXTS).double().log_softmax(-1)
    with model.steering(edit):
        steered = model.logits(TEXTS).double().log_softmax(-1)
    expected = (plain.exp() * (plain - steered)).sum(-1).mean()
    assert found.kl.value == pytest.approx(float(expected), abs=1e-5)
    assert found.tokens == len(TEXTS)
    assert found.loss is None
    assert found.loss_change is None


def test_texts_without_a_token_to_predict_are_an_error() -> None:
    model = tiny("gpt2")
    with pytest.raises(SteerlabError, match="second token"):
        side_effects(model, [Prompt("<s>", has_special_tokens=True)], {"shift": [Shift(model, 1.0)]})
