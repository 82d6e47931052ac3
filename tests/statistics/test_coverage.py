"""What intervals and q-values promise, kept in simulations: ten clusters, five laws, skewed ones among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from steerlab.statistics import benjamini_hochberg, bootstrap, bootstrap_mean, mean_test, proportion

RUNS = 1500
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
#: Laws with mean zero.
LAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(5, size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "lognormal": lambda rng, shape: rng.lognormal(0, 0.5, size=shape) - np.exp(0.125),
    "near one": lambda rng, shape: rng.beta(4.5, 0.5, size=shape) - 0.9,
}


@pytest.mark.parametrize("law", LAWS)
def test_intervals_of_means_cover_with_ten_clusters(law: str) -> None:
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(10), 3)
    covered = 0
    for seed in range(RUNS):
        rows = np.repeat(LAWS[law](rng, (10,)), 3) + rng.normal(0, 0.05, size=30)
        covered += not bootstrap_mean(rows, clusters, seed=seed, draws=600).excludes(0)
    assert 0.93 <= covered / RUNS <= 0.985


@pytest.mark.parametrize("law", ["normal", "uniform", "heavy tails"])
def test_intervals_of_other_statistics_cover_with_ten_clusters(law: str) -> None:
    rng = np.random.default_rng(1)
    covered = sum(
        not bootstrap(np.mean, LAWS[law](rng, (10,)), seed=seed, draws=300).excludes(0) for seed in range(600)
    )
    assert 0.925 <= covered / 600 <= 0.985


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
@pytest.mark.parametrize(("rows", "alike"), [(8, 0.2), (8, 0.5), (20, 0.2)])
def test_intervals_of_shares_cover_with_ten_clusters(share: float, rows: int, alike: float) -> None:
    """alike: the correlation of two rows of a cluster."""
    rng, clusters = np.random.default_rng(2), np.repeat(np.arange(10), rows)
    both = (1 - alike) / alike
    covered = 0
    for _ in range(RUNS):
        own = rng.beta(share * both, (1 - share) * both, size=10)
        covered += not proportion(rng.random(10 * rows) < own[clusters], clusters=clusters).excludes(share)
    assert covered / RUNS >= 0.93


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("law", ["normal", "exponential", "lognormal"])
def test_false_discovery_is_held_for_skewed_differences(law: str, shared: float) -> None:
    """Without a true difference every call is false: a set of cells may hold one in a twentieth of all sets."""
    rng, called, sets = np.random.default_rng(3), 0, 150
    for seed in range(sets):
        common = LAWS[law](rng, (48, 1))
        cells = np.sqrt(1 - shared) * LAWS[law](rng, (48, 40)) + np.sqrt(shared) * common
        p, joint = mean_test(cells, seed=seed, draws=2000)
        called += bool((benjamini_hochberg(p) <= 0.05).any())
        assert (joint >= 1 / 2001).all()
    assert called / sets <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / sets)


def test_a_difference_that_is_there_is_called_alone() -> None:
    rng = np.random.default_rng(4)
    cells = rng.exponential(size=(48, 40)) - 1
    cells[:, 7] += 1.5
    p, joint = mean_test(cells, seed=0, draws=10_000)
    q = benjamini_hochberg(p)
    assert q[7] < 0.01
    assert joint[7] < 0.01
    assert (np.delete(q, 7) > 0.05).all()


def test_what_cannot_be_tested() -> None:
    cells = np.array([[1.0, 0.0, np.nan], [1.0, 0.0, np.nan], [1.0, 0.0, np.nan]])
    p, joint = mean_test(cells, seed=0, draws=200)
    assert p[0] == joint[0] * 2 == 2 / 201  # the same difference in every row
    assert p[1] == joint[1] == 1
    assert np.isnan(p[2])
    assert np.isnan(joint[2])
    one, _ = mean_test(cells[:, :2], [0, 0, 0], seed=0)
    assert (one == 1).all()
