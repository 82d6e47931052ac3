from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from steerlab.statistics import (
    benjamini_hochberg,
    cosine_null,
    permutation_null,
    permutation_p_value,
    spearman_brown,
    split_half,
)


def test_permutation_p_value_is_scipys() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.9, 1, 25), rng.normal(0, 1, 25)])
    labels = np.repeat([1, 0], 25)

    def gap(y: NDArray[np.int64]) -> float:
        return float(values[y == 1].mean() - values[y == 0].mean())

    null = permutation_null(gap, labels, seed=0, draws=4000)
    theirs = stats.permutation_test(
        (values[:25], values[25:]),
        lambda a, b: a.mean() - b.mean(),
        n_resamples=4000,
        alternative="greater",
        rng=1,
    )
    assert permutation_p_value(gap(labels), null) == pytest.approx(theirs.pvalue, abs=0.025)
    both = permutation_p_value(gap(labels), null, "two-sided")
    assert both == pytest.approx(2 * permutation_p_value(gap(labels), null))


def test_p_values_are_never_zero_and_uniform_under_the_null() -> None:
    assert permutation_p_value(9.0, np.zeros(99)) == pytest.approx(0.01)
    assert permutation_p_value(-9.0, np.zeros(99)) == 1.0
    assert permutation_p_value(-9.0, np.zeros(99), "less") == pytest.approx(0.01)
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(300):
        values, labels = rng.normal(size=20), np.repeat([0, 1], 10)
        statistic = lambda y, v=values: float(v[y == 1].mean() - v[y == 0].mean())  # noqa: E731
        null = permutation_null(statistic, labels, seed=seed, draws=99)
        p_values.append(permutation_p_value(statistic(labels), null))
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    with pytest.raises(ValueError, match="NaN"):
        permutation_p_value(math.nan, [1.0])


def test_strata_are_shuffled_inside_only() -> None:
    strata = np.repeat(["a", "b"], 10)
    labels = np.concatenate([np.zeros(10), np.ones(10)])
    assert (
        permutation_null(lambda y: float(y[:10].sum()), labels, seed=0, draws=50, strata=strata) == 0
    ).all()
    assert permutation_null(lambda y: float(y[:10].sum()), labels, seed=0, draws=50).max() > 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_by_its_definition(p_values: list[float]) -> None:
    q_values = benjamini_hochberg(p_values)
    p = np.array(p_values)
    for level in (0.01, 0.05, 0.2, 0.7):
        passing = [k for k, value in enumerate(np.sort(p), start=1) if value <= level * k / len(p)]
        expected = p <= np.sort(p)[max(passing) - 1] if passing else np.zeros(len(p), dtype=bool)
        # rounding may decide at equality
        undecided = np.isclose(q_values, level, rtol=1e-9)
        assert ((q_values <= level) == expected)[~undecided].all()


def test_benjamini_hochberg_controls_the_share_of_false_calls() -> None:
    rng = np.random.default_rng(0)
    false_share, naive_share = [], []
    for _ in range(200):
        scores = np.concatenate([rng.normal(3, 1, 20), rng.normal(0, 1, 180)])
        p = stats.norm.sf(scores)
        for shares, called in ((false_share, benjamini_hochberg(p) <= 0.1), (naive_share, p <= 0.1)):
            shares.append(called[20:].sum() / max(1, called.sum()))
    assert np.mean(false_share) < 0.1
    assert np.mean(naive_share) > 0.3


def test_benjamini_hochberg_leaves_nan_out() -> None:
    q_values = benjamini_hochberg([0.01, math.nan, 0.04])
    assert math.isnan(q_values[1])
    assert q_values[[0, 2]] == pytest.approx([0.02, 0.04])
    with pytest.raises(ValueError, match="between 0 and 1"):
        benjamini_hochberg([1.2])


def test_split_half_of_means_has_the_correlation_that_theory_gives() -> None:
    # items with signal variance 1 and noise variance 1 a row: halves of 50 rows correlate at 1 / (1 + 1/50)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=400) + rng.normal(size=(100, 400)) * 3
    estimate = split_half(
        lambda index: rows[index].mean(axis=0), lambda a, b: float(np.corrcoef(a, b)[0, 1]), 100, seed=0
    )
    assert estimate.value == pytest.approx(1 / (1 + 9 / 50), abs=0.04)
    assert estimate.low <= estimate.value <= estimate.high
    assert spearman_brown(estimate.value) == pytest.approx(1 / (1 + 9 / 100), abs=0.03)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 25), per=st.integers(1, 3), seed=st.integers(0, 99))
def test_halves_split_clusters_evenly_and_wholly(n: int, per: int, seed: int) -> None:
    groups = np.repeat(np.arange(n), per)
    halves: list[tuple[set[int], set[int]]] = []

    def keep(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        assert sorted([*first, *second]) == list(range(n * per))
        halves.append((set(groups[first]), set(groups[second])))
        return 1.0

    split_half(lambda index: index, keep, groups, seed=seed, splits=4)
    for first, second in halves:
        assert not first & second
        assert abs(len(first) - len(second)) <= 1


def test_strata_are_shared_evenly() -> None:
    classes = np.repeat([0, 1], [10, 4])
    seen: list[int] = []
    split_half(lambda i: seen.append(int(classes[i].sum())), lambda a, b: 1.0, 14, seed=0, strata=classes)
    assert set(seen) == {2}
    with pytest.raises(ValueError, match="at least two"):
        split_half(lambda i: i, lambda a, b: 1.0, 1, seed=0)


@pytest.mark.parametrize("width", [2, 3, 64, 4096])
def test_cosine_null_is_the_law_of_random_directions(width: int) -> None:
    null = cosine_null(width)
    assert null.quantile(0.5) == pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 800, width))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.std() == pytest.approx(null.std, rel=0.1)
    assert (np.abs(cosines) > null.interval(0.9)[1]).mean() == pytest.approx(0.1, abs=0.035)
    assert stats.kstest([null.p_value(float(c), "less") for c in cosines], "uniform").pvalue > 0.001
    high = null.interval()[1]
    assert null.p_value(high) == pytest.approx(0.05)
    assert null.p_value(-high, "greater") == pytest.approx(0.975)


def test_cosine_closed_forms_and_many_comparisons() -> None:
    # uniform on [-1, 1] in three dimensions; arcsine law in two
    assert cosine_null(3).quantile(0.9) == pytest.approx(0.8)
    assert cosine_null(2).quantile(0.75) == pytest.approx(math.cos(math.pi / 4))
    rng = np.random.default_rng(0)
    largest = np.abs(rng.uniform(-1, 1, size=(4000, 5))).max(axis=1)
    assert (largest > cosine_null(3).threshold(0.95, comparisons=5)).mean() == pytest.approx(0.05, abs=0.012)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        cosine_null(1)
