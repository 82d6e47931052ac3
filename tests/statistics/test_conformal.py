"""The conformal threshold, against the rank that theory gives and by drawing new units."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.statistics import conformal_threshold, units_needed


@given(st.integers(20, 200), st.sampled_from([0.05, 0.1, 0.25, 0.5]), st.integers(0, 2**32 - 1))
def test_one_score_a_unit_is_the_rank_of_split_conformal_prediction(n: int, rate: float, seed: int) -> None:
    scores = np.random.default_rng(seed).standard_normal(n)
    rank = math.ceil(round((n + 1) * (1 - rate), 9))
    assert conformal_threshold(scores, rate) == np.sort(scores)[rank - 1]


def test_ties_and_whole_numbers() -> None:
    scores = [0.0] * 15 + [1.0] * 5
    assert conformal_threshold(scores, 0.3) == 0.0
    assert conformal_threshold(scores, 0.2) == 1.0
    assert conformal_threshold(range(19), 0.05) == 18.0


def test_a_new_units_share_keeps_the_rate_where_units_are_of_unequal_length() -> None:
    rng = np.random.default_rng(0)
    losses, by_scores = [], []
    for _ in range(3000):
        counts = rng.choice([1, 40], size=31)
        units = np.repeat(np.arange(31), counts)
        scores = rng.standard_normal(31)[units] + 0.1 * rng.standard_normal(len(units))  # alike within a unit
        old = units < 30
        t = conformal_threshold(scores[old], 0.1, units=units[old])
        losses.append((scores[~old] > t).mean())
        by_scores.append((scores[~old] > conformal_threshold(scores[old], 0.1)).mean())
    error = np.std(losses) / math.sqrt(len(losses))
    assert 0.06 < np.mean(losses) <= 0.1 + 3 * error
    assert np.mean(by_scores) > np.mean(losses)  # counting scores as if independent says too little


def test_units_that_a_rate_needs() -> None:
    assert [units_needed(rate) for rate in (0.5, 0.1, 0.05, 0.01)] == [1, 9, 19, 99]
    with pytest.raises(ValueError, match=r"18 units cannot support a rate of 0\.05; 19 can"):
        conformal_threshold(range(18), 0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_threshold(range(18), 1.0)
    with pytest.raises(ValueError, match="finite"):
        conformal_threshold([1.0, math.nan], 0.5)
