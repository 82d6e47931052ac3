from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steerlab.statistics import (
    bootstrap,
    bootstrap_curve,
    bootstrap_mean,
    but_for_rounding,
    paired_difference,
    paired_log_ratio,
)
from steerlab.statistics.resampling import cluster_weights

VALUES = st.lists(st.floats(-5, 5, allow_nan=False), min_size=2, max_size=30)


def test_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=80)
    ours = bootstrap_mean(values, seed=1, draws=8000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method="percentile", rng=2)
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)
    assert ours.n == 80


def test_interval_of_a_cluster_mean_has_the_width_of_the_clusters() -> None:
    # all rows of a cluster are equal: the interval is that of the cluster means, not of the rows
    means = np.random.default_rng(1).normal(size=40)
    rows = np.repeat(means, 25)
    clustered = bootstrap_mean(rows, np.repeat(np.arange(40), 25), seed=0)
    alone = bootstrap_mean(rows, seed=0)
    assert clustered.n == 40
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * means.std() / math.sqrt(40), rel=0.1)
    assert alone.high - alone.low < 0.3 * (clustered.high - clustered.low)


@pytest.mark.parametrize(("clustered", "low", "high"), [(True, 0.88, 0.99), (False, 0.0, 0.75)])
def test_coverage_needs_the_clusters(clustered: bool, low: float, high: float) -> None:
    """95 % intervals cover the true mean when rows are clustered as they came, and fail when they are not."""
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(200):
        values = np.repeat(rng.normal(size=40), 8) + 0.5 * rng.normal(size=320)
        groups = np.repeat(np.arange(40), 8) if clustered else None
        estimate = bootstrap_mean(values, groups, seed=seed, draws=300)
        covered += not estimate.excludes(0.0)
    assert low <= covered / 200 <= high


@settings(deadline=None, max_examples=40)
@given(values=VALUES, seed=st.integers(0, 2**16), clustered=st.booleans())
def test_the_order_of_rows_does_not_matter(values: list[float], seed: int, clustered: bool) -> None:
    rows = np.array(values)
    groups = np.arange(len(rows)) // 2 if clustered else None
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = None if groups is None else groups[order]
    first = bootstrap_mean(rows, groups, seed=3, draws=60)
    second = bootstrap_mean(rows[order], shuffled, seed=3, draws=60)
    assert [second.value, second.low, second.high] == pytest.approx(
        [first.value, first.low, first.high], abs=1e-9, nan_ok=True
    )
    general = bootstrap(lambda x: float(x.mean()), rows, clusters=groups, seed=3, draws=20)
    again = bootstrap(lambda x: float(x.mean()), rows[order], clusters=shuffled, seed=3, draws=20)
    assert [again.low, again.high] == pytest.approx([general.low, general.high], abs=1e-9, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(values=VALUES, copies=st.integers(2, 4))
def test_repeating_every_row_inside_its_cluster_changes_nothing(values: list[float], copies: int) -> None:
    rows, groups = np.array(values), np.arange(len(values))
    once = bootstrap_mean(rows, groups, seed=0, draws=60)
    often = bootstrap_mean(np.repeat(rows, copies), np.repeat(groups, copies), seed=0, draws=60)
    assert [often.value, often.low, often.high] == pytest.approx([once.value, once.low, once.high], abs=1e-9)
    assert often.n == once.n


@settings(deadline=None, max_examples=40)
@given(values=VALUES, scale=st.floats(0.1, 9), shift=st.floats(-9, 9))
def test_the_interval_moves_with_the_unit(values: list[float], scale: float, shift: float) -> None:
    groups = np.arange(len(values))
    plain = bootstrap_mean(values, groups, seed=0, draws=60)
    moved = bootstrap_mean(scale * np.array(values) + shift, groups, seed=0, draws=60)
    assert [moved.low, moved.high] == pytest.approx(
        [scale * plain.low + shift, scale * plain.high + shift], abs=1e-7
    )


def test_duplicated_clusters_narrow_the_interval_by_root_two() -> None:
    values = np.random.default_rng(3).normal(size=60)
    once = bootstrap_mean(values, seed=0, draws=6000)
    twice = bootstrap_mean(np.concatenate([values, values]), seed=0, draws=6000)
    assert (twice.high - twice.low) * math.sqrt(2) == pytest.approx(once.high - once.low, rel=0.06)


def test_any_statistic_agrees_with_the_fast_mean_and_handles_missing_classes() -> None:
    values = np.random.default_rng(0).normal(size=50)
    fast = bootstrap_mean(values, seed=0, draws=4000)
    slow = bootstrap(np.mean, values, seed=5, draws=4000)
    assert [slow.low, slow.high] == pytest.approx([fast.low, fast.high], abs=0.03)
    nothing = bootstrap(lambda x: math.nan, values, seed=0, draws=20)
    assert str(nothing) == "n/a"


def test_curve_columns_are_means_and_missing_entries_are_left_out() -> None:
    table = np.random.default_rng(0).normal(size=(30, 3))
    table[20:, 1] = np.nan
    table[:, 2] = np.nan
    first, second, third = bootstrap_curve(table, seed=0, draws=500)
    assert first.value == pytest.approx(table[:, 0].mean())
    alone = bootstrap_mean(table[:, 0], seed=1, draws=4000)
    assert [first.low, first.high] == pytest.approx([alone.low, alone.high], abs=0.06)
    assert second.value == pytest.approx(table[:20, 1].mean())
    assert second.n == 20
    assert math.isnan(third.value)
    assert third.n == 0


def test_pairs_cancel_what_rows_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, size=100)
    first, second = shared + 1 + 0.1 * rng.normal(size=100), shared
    estimate = paired_difference(first, second, seed=0)
    assert estimate.value == pytest.approx(1, abs=0.05)
    assert estimate.high - estimate.low < 0.1
    ratio = paired_log_ratio(np.exp(first), np.exp(second), seed=0).transform(math.exp)
    assert ratio.value == pytest.approx(math.e, rel=0.05)
    assert ratio.low < ratio.value < ratio.high
    assert paired_difference(second, first, seed=0).value == pytest.approx(-estimate.value)


