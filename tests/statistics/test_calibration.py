from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from steerlab.statistics import (
    auroc,
    brier_score,
    calibration_null,
    expected_calibration_error,
    reliability_curve,
)
from steerlab.statistics.calibration import _auroc_of_weights, adaptive_bins


def sample(n: int, seed: int, overconfidence: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.3, 1.0, size=n)
    return sure, rng.random(n) < sure - overconfidence


def test_ece_by_hand() -> None:
    # two bins: |0.25 - 0.5| and |0.9 - 1.0|, half the rows each
    estimate = expected_calibration_error([0.2, 0.3, 0.9, 0.9], [1, 0, 1, 1], bins=2, seed=0)
    assert estimate.value == pytest.approx(0.5 * 0.25 + 0.5 * 0.1)
    adaptive = expected_calibration_error([0.6, 0.7, 0.9, 0.9], [1, 0, 1, 1], bins=2, adaptive=True, seed=0)
    assert adaptive.value == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)


@pytest.mark.parametrize("adaptive", [False, True])
def test_ece_finds_the_true_gap_with_its_interval(adaptive: bool) -> None:
    covered = 0
    for seed in range(30):
        sure, right = sample(600, seed, overconfidence=0.2)
        estimate = expected_calibration_error(sure, right, adaptive=adaptive, seed=seed, draws=200)
        covered += not estimate.excludes(0.2)
    assert covered >= 25
    assert ("adaptive" in estimate.method) == adaptive


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_null_is_the_floor_of_a_calibrated_model(adaptive: bool) -> None:
    values = [
        expected_calibration_error(*sample(300, seed), adaptive=adaptive, seed=0, draws=1).value
        for seed in range(150)
    ]
    null = calibration_null(sample(300, 999)[0], adaptive=adaptive, seed=0)
    assert np.mean(values) == pytest.approx(null.mean(), rel=0.1)
    wrong = expected_calibration_error(*sample(300, 1, 0.2), adaptive=adaptive, seed=0).value
    assert wrong > null.max()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), adaptive=st.booleans())
def test_ece_does_not_depend_on_the_order(seed: int, adaptive: bool) -> None:
    sure, right = sample(40, seed)
    sure = np.round(sure, 1)  # with ties
    order = np.random.default_rng(seed).permutation(40)
    first = expected_calibration_error(sure, right, adaptive=adaptive, seed=1, draws=20)
    second = expected_calibration_error(sure[order], right[order], adaptive=adaptive, seed=1, draws=20)
    assert [second.value, second.low, second.high] == pytest.approx([first.value, first.low, first.high])
    assert 0 <= first.value <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(1, 12))
def test_adaptive_bins_keep_ties_together_and_in_order(confidence: list[float], bins: int) -> None:
    sure = np.array(confidence)
    codes = adaptive_bins(sure, bins)
    assert codes.min() >= 0
    assert codes.max() < bins
    order = np.argsort(sure, kind="stable")
    assert (np.diff(codes[order]) >= 0).all()
    for value in np.unique(sure):
        assert len(np.unique(codes[sure == value])) == 1


def test_reliability_curve_is_sklearns() -> None:
    sure, right = sample(400, 0)
    curve = reliability_curve(sure, right, bins=10)
    shares, means = calibration_curve(right, sure, n_bins=10, strategy="uniform")
    assert [one.accuracy.value for one in curve] == pytest.approx(list(shares))
    assert [one.confidence for one in curve] == pytest.approx(list(means))
    assert sum(one.n for one in curve) == 400
    assert all(one.low <= one.confidence <= one.high for one in curve)
    even = reliability_curve(sure, right, bins=8, adaptive=True)
    assert {one.n for one in even} == {50}
    assert all(one.accuracy.low < one.accuracy.value < one.accuracy.high for one in even)
    grouped = reliability_curve(sure, right, np.arange(400) // 4, bins=8, adaptive=True)
    assert all(one.accuracy.n <= 50 for one in grouped)


def test_brier_is_sklearns() -> None:
    sure, right = sample(200, 3)
    estimate = brier_score(sure, right, seed=0)
    assert estimate.value == pytest.approx(brier_score_loss(right, sure))
    assert estimate.low < estimate.value < estimate.high


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), shift=st.floats(0, 2))
def test_auroc_is_sklearns_and_turns_with_the_sign(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 3 == 0
    scores = np.round(rng.normal(size=30) + shift * labels, 1)  # with ties
    estimate = auroc(scores, labels, seed=0, draws=50)
    assert estimate.value == pytest.approx(roc_auc_score(labels, scores))
    assert auroc(-scores, labels, seed=0, draws=1).value == pytest.approx(1 - estimate.value)
    order = rng.permutation(30)
    again = auroc(scores[order], labels[order], seed=0, draws=50)
    assert [again.low, again.high] == pytest.approx([estimate.low, estimate.high])


def test_a_weighted_draw_is_sklearns_weighted_auroc() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(40) < 0.4, rng.integers(0, 5, size=40).astype(float)  # mostly ties
    weights = rng.integers(0, 4, size=(6, 40)).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    assert _auroc_of_weights(weights, scores, labels) == pytest.approx(expected)
    one_class = (weights * labels)[:1]
    assert np.isnan(_auroc_of_weights(one_class, scores, labels)).all()


def test_auroc_draws_are_resamples() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(120) < 0.5
    scores = np.round(rng.normal(size=120) + labels, 1)
    ours = auroc(scores, labels, seed=0, draws=4000)
    drawn = []
    for draw in range(2000):
        rows = rng.integers(120, size=120)
        above, below = scores[rows][labels[rows], None], scores[rows][~labels[rows]]
        drawn.append(((above > below) + (above == below) / 2).mean())
        assert draw or drawn[0] == pytest.approx(roc_auc_score(labels[rows], scores[rows]))
    assert [ours.low, ours.high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), abs=0.012)


def test_auroc_covers_the_truth() -> None:
    truth = float(stats.norm.cdf(1 / math.sqrt(2)))
    rng = np.random.default_rng(5)
    labels = np.repeat([True, False], 60)
    covered = sum(
        not auroc(rng.normal(size=120) + labels, labels, seed=seed, draws=300).excludes(truth)
        for seed in range(150)
    )
    assert 0.89 <= covered / 150 <= 0.99


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: auroc([1.0, 2.0], [1, 1], seed=0), "both classes"),
        (lambda: auroc([1.0, math.nan], [1, 0], seed=0), "finite"),
        (lambda: brier_score([1.2], [1], seed=0), "between 0 and 1"),
        (lambda: brier_score([0.2], [2], seed=0), "right or wrong"),
        (lambda: expected_calibration_error([], [], seed=0), "one confidence"),
    ],
)
def test_wrong_input_is_a_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]
