"""What ablating one direction does to another: against plain torch hooks, in closed form, and on the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from families import build, tiny, tiny_tokenizer

import steerlab as sl
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.readouts.refusals import log_odds, refusal_tokens
from steerlab.steering import Independence, effects_by_category, independence, token_log_odds

PROMPTS = ["the cat sat on", "a dog", "one two three", "the dog ran to the cat"]
EFFECT = token_log_odds([5], [9])


def direction(model: LanguageModel, seed: int, layer: int = 1) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction({Site("resid_post", layer): vector}, model.name, model.fingerprint)


@contextmanager
def by_hand(
    model: LanguageModel, without: torch.Tensor | None, plus: tuple[int, torch.Tensor] | None
) -> Iterator[list[torch.Tensor]]:
    """Hooks of torch's own: one direction taken out of every write to the stream, another added behind a block."""
    layers, norm = model.model.model.layers, model.model.model.norm
    states: list[torch.Tensor] = []

    def out(x: Any) -> Any:
        if isinstance(x, tuple):
            return (out(x[0]), *x[1:])
        if without is None:
            return x
        unit = (without / without.norm()).to(x)
        return x - (x @ unit)[..., None] * unit

    def behind(at: int) -> Any:
        def hook(module: Any, given: Any, x: torch.Tensor) -> torch.Tensor:
            x = x + plus[1] if plus is not None and plus[0] == at else x
            states.append(x.detach())
            return x

        return hook

    before = [layer.register_forward_pre_hook(lambda m, given: out(given)) for layer in layers]
    parts = [part for layer in layers for part in (layer.self_attn, layer.mlp)]
    inside = [part.register_forward_hook(lambda m, given, x: out(x)) for part in parts]
    after = [layer.register_forward_hook(behind(at)) for at, layer in enumerate(layers)]
    last = norm.register_forward_pre_hook(lambda m, given: out(given))
    try:
        yield states
    finally:
        for handle in (*before, *inside, *after, last):
            handle.remove()


