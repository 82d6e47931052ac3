"""Agreement of two models' directions: its ceiling, its weights and states that have none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab.readouts.agreement import agreement_by_layer, contrast_weights


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 1000))
def test_contrast_weights_give_the_difference_of_weighted_means(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.array([True, False] * n)
    counts = rng.integers(1, 4, size=(2, 2 * n)).astype(float)
    x = rng.standard_normal((2 * n, 3))
    for weights, count in zip(contrast_weights(labels, counts), counts, strict=True):
        repeated, y = np.repeat(x, count.astype(int), axis=0), np.repeat(labels, count.astype(int))
        np.testing.assert_allclose(weights @ x, repeated[y].mean(0) - repeated[~y].mean(0), atol=1e-12)


def test_agreement_reaches_its_ceiling_only_where_the_directions_are_the_same() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2 == 0
    noise = rng.standard_normal((2, 3, 200, 16))
    axes = np.eye(16)
    gap = 2.0 * labels[:, None] - 1.0
    base = noise[0] + np.stack([gap * axes[0], gap * axes[0], 0 * gap * axes[0]])
    post = noise[1] + np.stack([gap * axes[0], gap * axes[1], 0 * gap * axes[0]])
    rows = agreement_by_layer(
        base, post, labels, clusters=np.arange(200), strata=np.zeros(200), layers=[0, 1, 2], seed=0
    )
    equal, apart, nothing = rows
    assert abs(equal.crossed.value - equal.ceiling.value) < 0.1 < equal.ceiling.value
    assert equal.cosine.low > equal.random
    assert abs(apart.cosine.value) < 0.3 < apart.ceiling.value
    assert nothing.ceiling.value < 0.4
    assert all(abs(row.shuffled.value) < 0.2 for row in rows)
    for row in rows:
        assert row.cosine.low <= row.cosine.value <= row.cosine.high


def test_equal_states_have_no_cosine() -> None:
    """Template tokens at the first block's input are the same in every prompt: class means differ by rounding only."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) < 20
    equal = np.repeat(rng.standard_normal((1, 16)), 40, axis=0).astype(np.float32)
    differing = rng.standard_normal((40, 16)).astype(np.float32)
    equal_at, differing_at = agreement_by_layer(
        np.stack([equal, differing]),
        np.stack([equal * 3, differing]),
        labels,
        clusters=np.arange(40),
        strata=np.zeros(40, dtype=int),
        layers=[0, 1],
        seed=0,
    )
    assert np.isnan(equal_at.cosine.value)
    assert np.isnan(equal_at.ceiling.value)
    assert differing_at.cosine.value == pytest.approx(1)
