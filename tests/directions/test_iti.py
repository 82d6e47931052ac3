"""Inference-time intervention: which heads are chosen, what is added to them, and the same as a bias of W_O."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from families import tiny
from torch import Tensor

from steerlab.activations import Activations, capture
from steerlab.directions import (
    DifferenceInMeans,
    Direction,
    HeadScores,
    LogisticProbe,
    head_direction,
    score_heads,
)
from steerlab.errors import DirectionError
from steerlab.models import LanguageModel, Site
from steerlab.steering import Add

PLANTED = {Site("z", 0): (3,), Site("z", 1): (0, 2)}
TEXTS = ["The capital of France is Paris.", "A cat is an animal", "Two plus two is four; three"]


def planted(model: LanguageModel, n: int = 120, seed: int = 0) -> tuple[Activations, list[int]]:
    """Random `z` states in which three heads know the label, each along a direction and at a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i % 2 for i in range(n)]
    sign = torch.tensor(labels)[:, None] * 2.0 - 1
    states = {}
    for site in model.sites("z"):
        rows = torch.randn(n, model.n_heads, model.head_dim, generator=generator)
        for head in PLANTED.get(site, ()):
            axis = torch.randn(model.head_dim, generator=generator)
            rows[:, head] = (1 + head) * (rows[:, head] + 2.0 * sign * axis / axis.norm())
        states[site] = rows.flatten(1)
    acts = Activations(
        states, torch.arange(n), torch.zeros(n, dtype=torch.long), n, model.name, model.fingerprint
    )
    return acts, labels


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "gpt2"]
)  # grouped heads; heads wider than d / n; neither
def test_the_heads_that_know_are_chosen(family: str) -> None:
    model = tiny(family)
    acts, labels = planted(model)
    scores = score_heads(acts, labels, model=model)
    assert scores.top(3) == PLANTED
    assert {len(accuracy) for accuracy in scores.accuracy.values()} == {
        4
    }  # query heads, of which llama groups two
    ranks = [scores.top(k) for k in (1, 2, 12)]
    assert sum(map(len, ranks[2].values())) == 12
    assert set(ranks[0]) <= set(ranks[1]) <= set(PLANTED)


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_vector_is_the_shift_at_length_one_times_sigma(ddof: int, tmp_path: Path) -> None:
    model = tiny("mistral")
    acts, labels = planted(model)
    other, _ = planted(model, n=50, seed=1)
    y = np.array(labels, dtype=bool)
    for spread in (None, other):
        made = head_direction(acts, labels, PLANTED, model=model, spread=spread, ddof=ddof)
        for site, heads in PLANTED.items():
            vector = made[site].double().numpy().reshape(4, 12)
            rows = acts[site].double().numpy().reshape(-1, 4, 12)
            measured = (spread or acts)[site].double().numpy().reshape(-1, 4, 12)
            for head in range(4):
                if head not in heads:
                    assert not vector[head].any()
                    continue
                shift = rows[y, head].mean(0) - rows[~y, head].mean(0)
                unit = shift / np.linalg.norm(shift)
                sigma = np.std(measured[:, head] @ unit, ddof=ddof)
                np.testing.assert_allclose(vector[head], sigma * unit, rtol=1e-5, atol=1e-6)
                assert made.statistics[site].sigma[heads.index(head)] == pytest.approx(sigma)  # type: ignore[index]
            assert made.statistics[site].heads == heads
            projections = rows.reshape(-1, 48) @ vector.ravel() / np.linalg.norm(vector)
            assert made.class_gap[site] == pytest.approx(
                projections[y].mean() - projections[~y].mean(), rel=1e-5
            )
    made.save(tmp_path / "heads.safetensors")
    assert Direction.load(tmp_path / "heads.safetensors").statistics == made.statistics