def read_by_hand(
    model: LanguageModel, v: torch.Tensor, without: torch.Tensor | None = None, plus: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines with v [prompt, layer] at the last token, and the effect [prompt]."""
    cosines, odds = [], []
    for prompt in PROMPTS:
        with torch.no_grad(), by_hand(model, without, plus) as states:
            logits = model.model(model.tokenize([prompt]).input_ids).logits[0, -1, : model.vocab_size]
        cosines.append([float(torch.cosine_similarity(x[0, -1].double(), v.double(), dim=0)) for x in states])
        law = logits.double().log_softmax(-1)
        odds.append(float(law[5] - law[9]))
    return np.array(cosines), np.array(odds)


def test_it_is_what_plain_hooks_give() -> None:
    model = tiny("llama")
    named = {"a": direction(model, 0), "b": direction(model, 1)}
    found = independence(model, named, PROMPTS, EFFECT, strength=2.0, randoms=2)
    for ablated, kept in (("a", "b"), ("b", "a")):
        pair = found.pair(ablated, kept)
        i, j = named[ablated][1], named[kept][1]
        plain, before = read_by_hand(model, j)
        changed, without = read_by_hand(model, j, i)
        np.testing.assert_allclose(
            [change.value for change in pair.cosine.values()], (changed - plain).mean(0), atol=2e-6
        )
        added = read_by_hand(model, j, None, (1, 2 * j))[1] - before
        left = read_by_hand(model, j, i, (1, 2 * j))[1] - without
        assert found.effects[kept].value == pytest.approx(added.mean(), abs=1e-5)
        assert pair.effect is not None
        assert pair.effect.value == pytest.approx((left - added).mean(), abs=2e-5)
        assert list(pair.cosine) == ["resid_post.0", "resid_post.1", "resid_post.2"]
        assert pair.effect_control is not None
        assert pair.effect_control.n == 2
    assert Independence.model_validate(found.to_dict()) == found
    assert found.plot().data


def test_what_is_orthogonal_and_not_read_on_is_left_alone() -> None:
    """Without attention and MLP the stream is the embedding: i ⟂ j leaves x·j as it is, and i = j leaves nothing."""
    module = build("llama")
    for layer in module.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model = sl.load(module, tokenizer=tiny_tokenizer())
    a, b = (torch.zeros(model.d_model) for _ in range(2))
    a[3], b[7] = 1.0, 2.0
    skew = a + b / 2  # at 45 degrees to both
    made = {
        name: Direction({Site("resid_post", 0): v}, model.name, model.fingerprint)
        for name, v in {"a": a, "b": b, "skew": skew}.items()
    }
    found = independence(model, made, PROMPTS)
    states = sl.capture(model, PROMPTS, "resid_post.0")["resid_post.0"].double()
    for site, change in found.pair("a", "b").projection.items():
        assert change.value == pytest.approx(0, abs=1e-6), site
    for change in found.pair("a", "skew").projection.values():  # of (x3 + x7)/√2 only x7/√2 stays
        assert change.value == pytest.approx(float(-(states[:, 3] / 2**0.5).mean()), abs=1e-6)
    expected = states[:, 7] / (states.norm(dim=1) ** 2 - states[:, 3] ** 2).sqrt() - states[
        :, 7
    ] / states.norm(dim=1)
    assert found.pair("a", "b").cosine["resid_post.2"].value == pytest.approx(
        float(expected.mean()), abs=1e-6
    )
    assert found.pair("a", "b").effect is None
    assert found.pair("a", "b").leans is None
    assert found.effects == {}


@pytest.fixture(scope="module")
def post() -> LanguageModel:
    return sl.load("zoo:small-post")


def test_on_the_bundled_model_a_mixture_leans_on_its_part_and_nothing_on_noise(post: LanguageModel) -> None:
    """Refusal ablated takes away what refusal mixed with anything adds; a random direction is its own control."""
    requests = sl.datasets.requests()
    refusal = sl.extract(post, "refusal")
    best = refusal.at(refusal.best)
    noise = torch.randn(post.d_model, generator=torch.Generator().manual_seed(9))
    noise *= best[refusal.best].norm() / noise.norm()
    as_random = Direction({refusal.best: noise}, post.name, post.fingerprint)
    mixed = Direction({refusal.best: best[refusal.best] + noise / 2}, post.name, post.fingerprint)
    prompts = [post.instruction_prompt(text) for text in requests.split("test").negative[:24]]
    tokens = list(refusal_tokens(post, prompts[0]))
    found = independence(
        post,
        {"refusal": best, "mixed": mixed, "random": as_random},
        prompts,
        lambda model, given: log_odds(model, given, tokens),
        randoms=8,
    )
    assert found.effects["refusal"].low > 0
    assert found.pair("refusal", "mixed").leans
    assert len(found.pair("refusal", "mixed").moved) == post.n_layers
    lost, chance = (found.pair(name, "refusal").effect for name in ("mixed", "random"))
    assert abs(chance.value) < 0.2 * abs(lost.value)


def test_effects_by_category_are_means_of_differences() -> None:
    model = tiny("llama")
    a = direction(model, 0)
    kinds = ["x", "y", "x", "y"]
    found = effects_by_category(model, {"a": a}, PROMPTS, kinds, EFFECT, how="add", strength=3.0, randoms=3)
    with model.steering(sl.Add(a, 3.0, unit="raw")):
        steered = np.asarray(EFFECT(model, PROMPTS))
    change = steered - np.asarray(EFFECT(model, PROMPTS))
    expected = [change[::2].mean(), change[1::2].mean()]
    assert [row.effect.value for row in found.rows] == pytest.approx(expected, abs=1e-6)
    assert [(row.category, row.prompts, row.control.n) for row in found.rows] == [("x", 2, 3), ("y", 2, 3)]
    assert "| a | x | 2 |" in str(found)
    assert found.plot().data
    removed = effects_by_category(model, [a, -a], PROMPTS, kinds, EFFECT)
    assert removed.rows[0].effect.value == pytest.approx(removed.rows[2].effect.value, abs=1e-6)


def test_a_direction_of_several_vectors_stands_for_each() -> None:
    model = tiny("llama")
    two = torch.stack([direction(model, seed)[1] for seed in (0, 1)])
    found = independence(
        model, Direction({Site("resid_post", 1): two}, model.name, model.fingerprint), PROMPTS
    )
    assert found.names == ("0", "1")
    assert [(pair.ablated, pair.kept) for pair in found.pairs] == [("0", "1"), ("1", "0")]


def test_what_cannot_be_is_refused() -> None:
    model = tiny("llama")
    a, b = direction(model, 0), direction(model, 1)
    with pytest.raises(SteeringError, match="At least 2 directions are needed, and 1 came"):
        independence(model, {"a": a}, PROMPTS)
    with pytest.raises(SteeringError, match="4 prompts came with 1 groups"):
        independence(model, [a, b], PROMPTS, groups=[0])
    with pytest.raises(SteeringError, match="one finite number a prompt"):
        independence(model, [a, b], PROMPTS, lambda model, prompts: 1.0)
    with pytest.raises(SteeringError, match="needs a random direction at least"):
        independence(model, [a, b], PROMPTS, randoms=0)
    with pytest.raises(SteeringError, match="There is no pair of 'c' and '0'; the names are 0, 1"):
        independence(model, [a, b], PROMPTS, randoms=1).pair("c", "0")
    with pytest.raises(SteeringError, match="4 prompts came with 2 categories"):
        effects_by_category(model, a, PROMPTS, ["x", "y"], EFFECT)
    with pytest.raises(SteeringError, match="by 'ablate' or 'add', not by 'turn'"):
        effects_by_category(model, a, PROMPTS, ["x"] * 4, EFFECT, how="turn")  # type: ignore[arg-type]
