"""Planted mixtures: how many directions there were, and which; and how many differences point with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.utils.estimator_checks import parametrize_with_checks

from steerlab.activations import Activations
from steerlab.directions import (
    ClusterDirections,
    ConceptCone,
    DifferenceInMeans,
    Direction,
    agreement,
    fit_direction,
)
from steerlab.directions.several import smallest_near_the_best, standardised_difference
from steerlab.errors import DirectionError
from steerlab.models import Site

SITE = Site("resid_post", 0)
WIDTH, GAP = 48, 6.0


@parametrize_with_checks([ClusterDirections(), ClusterDirections(2), ConceptCone(), ConceptCone(1)])
def test_scikit_learn_conformity(estimator: Any, check: Any) -> None:
    check(estimator)


def mixture(kinds: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and labels of n prompts a class, and the orthogonal directions that a part of the positive ones carry."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(WIDTH, kinds)))[0].T
    labels = np.arange(2 * n) % 2
    rows = random.normal(size=(2 * n, WIDTH)) + 3.0
    rows[labels == 1] += GAP * axes[np.arange(n) % kinds]
    return rows, labels, axes


def states_of(rows: np.ndarray) -> Activations:
    n = len(rows)
    return Activations(
        {SITE: torch.from_numpy(rows).float()},
        torch.arange(n),
        torch.zeros(n, dtype=torch.long),
        n_prompts=n,
        model_name="none",
        fingerprint="f",
    )


@pytest.mark.parametrize("estimator", [ClusterDirections(), ConceptCone()], ids=["clusters", "cone"])
@pytest.mark.parametrize("kinds", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_auto_finds_as_many_directions_as_were_planted(estimator: Any, kinds: int, seed: int) -> None:
    rows, labels, axes = mixture(kinds, 90, seed)
    found = fit_direction(states_of(rows), labels, estimator, hold_out=False).vectors[SITE].numpy()
    assert found.shape == (kinds, WIDTH)
    # Each mean of 90/kinds differences of length 6 has noise of length √(48 (1/30 + 1/90)) = 1.5 at most: 14 degrees.
    assert np.degrees(subspace_angles(found.T, axes.T)).max() < 18
    cosines = np.abs(found @ axes.T) / np.linalg.norm(found, axis=1, keepdims=True)
    assert (cosines.max(axis=0) > 0.95).all()


def test_auto_holds_whole_groups_out() -> None:
    """Every positive row stands twice: rows alone would find each twin's noise again, groups find one direction."""
    rows, labels, _ = mixture(1, 12, 0)
    twice = np.concatenate([rows] * 4)
    many = np.concatenate([labels] * 4)
    apart = ClusterDirections(most=8).fit(twice, many).separability_
    together = ClusterDirections(most=8).fit(twice, many, groups=np.tile(np.arange(24), 4)).separability_
    assert apart[8][0] > 1.3 * together[8][0]  # seen before
    assert smallest_near_the_best(together) == 1


def test_pairs_take_a_shared_topic_out_of_the_clusters() -> None:
    """Twins share a topic far larger than what tells them apart: differences cluster by kind, rows by topic."""
    random = np.random.default_rng(3)
    rows, labels, axes = mixture(2, 60, 3)
    topics = 40.0 * random.normal(size=(2, WIDTH))
    pairs = np.arange(120) // 2
    rows = rows + topics[random.integers(2, size=60)][pairs]
    paired = ClusterDirections(2).fit(rows, labels, pairs=pairs).components_
    alone = ClusterDirections(2).fit(rows, labels).components_
    assert np.degrees(subspace_angles(paired.T, axes.T)).max() < 25
    assert np.degrees(subspace_angles(alone.T, axes.T)).max() > 45


def test_one_cluster_is_the_difference_in_means() -> None:
    rows, labels, _ = mixture(2, 20, 0)
    one, plain = ClusterDirections(1).fit(rows, labels), DifferenceInMeans().fit(rows, labels)
    np.testing.assert_allclose(one.components_[0], plain.direction_, rtol=1e-12, atol=1e-12)
    expected = plain.decision_function(rows) / np.linalg.norm(plain.direction_)
    np.testing.assert_allclose(one.decision_function(rows), expected, rtol=1e-9, atol=1e-9)