def test_the_probes_weights_may_give_the_direction() -> None:
    model = tiny("llama")
    acts, labels = planted(model)
    made = head_direction(acts, labels, PLANTED, model=model, shift=LogisticProbe())
    weights = LogisticProbe().fit(acts[Site("z", 0)].double()[:, 24:], labels).direction_
    part = made[Site("z", 0)].double().numpy()[24:]
    assert part @ weights / np.linalg.norm(part) / np.linalg.norm(weights) == pytest.approx(1.0, abs=1e-6)
    assert made.parameters == {"shift": "LogisticProbe", "ddof": 0}


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_adding_moves_the_chosen_heads_and_no_others(family: str) -> None:
    model = tiny(family)
    acts, labels = planted(model)
    site = Site("z", 1)
    made = head_direction(acts, labels, {site: (0, 2)}, model=model)
    before = capture(model, TEXTS, site)[site]
    with model.steering(Add(made, strength=15.0, unit="raw")):
        after = capture(model, TEXTS, site)[site]
    moved = (after - before).reshape(-1, 4, model.head_dim)
    expected = 15.0 * made[site].reshape(4, -1)
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-4, atol=1e-4)
    assert not moved[:, [1, 3]].any()


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_the_intervention_is_a_constant_bias_of_the_output_projection(family: str) -> None:
    """W_O·δ on the projection's output equals δ on its input; δ itself as that bias, as once published, does not."""
    model = tiny(family)
    acts, labels = planted(model)
    made = head_direction(acts, labels, PLANTED, model=model)
    tokens = model.tokenize(TEXTS)
    with model.steering(Add(made, strength=3.0, unit="raw", layers="all")):
        steered = model.logits(tokens, last_only=False)

    def with_bias(bias: Any) -> Tensor:
        hooks = [
            projection(model, site.layer).register_forward_hook(
                lambda _m, _i, out, site=site: out + bias(model, site, 3.0 * made[site])
            )
            for site in made.sites
        ]
        try:
            return model.logits(tokens, last_only=False)
        finally:
            for hook in hooks:
                hook.remove()

    real = tokens.attention_mask.bool()
    baked = with_bias(lambda model, site, delta: output_matrix(model, site.layer) @ delta)
    torch.testing.assert_close(baked[real], steered[real], rtol=1e-4, atol=1e-4)
    if model.n_heads * model.head_dim == model.d_model:
        published = with_bias(lambda model, site, delta: delta)
        assert (published[real] - steered[real]).abs().max() > 0.1


def projection(model: LanguageModel, layer: int | None) -> Any:
    if hasattr(model.model, "transformer"):
        return model.model.transformer.h[layer].attn.c_proj
    return model.model.model.layers[layer].self_attn.o_proj


def output_matrix(model: LanguageModel, layer: int | None) -> Tensor:
    """W_O [d_model, heads × head_dim]; GPT-2 stores it transposed."""
    weight: Tensor = projection(model, layer).weight.detach()
    return weight.T if hasattr(model.model, "transformer") else weight


class Spy(DifferenceInMeans):
    """Notes the questions (here the first number of each row) it was fitted on and asked about."""

    fitted: ClassVar[list[set[float]]] = []
    asked: ClassVar[list[set[float]]] = []

    def fit(self, X: Any, y: Any) -> Any:
        self.fitted.append(set(X[:, 0].tolist()))
        return super().fit(X, y)

    def decision_function(self, X: Any) -> Any:
        self.asked.append(set(X[:, 0].tolist()))
        return super().decision_function(X)


@pytest.mark.parametrize("grouped", [True, False])
def test_answers_to_one_question_stay_on_one_side(grouped: bool) -> None:
    model = tiny("llama")
    question = torch.arange(240) // 4
    labels = (torch.arange(240) % 2).tolist()
    rows = question[:, None].expand(240, 32).float() + torch.arange(32)
    acts = Activations(
        {Site("z", 0): rows}, torch.arange(240), 0 * question, 240, model.name, model.fingerprint
    )
    Spy.fitted.clear()
    Spy.asked.clear()
    groups = [f"question {number}" for number in question.tolist()] if grouped else None
    score_heads(acts, labels, model=model, probe=Spy(), groups=groups)
    shared = [fitted & asked for fitted, asked in zip(Spy.fitted, Spy.asked, strict=True)]
    assert len(shared) == 4
    assert all(not each if grouped else each for each in shared)
    if grouped:
        assert {len(asked) for asked in Spy.asked} == {12}


def test_equal_accuracies_are_ranked_by_the_area_under_the_curve() -> None:
    site = Site("z", 0)
    scores = HeadScores({site: np.array([0.8, 0.8, 0.9])}, {site: np.array([0.7, 0.85, 0.6])})
    assert scores.top(1) == {site: (2,)}
    assert scores.top(2) == {site: (1, 2)}


def test_misuse_is_named() -> None:
    model = tiny("llama")
    acts, labels = planted(model, n=20)
    scores = score_heads(acts, labels, model=model)
    with pytest.raises(DirectionError, match="There are 12 heads; choose between 1 and all of them, not 13"):
        scores.top(13)
    with pytest.raises(DirectionError, match=r"states of heads \(4,\) of z\.0"):
        head_direction(acts, labels, {Site("z", 0): (4,)}, model=model)
    with pytest.raises(DirectionError, match="capture them again there"):
        score_heads(acts, labels, model=tiny("llama", seed=1))
    with pytest.raises(DirectionError, match="20 prompts came with 2 labels"):
        score_heads(acts, [0, 1], model=model)
    with pytest.raises(DirectionError, match="has one class only"):
        score_heads(acts, [1] + [0] * 19, model=model)
    stream = capture(model, TEXTS, Site("resid_post", 0))
    with pytest.raises(DirectionError, match="Heads live at the sites called z"):
        score_heads(stream, [0, 1, 1], model=model)