def test_the_seed_is_kept_and_matters() -> None:
    values = np.random.default_rng(0).random(40)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4).low != bootstrap_mean(values, seed=5).low
    assert "seed 4" in bootstrap_mean(values, seed=4).method


def test_chunks_of_draws_are_whole_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlab.statistics.resampling._CELLS", 33)
    chunks = list(cluster_weights(11, seed=2, draws=5000))
    assert max(len(chunk) for chunk in chunks) == 3
    weights = np.concatenate(chunks)
    assert weights.shape == (5000, 11)
    assert (weights.sum(axis=1) == 11).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(11), abs=0.06)
    # drawn with replacement: the variance of a count is 1 - 1/11
    assert weights.var() == pytest.approx(10 / 11, rel=0.05)


def test_one_cluster_has_no_interval() -> None:
    estimate = bootstrap_mean([1.0, 2.0], ["a", "a"], seed=0)
    assert not estimate.has_interval
    assert str(estimate) == "1.50 [n/a]"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bootstrap_mean([], seed=0), "at least one number"),
        (lambda: bootstrap_mean([1.0, math.nan], seed=0), "1 NaN of 2"),
        (lambda: bootstrap_mean([1.0, 2.0], ["a"], seed=0), "one label a row"),
        (lambda: bootstrap_mean([1.0, 2.0], seed=0, level=95), "between 0 and 1"),
        (lambda: bootstrap_mean([1.0, 2.0], seed=0, draws=0), "at least one draw"),
        (lambda: paired_difference([1.0], [1.0, 2.0], seed=0), "same rows twice"),
        (lambda: paired_log_ratio([0.0], [1.0], seed=0), "positive"),
        (lambda: bootstrap(np.mean, [1.0], [1.0, 2.0], seed=0), "one length"),
    ],
)
def test_wrong_input_is_a_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]


def test_what_rounding_makes_of_equal_rows_is_no_difference() -> None:
    rows = np.random.default_rng(0).normal(size=200)
    alike = rows + 1e-8
    assert bootstrap_mean(alike - rows, seed=0).excludes(0)
    found = paired_difference(alike, rows, seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    moved = rows + np.where(np.arange(200) % 2, 1e-3, 0)
    assert paired_difference(moved, rows, seed=0).value == pytest.approx(5e-4)
    assert but_for_rounding(np.array([np.nan, 1.0]), np.array([2.0, 1.0]))[1] == 1