def test_clusters_are_means_by_hand() -> None:
    rows = np.array([[0.0, 0.0], [2.0, 0.0], [11.0, 0.0], [11.0, 2.0], [11.0, 1.0], [1.0, 8.0], [1.0, 10.0]])
    fitted = ClusterDirections(2).fit(rows, [0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(fitted.components_, [[10.0, 1.0], [0.0, 9.0]])
    np.testing.assert_allclose(fitted.biases_, [-(10 * 6 + 0.5), -(9 * 4.5)])
    low, high = fitted.decision_function([[1.0, 0.0], [1.0, 9.0]])
    assert high == pytest.approx(4.5)
    assert low == pytest.approx(max(-4.5, -50.5 / 101**0.5))


def test_every_direction_of_a_cone_tells_the_means_apart_at_least_as_far_as_its_last_axis() -> None:
    rows, labels, _ = mixture(3, 60, 5)
    cone = ConceptCone(3).fit(rows, labels)
    np.testing.assert_allclose(cone.components_ @ cone.components_.T, np.eye(3), atol=1e-10)
    assert list(cone.gaps_) == sorted(cone.gaps_, reverse=True)
    weights = np.random.default_rng(0).exponential(size=(500, 3))
    inside = weights / np.linalg.norm(weights, axis=1, keepdims=True) @ cone.components_
    gap = rows[labels == 1].mean(0) - rows[labels == 0].mean(0)
    assert (inside @ gap).min() >= cone.gaps_[-1] - 1e-9
    np.testing.assert_allclose(cone.components_ @ gap, cone.gaps_, rtol=1e-10)


def test_the_axes_are_the_orthonormal_rows_nearest_to_the_clusters() -> None:
    """No rotation of them lies nearer to the unit cluster directions (orthogonal Procrustes)."""
    rows, labels, _ = mixture(3, 60, 5)
    axes = ConceptCone(3).fit(rows, labels).components_
    units = ClusterDirections(3).fit(rows, labels).components_
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    order = np.argmax(np.abs(units @ axes.T), axis=1)
    at_best = np.linalg.norm(axes[order] - units)
    random = np.random.default_rng(1)
    for _ in range(100):
        turn = np.linalg.qr(np.eye(3) + 0.1 * random.normal(size=(3, 3)))[0]
        turn *= np.sign(np.diag(turn))
        assert np.linalg.norm(turn @ axes[order] - units) >= at_best - 1e-9


def test_there_is_no_cone_of_opposite_directions() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(80) % 2
    rows = random.normal(size=(80, WIDTH))
    axis = np.linalg.qr(random.normal(size=(WIDTH, 1)))[0][:, 0]
    rows[labels == 1] += np.where(np.arange(40) < 28, 1, -1)[:, None] * 8 * axis
    with pytest.raises(
        DirectionError, match=r"There is no cone of 2 axes: .* ask for a smaller k, or k='auto'"
    ):
        ConceptCone(2).fit(rows, labels)
    assert len(ConceptCone().fit(rows, labels).components_) == 1


@pytest.mark.parametrize(("reversed_share", "with_pairs"), [(0.3, True), (0.3, False), (0.0, True)])
def test_agreement_recovers_the_share_of_differences_that_point_with_a_direction(
    reversed_share: float, with_pairs: bool
) -> None:
    rows, labels, axes = mixture(1, 200, 7)
    turned = np.arange(200) < round(reversed_share * 200)
    rows[labels == 1] -= 2 * GAP * turned[:, None] * axes[0]
    pairs = np.arange(400) // 2
    states = states_of(rows)
    direction = fit_direction(states, labels, hold_out=False)
    (found,) = agreement(states, direction, labels, pairs=pairs if with_pairs else None).values()
    assert found.low <= 1 - reversed_share <= found.high
    assert found.value == pytest.approx(1 - reversed_share, abs=0.01)
    assert found.n == (200 if with_pairs else 400)
    assert found.high - found.low > 0.01  # agreeing everywhere is no certainty
    (against,) = agreement(states, -direction, labels, pairs=pairs).values()
    assert against.value == pytest.approx(reversed_share, abs=0.01)


def test_two_clusters_find_both_ways_of_a_mixture_with_reversed_pairs() -> None:
    rows, labels, axes = mixture(1, 100, 7)
    rows[labels == 1] -= 2 * GAP * (np.arange(100) < 30)[:, None] * axes[0]
    found = ClusterDirections().fit(rows, labels).components_
    cosines = found @ axes[0] / np.linalg.norm(found, axis=1)
    assert len(found) == 2
    assert cosines[0] > 0.95
    assert cosines[1] < -0.95


def test_a_direction_of_several_vectors_is_a_file_and_gives_its_parts(tmp_path: Path) -> None:
    rows, labels, _ = mixture(3, 60, 0)
    several = fit_direction(states_of(rows), labels, "cluster-directions", groups=np.arange(120) // 4)
    assert several.accuracy[SITE].value > 0.95
    several.save(tmp_path / "d.safetensors")
    read = Direction.load(tmp_path / "d.safetensors")
    assert read.statistics == several.statistics
    assert read.parameters["k"] == "auto"
    part = read.component(1)
    torch.testing.assert_close(part[SITE], several.vectors[SITE][1])
    unit = part[SITE].double().numpy() / float(part[SITE].norm())
    gap = (rows[labels == 1].mean(0) - rows[labels == 0].mean(0)) @ unit
    assert part.class_gap[SITE] == pytest.approx(gap, rel=1e-5)
    middle = rows[labels == 0].mean(0) @ unit + float(part[SITE].norm()) / 2
    assert part.statistics[SITE].threshold == pytest.approx((middle,), rel=1e-4)
    with pytest.raises(DirectionError, match="3 vectors at a site, counted from 0, and no 3"):
        read.component(3)
    with pytest.raises(DirectionError, match=r"take one with component\(0\)"):
        read[SITE]


def test_standardised_coordinates_carry_every_direction_back() -> None:
    rows, labels, axes = mixture(3, 90, 0)
    rows = np.concatenate([rows, 1000.0 * np.random.default_rng(0).normal(size=(180, 1))], axis=1)
    states = states_of(rows)
    read = fit_direction(states, labels, ClusterDirections(3), coordinates="standardised")
    assert read.vectors[SITE].shape == (3, WIDTH + 1)
    assert np.degrees(subspace_angles(read.vectors[SITE][:, :-1].numpy().T, axes.T)).max() < 25
    assert read.accuracy[SITE].value > 0.95


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (ClusterDirections(0), "k is a number of directions from 1 on or 'auto', not 0"),
        (ClusterDirections("many"), "not 'many'"),  # type: ignore[arg-type]
        (ConceptCone(most=0), "At least one direction is to be tried, not most=0"),
        (
            ClusterDirections(30),
            "30 clusters need as many different rows of the positive class, and there are 20",
        ),
    ],
)
def test_what_cannot_be_is_refused(estimator: Any, message: str) -> None:
    rows, labels, _ = mixture(1, 20, 0)
    with pytest.raises(DirectionError, match=message):
        estimator.fit(rows, labels)


def test_agreement_refuses_what_does_not_belong_together() -> None:
    rows, labels, _ = mixture(2, 20, 0)
    states = states_of(rows)
    direction = fit_direction(states, labels, hold_out=False)
    with pytest.raises(DirectionError, match=r"Agreement is of states of sl.capture\(...\)"):
        agreement(rows, direction, labels)  # type: ignore[arg-type]
    elsewhere = Direction({"resid_post.3": torch.ones(WIDTH)}, "none", "f")  # type: ignore[dict-item]
    with pytest.raises(DirectionError, match="at no site of the direction"):
        agreement(states, elsewhere, labels)
    other = Direction({SITE: torch.ones(WIDTH)}, "other", "g")
    with pytest.raises(DirectionError, match="the direction lives in other"):
        agreement(states, other, labels)


def test_the_choice_by_hand() -> None:
    """One standard error below the best of 5.0 ± 0.4 lies 4.6."""
    assert smallest_near_the_best({1: (3.0, 0.2), 2: (4.61, 0.3), 3: (5.0, 0.4), 4: (4.9, 0.4)}) == 2
    assert smallest_near_the_best({1: (3.0, 0.2), 2: (4.59, 0.3), 3: (5.0, 0.4), 4: (4.9, 0.4)}) == 3
    assert smallest_near_the_best({}) == 1
    d, error = standardised_difference(
        np.array([1.0, 3.0, -1.0, 1.0]), np.array([True, True, False, False]), 2, 2
    )
    assert d == pytest.approx(2 / 2**0.5)
    assert error == pytest.approx((1 + 2 / 8) ** 0.5)
