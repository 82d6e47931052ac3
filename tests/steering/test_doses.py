"""An intervention so many times as strong, and with random directions in place of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steerlab as sl
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import Decay

SITE = Site("resid_post", 1)


@pytest.fixture(scope="module")
def direction() -> sl.Direction:
    model = sl.load("zoo:small-post")
    return sl.extract(model, "happy").at(SITE)


@given(st.floats(0.1, 8))
def test_an_addition_is_multiplied(factor: float) -> None:
    vector, state = torch.arange(4.0), torch.ones(1, 2, 4)
    once = sl.Add(vector, sites=SITE)
    moved = once.times(factor).apply(state, SITE) - state
    assert torch.allclose(moved, factor * (once.apply(state, SITE) - state), rtol=1e-5)


def test_strengths_by_layer_are_all_multiplied(direction: sl.Direction) -> None:
    model = sl.load("zoo:small-post")
    whole = sl.extract(model, "happy")
    found = sl.Add(whole, {1: 0.5, 2: 1.0}).times(2)
    assert found.strength == {1: 1.0, 2: 2.0}
    assert found.sites == (Site("resid_post", 1), Site("resid_post", 2))


def test_what_has_no_strength_takes_a_share(direction: sl.Direction, tiny_llama: LanguageModel) -> None:
    clamp = sl.Clamp(torch.ones(tiny_llama.d_model), 3.0, sites=SITE)
    with tiny_llama.steering(clamp.times(0.25)):
        some = sl.capture(tiny_llama, "a text", SITE)[SITE]
    with tiny_llama.steering(clamp):
        all_of_it = sl.capture(tiny_llama, "a text", SITE)[SITE]
    plain = sl.capture(tiny_llama, "a text", SITE)[SITE]
    assert torch.allclose(some - plain, 0.25 * (all_of_it - plain), atol=1e-5 * float(all_of_it.abs().max()))
    with pytest.raises(SteeringError, match="shares of 0 to 1"):
        clamp.times(2)
    decaying = sl.Clamp(torch.ones(4), 3.0, sites=SITE, schedule=Decay(0.5)).times(0.5)
    assert decaying.schedule is not None
    assert [decaying.schedule(step) for step in (0, 1)] == [0.5, 0.25]


@pytest.mark.parametrize("kind", [sl.Add, sl.Ablate])
def test_random_ones_are_as_long_and_drawn_by_the_seed(kind: type, direction: sl.Direction) -> None:
    own = kind(direction)
    drawn, again, other = own.random_like(1), own.random_like(1), own.random_like(2)
    assert drawn.sites == own.sites
    rows = drawn.direction.vectors[SITE]
    assert torch.allclose(rows.norm(dim=-1), direction.vectors[SITE].norm(dim=-1), rtol=1e-5)
    assert torch.equal(rows, again.direction.vectors[SITE])
    assert not torch.equal(rows, other.direction.vectors[SITE])
    cosine = torch.nn.functional.cosine_similarity(rows, direction.vectors[SITE])
    assert float(cosine.abs()) < 0.5  # width 128
    if kind is sl.Add:  # a class gap is as long as before
        state = torch.zeros(1, 1, rows.shape[1])
        sizes = [float(edit.apply(state, SITE).norm()) for edit in (own, drawn)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


def test_what_is_kept_stays_and_what_has_no_direction_is_refused(direction: sl.Direction) -> None:
    other = sl.extract(sl.load("zoo:small-post"), "formal").at(SITE)
    kept = sl.Ablate(direction, keep=[other]).random_like(0)
    assert [one.hash for one in kept.keep] == [other.hash]
    assert kept.direction.hash != direction.hash
    with pytest.raises(SteeringError, match="no random one"):
        sl.Scale(0.5, sites="mlp_post.0").random_like()
