"""Debiased CKA against a direct sum, and layer maps against their formula and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab.alignment import LayerMap, cka_null, debiased_cka
from steerlab.errors import AlignmentError


def test_debiased_cka_is_the_sum_over_four_different_rows() -> None:
    """HSIC₁ is the mean over ordered quadruples i, j, q, r of different rows of k_ij (l_ij + l_qr − 2 l_iq)."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((7, 5))

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        k, m = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (a, b))
        four = itertools.permutations(range(7), 4)
        return float(np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in four]))

    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert debiased_cka(x, y) == pytest.approx(expected, abs=1e-10)
    assert debiased_cka(x, x) == pytest.approx(1)


def test_unrelated_rows_have_none_and_related_ones_have_some() -> None:
    rng = np.random.default_rng(1)
    found = [debiased_cka(rng.standard_normal((30, 200)), rng.standard_normal((30, 200))) for _ in range(40)]
    assert abs(np.mean(found)) < 0.03
    x = rng.standard_normal((30, 200))
    value, p = cka_null(x, x @ rng.standard_normal((200, 50)))
    assert value > 0.2
    assert p == pytest.approx(1 / 200)
    assert cka_null(x, rng.standard_normal((30, 50)))[1] > 0.05
    with pytest.raises(AlignmentError, match="four rows"):
        debiased_cka(x[:3], x[:3])


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_proportional_map_meets_both_ends_and_never_goes_back(n_source: int, n_target: int) -> None:
    layers = LayerMap.proportional(n_source, n_target).layers
    assert list(layers) == list(range(n_target))
    assert layers[n_target - 1] == n_source - 1
    assert n_target == 1 or layers[0] == 0
    assert all(a <= b for a, b in itertools.pairwise(layers.values()))
    if n_target > 1:
        assert all(source == (n_source - 1) * target // (n_target - 1) for target, source in layers.items())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 999))
def test_the_monotone_path_is_the_best_of_all(n_source: int, n_target: int, seed: int) -> None:
    scores = np.random.default_rng(seed).standard_normal((n_source, n_target))
    found = LayerMap.by_score(scores).layers
    total = sum(scores[source, target] for target, source in found.items())
    paths = itertools.combinations_with_replacement(range(n_source), n_target)
    best = max(sum(scores[source, target] for target, source in enumerate(path)) for path in paths)
    assert total == pytest.approx(best)
    assert list(found.values()) == sorted(found.values())
    free = LayerMap.by_score(scores, monotone=False).layers
    assert [free[at] for at in range(n_target)] == scores.argmax(axis=0).tolist()


def test_wrong_maps_are_sentences() -> None:
    with pytest.raises(AlignmentError, match="no target layer 3"):
        LayerMap.proportional(2, 3)[3]
    with pytest.raises(AlignmentError, match="finite scores"):
        LayerMap.by_score(np.array([[np.nan]]))
    with pytest.raises(AlignmentError, match="at least one target layer"):
        LayerMap.explicit({})
    with pytest.raises(AlignmentError, match="have 4 and 4 layers"):
        LayerMap.explicit({2: 7}).require(4, 4)
    assert LayerMap.explicit({2: 1})[2] == 1
