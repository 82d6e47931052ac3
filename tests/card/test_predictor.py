"""Agreement, separability and their correlation with the effect: closed forms, and scipy's own correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import steerlab as sl
from steerlab.card.predictor import agreement, predictor, separability, spearman
from steerlab.errors import SteerlabError


def test_agreement_of_equal_orthogonal_and_opposed_differences() -> None:
    one = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    assert agreement(one) == pytest.approx(1.0)
    assert agreement(torch.eye(3)) == pytest.approx(0.0)
    assert agreement(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1.0)


def test_agreement_leaves_the_pair_itself_out() -> None:
    rows = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = []
    for at in range(6):
        others = torch.cat([rows[:at], rows[at + 1 :]]).mean(dim=0)
        by_hand.append(float(rows[at] @ others / rows[at].norm() / others.norm()))
    assert agreement(rows) == pytest.approx(np.mean(by_hand), abs=1e-12)


def test_separability_is_the_distance_in_standard_deviations() -> None:
    along = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)
    assert separability(along + 10, along) == pytest.approx(10 / 2)  # standard deviation 2


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=6, max_size=20, unique=True), st.integers(0, 1000))
def test_the_correlation_is_scipy_s_inside_its_interval(values: list[float], seed: int) -> None:
    other = np.random.default_rng(seed).normal(size=len(values)).tolist()
    found = spearman(values, other)
    assert found.value == pytest.approx(stats.spearmanr(values, other).statistic)
    assert found.low <= found.value <= found.high


def test_bonett_and_wright_s_interval() -> None:
    first, second = list(range(15)), [0, 1, 2, 3, 4, 5, 6, 7, 14, 9, 10, 11, 12, 13, 8]
    found = spearman(first, second)
    r = found.value
    half = stats.norm.ppf(0.975) * math.sqrt((1 + r**2 / 2) / 12)
    assert math.atanh(found.high) - math.atanh(r) == pytest.approx(half)
    assert math.atanh(r) - math.atanh(found.low) == pytest.approx(half)
    for turned in (first, first[::-1]):  # perfect either way
        whole = spearman(first, turned)
        assert whole.low <= whole.value <= whole.high
    with pytest.raises(ValueError, match="four rows"):
        spearman([1, 2, 3], [1, 2, 3])


def test_every_packaged_contrast_is_measured() -> None:
    found = predictor(sl.load("zoo:small-post"))
    assert len(found.readings) == 15
    assert [one.reading for one in found.correlations] == ["agreement", "separability"]
    assert all(one.value.n == 15 for one in found.correlations)
    assert all(one.effect is not None for one in found.readings)
    assert ("not established" in repr(found)) == any(not one.established for one in found.correlations)


def test_few_contrasts_establish_nothing() -> None:
    few = {name: sl.datasets.contrast(name) for name in ("happy", "formal")}
    with pytest.raises(SteerlabError, match="needs 14 contrasts"):
        predictor(sl.load("zoo:small-post"), few)
