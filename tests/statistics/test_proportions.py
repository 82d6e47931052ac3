from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steerlab.statistics import mcnemar, paired_share, proportion


@settings(deadline=None)
@given(total=st.integers(1, 300), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(total: int, share: float, level: float) -> None:
    count = round(share * total)
    ours = proportion(count, total, level=level)
    theirs = stats.binomtest(count, total).proportion_ci(level, method="wilson")
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=1e-12)
    rows = np.arange(total) < count
    assert proportion(rows, level=level) == ours


def test_all_right_still_has_width() -> None:
    estimate = proportion(np.ones(20))
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(20 / (20 + stats.norm.ppf(0.975) ** 2))
    assert proportion(0, 20).high == pytest.approx(1 - estimate.low)


def test_clusters_widen_as_far_as_they_agree() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.random(50) < 0.6
    groups = np.repeat(np.arange(50), 10)
    same = proportion(np.repeat(prompts, 10), clusters=groups)
    alone = proportion(prompts)
    assert same.low == pytest.approx(alone.low, abs=0.005)
    assert same.n == 50
    mixed = proportion(rng.random(500) < 0.6, clusters=groups)
    free = proportion(rng.random(500) < 0.6)
    assert mixed.high - mixed.low < 1.4 * (free.high - free.low)
    certain = proportion(np.ones(500), clusters=groups)
    assert certain.low == proportion(50, 50).low


def test_coverage_with_clusters() -> None:
    rng = np.random.default_rng(2)
    covered, naive = 0, 0
    for _ in range(300):
        rates = rng.beta(1.2, 0.8, size=60)
        rows = rng.random((60, 6)) < rates[:, None]
        covered += not proportion(rows.ravel(), clusters=np.repeat(np.arange(60), 6)).excludes(0.6)
        naive += not proportion(rows.ravel()).excludes(0.6)
    assert 0.91 <= covered / 300 <= 0.99
    assert naive / 300 < 0.9


def test_mcnemar_is_the_exact_coin() -> None:
    first = np.array([1] * 9 + [0] * 2 + [1] * 30 + [0] * 5)
    second = np.array([0] * 9 + [1] * 2 + [1] * 30 + [0] * 5)
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second, result.n) == (9, 2, 46)
    tail = sum(stats.binom.pmf(k, 11, 0.5) for k in (0, 1, 2))
    assert result.p_value == pytest.approx(2 * tail)
    assert mcnemar(second, first).p_value == pytest.approx(result.p_value)
    assert mcnemar(first, first).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: proportion([]), "at least one"),
        (lambda: proportion([0, 2]), "true or false"),
        (lambda: proportion(3, 2), "3 of 2"),
        (lambda: proportion(0, 0), "total >= 1"),
        (lambda: proportion(1, 2, clusters=[1]), "row by row"),
        (lambda: mcnemar([1], [1, 0]), "same rows twice"),
        (lambda: proportion([1], level=1.0), "between 0 and 1"),
    ],
)
def test_wrong_input_is_a_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]


def test_rows_that_agree_bring_the_ends_together() -> None:
    """The same two shares: where the rows that are right are the same ones, the change is better known."""
    first, second = [True] * 19 + [False] * 22, [True] * 14 + [False] * 27
    apart = [False] * 27 + [True] * 14
    together, otherwise = paired_share(first, second), paired_share(first, apart)
    assert together.value == otherwise.value == pytest.approx(5 / 41)
    assert together.high - together.low < 0.7 * (otherwise.high - otherwise.low)


def test_no_row_that_changed_still_has_width() -> None:
    found = paired_share([False] * 24, [False] * 24)
    assert found.value == 0.0
    half = proportion(0, 24).high
    assert (found.low, found.high) == (pytest.approx(-half), pytest.approx(half))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=50)
def test_paired_shares_turn_about_zero(rows: list[tuple[bool, bool]]) -> None:
    a, b = zip(*rows, strict=True)
    found, turned = paired_share(a, b), paired_share(b, a)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert turned.value == pytest.approx(-found.value)
    assert turned.low == pytest.approx(-found.high)


def test_paired_shares_cover() -> None:
    """95 % intervals of a change of 10 points in correlated answers hold it in 93 to 98 % of 600 draws."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(600):
        before = rng.random(40) < 0.3
        after = np.where(before, rng.random(40) < 0.9, rng.random(40) < 0.13 / 0.7)  # 0.27 + 0.13
        found = paired_share(after, before)
        hits += found.low <= 0.10 <= found.high
    assert 0.93 <= hits / 600 <= 0.99
