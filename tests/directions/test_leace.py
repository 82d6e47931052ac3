"""Least-squares concept erasure: the paper's formula in numpy, what no probe reads, the least change, streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import steerlab as sl
from steerlab.activations import Activations, Moments
from steerlab.directions import Leace, erasing
from steerlab.errors import DirectionError, SteerlabError
from steerlab.models import Site
from steerlab.steering import Erase

SITE = Site("resid_post", 1)


@parametrize_with_checks([Leace()])
def test_scikit_learn_conformity(estimator: object, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def rows_of(n: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated float64 rows (float32 numbers, as states are) of unequal classes, off the origin."""
    random = np.random.default_rng(seed)
    labels = np.concatenate(
        [np.arange(classes), random.integers(0, classes, size=n - classes) ** 2 % classes]
    )
    mixing = np.eye(width) + 0.5 * random.normal(size=(width, width))
    shift = random.normal(size=(classes, width))
    rows = random.normal(size=(n, width)) @ mixing + 3.0 + 1.5 * shift[labels]
    return rows.astype(np.float32).astype(np.float64), labels


def by_the_paper(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x − W⁺ P W (x − μ) with W the pseudo-inverse of the square root of Σ, by scipy and one-hot labels."""
    centred, hot = x - x.mean(0), np.eye(z.max() + 1)[z]
    sigma, cross = centred.T @ centred / len(x), centred.T @ (hot - hot.mean(0)) / len(x)
    root = np.real(linalg.sqrtm(sigma))
    w = linalg.pinvh(root)
    basis = linalg.orth(w @ cross, rcond=1e-8)
    return np.asarray(x - centred @ (root @ basis @ basis.T @ w).T)


def states(x: np.ndarray) -> Activations:
    return Activations(
        {SITE: torch.from_numpy(x)},
        torch.arange(len(x)),
        torch.zeros(len(x), dtype=torch.long),
        len(x),
        "m",
        "f",
    )


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 4))
@settings(max_examples=15, deadline=None)
def test_it_is_the_papers_map(seed: int, classes: int) -> None:
    """To 1e-8 from rows in float64 with two classes, to 1e-4 of what changes from the float32 file with any number."""
    x, z = rows_of(120, 7, classes, seed)
    right = by_the_paper(x, z)
    if classes == 2:
        np.testing.assert_allclose(Leace().fit(x, z).transform(x), right, atol=1e-8 * np.abs(x).max())
    edit = Erase(erasing(states(x), z.tolist()))
    found = edit.apply(torch.from_numpy(x), SITE).numpy()
    np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(x - right).max())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_nothing_linear_is_left_at_the_least_change(seed: int) -> None:
    x, z = rows_of(200, 8, 2, seed)
    erased = Leace().fit(x, z).transform(x)
    centred = z - z.mean()
    cross = (erased - erased.mean(0)).T @ centred / len(x)
    before = (x - x.mean(0)).T @ centred / len(x)
    assert np.abs(cross).max() <= 1e-12 * np.abs(before).max() * 100
    np.testing.assert_allclose(erased.mean(0), x.mean(0), atol=1e-10)
    gap = x[z == 1].mean(0) - x[z == 0].mean(0)
    unit = gap / np.linalg.norm(gap)
    plain = x - np.outer((x - x.mean(0)) @ unit, unit)  # erases as well
    assert np.abs((plain - plain.mean(0)).T @ centred).max() <= 1e-9 * len(x)
    assert ((erased - x) ** 2).sum() <= ((plain - x) ** 2).sum() * (1 + 1e-12)
    inverse = np.linalg.inv(
        np.cov(x.T)
    )  # and in the norm of the whitened states, where it is an orthogonal projection

    def whitened(change: np.ndarray) -> float:
        return float(np.einsum("ij,jk,ik->", change, inverse, change))

    assert whitened(erased - x) <= whitened(plain - x) * (1 + 1e-9)


def test_a_logistic_probe_is_at_chance_and_a_cubic_one_is_reported() -> None:
    x, z = rows_of(600, 6, 2, seed=1)
    z = np.where(np.arange(len(z)) % 5 == 0, 1 - z, z)
    x[z == 1] *= 1.6  # the classes differ in spread as well, which no affine map takes out
    train, test = np.arange(len(x)) % 2 == 0, np.arange(len(x)) % 2 == 1
    leace = Leace().fit(x[train], z[train])
    erased = leace.transform(x)
    probe = LogisticRegression(C=1e3, tol=1e-10, solver="newton-cholesky").fit(erased[train], z[train])
    assert np.abs(probe.coef_).max() < 1e-5
    majority = round(z[train].mean())
    assert (probe.predict(erased[train]) == majority).all()
    before = LogisticRegression(max_iter=2000).fit(x[train], z[train])
    assert before.score(x[train], z[train]) > max(z.mean(), 1 - z.mean()) + 0.1
    cubic = StandardScaler().fit_transform(PolynomialFeatures(3, include_bias=False).fit_transform(erased))
    accuracy = (
        LogisticRegression(C=0.1, max_iter=5000).fit(cubic[train], z[train]).score(cubic[test], z[test])
    )
    print(
        f"a cubic probe tells {accuracy:.1%} of held-out rows after erasure, chance {max(z.mean(), 1 - z.mean()):.1%}"
    )
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("classes", [2, 3])
def test_rows_and_moments_give_the_same_numbers(classes: int) -> None:
    """To 1e-6 in float64, from batches of any size."""
    x, z = rows_of(150, 9, classes, seed=3)
    moments = Moments("scatter")
    for start in range(0, len(x), 7):
        moments.update({SITE: torch.from_numpy(x[start : start + 7])}, z[start : start + 7].tolist())
    one, other = erasing(states(x), z.tolist()), erasing(moments)
    for found in (Erase(direction).apply(torch.from_numpy(x), SITE).numpy() for direction in (one, other)):
        np.testing.assert_allclose(found, by_the_paper(x, z), atol=1e-4)
    if classes == 2:
        from_rows, streamed = Leace().fit(x, z), Leace().fit_moments(moments, SITE)
        for name in ("direction_", "difference_", "mean_", "bias_"):
            a, b = getattr(from_rows, name), getattr(streamed, name)
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max())
        fitted = sl.fit_direction(states(x), z, "leace")
        torch.testing.assert_close(fitted.vectors[SITE], one.vectors[SITE], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            sl.fit_direction(moments, estimator="leace").vectors[SITE], fitted.vectors[SITE]
        )
        assert fitted.accuracy[SITE].value > 0.7


def test_with_few_rows_the_rows_themselves_are_cleaned() -> None:
    """Fewer rows than dimensions: Σ⁺ lives in their span, and they hold no covariance with the label afterwards."""
    x, z = rows_of(20, 50, 2, seed=4)
    erased = Leace().fit(x, z).transform(x)
    before = (x - x.mean(0)).T @ (z - z.mean())
    assert np.abs((erased - erased.mean(0)).T @ (z - z.mean())).max() < 1e-10 * np.abs(before).max()
    assert np.abs(erased - x).max() > 0.1


def test_what_cannot_be_erased_is_refused_in_a_sentence() -> None:
    x, z = rows_of(40, 5, 2, seed=5)
    streamed = Moments("mean")
    streamed.update({SITE: torch.from_numpy(x)}, z.tolist())
    plain = sl.Direction({SITE: torch.ones(5)}, "m", "f")
    fitted = sl.fit_direction(states(x), z)
    gap = fitted[SITE].double()
    across = torch.linalg.svd(gap[None]).Vh[1].float()
    turned = sl.Direction({SITE: across}, "m", "f", means=fitted.means)
    several = sl.Direction({SITE: torch.eye(5)[:2]}, "m", "f", means=fitted.means)
    same = np.concatenate([x, x])
    for make, said in (
        (lambda: erasing(states(x), [0] * 40), "two classes or more"),
        (lambda: erasing(states(x)), "labels"),
        (lambda: erasing(streamed), "No scatter"),
        (lambda: sl.fit_direction(streamed, estimator="leace"), "No scatter"),
        (lambda: erasing(states(same), [0] * 40 + [1] * 40), "points nowhere"),
        (lambda: Erase(plain), "knows no mean states"),
        (lambda: Erase(turned), "read nothing of the label"),
        (lambda: Erase(several), "2 vectors at resid_post.1 for 2 classes"),
        (lambda: Erase(fitted, strength=float("nan")), "strength is nan"),
    ):
        with pytest.raises(SteerlabError, match=said):
            make()
    with pytest.raises(DirectionError, match="only one class"):
        Leace().fit(x, np.zeros(40))
