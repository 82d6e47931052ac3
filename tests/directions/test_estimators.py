from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf, oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from steerlab.activations import Moments
from steerlab.directions import DifferenceInMeans, Lda, Leace, LinearDirection, LogisticProbe, MassMean
from steerlab.errors import DirectionError
from steerlab.models import Site

SITE = Site("resid_post", 0)
FITTABLE_FROM_MOMENTS = [
    DifferenceInMeans(),
    MassMean(),
    MassMean(tilt=True),
    MassMean(tilt=True, shrinkage=0.3, ddof=2, centre="mean"),
    Lda("oas"),
    Lda(0.3),
    Leace(),
]


@parametrize_with_checks(
    [
        DifferenceInMeans(),
        MassMean(),
        MassMean(tilt=True),
        Lda(),
        Lda("oas"),
        LogisticProbe(),
        LogisticProbe(standardise=False),
        LogisticProbe(solver="adamw", steps=50, learning_rate=0.1),
    ]
)
def test_scikit_learn_conformity(estimator: Any, check: Any) -> None:
    check(estimator)


def two_classes(n: int, width: int, seed: int, *, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Float32 rows of two correlated Gaussians apart along one axis, and labels with both classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) < max(1, min(n - 1, round(share * n)))
    mixing = np.eye(width) + 0.4 * random.normal(size=(width, width))
    rows = random.normal(size=(n, width)) @ mixing + 2.0 + 1.5 * labels[:, None] * np.eye(width)[0]
    return rows.astype(np.float32), labels


def streamed(rows: np.ndarray, labels: np.ndarray, order: str = "scatter") -> Moments:
    moments = Moments(order)  # type: ignore[arg-type]
    for start in range(0, len(rows), 5):
        moments.update({SITE: torch.from_numpy(rows[start : start + 5])}, labels[start : start + 5].tolist())
    return moments


def test_difference_in_means_is_the_difference_and_decides_at_the_midpoint() -> None:
    rows = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 2.0], [6.0, 2.0], [5.0, 2.0]])
    fitted = DifferenceInMeans().fit(rows, [0, 0, 1, 1, 1])
    np.testing.assert_allclose(fitted.direction_, [4.0, 2.0])
    np.testing.assert_allclose(fitted.decision_function([[3.0, 1.0], [5.0, 2.0]]), [0.0, 10.0])


@pytest.mark.parametrize("estimator", FITTABLE_FROM_MOMENTS, ids=str)
@settings(deadline=None, max_examples=15)
@given(n=st.integers(4, 40), width=st.integers(1, 12), seed=st.integers(0, 99), share=st.floats(0.2, 0.8))
def test_moments_give_what_rows_give(
    estimator: LinearDirection, n: int, width: int, seed: int, share: float
) -> None:
    rows, labels = two_classes(n, width, seed, share=share)
    from_rows = _clone(estimator).fit(rows, labels)
    moments = streamed(rows, labels)
    from_moments = _clone(estimator).fit_moments(moments, SITE, negative=False, positive=True)  # type: ignore[attr-defined]
    size = np.abs(from_rows.direction_).max()
    np.testing.assert_allclose(from_moments.direction_, from_rows.direction_, rtol=1e-5, atol=1e-5 * size)
    scale = max(1.0, abs(from_rows.bias_))
    assert from_moments.bias_ == pytest.approx(from_rows.bias_, abs=1e-5 * scale)


def test_the_plain_probe_never_needs_second_moments() -> None:
    rows, labels = two_classes(30, 4, 0)
    moments = streamed(rows, labels, "mean")
    MassMean().fit_moments(moments, SITE, negative=False, positive=True)
    with pytest.raises(ValueError, match="No scatter"):
        MassMean(tilt=True).fit_moments(moments, SITE, negative=False, positive=True)


def test_the_tilt_is_linear_discriminant_analysis() -> None:
    rows, labels = two_classes(400, 6, 1)
    tilted = MassMean(tilt=True, shrinkage=0.0).fit(rows, labels)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(
        rows.astype(np.float64), labels
    )
    np.testing.assert_allclose(tilted.direction_, reference.coef_[0], rtol=1e-6)
    assert tilted.bias_ == pytest.approx(float(reference.intercept_[0]), rel=1e-6)
    np.testing.assert_allclose(tilted.predict_proba(rows), reference.predict_proba(rows), atol=1e-6)


def test_only_the_tilt_finds_the_bayes_direction_of_correlated_states() -> None:
    random = np.random.default_rng(2)
    covariance = np.diag([1.0, 0.05, 3.0]) + 0.2
    labels = np.arange(20_000) % 2
    apart = np.array([1.0, 1.0, 1.0])
    rows = random.multivariate_normal(np.zeros(3), covariance, len(labels)) + labels[:, None] * apart
    bayes = np.linalg.solve(covariance, apart)
    for estimator in (MassMean(tilt=True), Lda(), Lda("oas")):
        assert _cosine(estimator.fit(rows, labels).direction_, bayes) > 0.999
    assert _cosine(MassMean().fit(rows, labels).direction_, bayes) < 0.9
    assert _cosine(MassMean().fit(rows, labels).direction_, apart) > 0.999


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 1.0, "oas"])
@pytest.mark.parametrize("n", [8, 11, 30])
def test_few_rows_in_dual_form_give_the_full_answer(n: int, shrinkage: Any) -> None:
    """Fewer rows than dimensions: equal to pinv of the whole covariance, built here the plain way."""
    width = 12
    rows, labels = two_classes(n, width, n)
    x = rows.astype(np.float64)
    theta = x[labels].mean(0) - x[~labels].mean(0)
    centred = x - np.where(labels[:, None], x[labels].mean(0), x[~labels].mean(0))
    covariance = centred.T @ centred / n
    alpha = oas(centred, assume_centered=True)[1] if shrinkage == "oas" else shrinkage
    shrunk = (1 - alpha) * covariance + alpha * np.trace(covariance) / width * np.eye(width)
    fitted = MassMean(tilt=True, shrinkage=shrinkage).fit(rows, labels)
    assert fitted.shrinkage_ == pytest.approx(alpha, rel=1e-9)
    expected = np.linalg.pinv(shrunk, rcond=1e-9, hermitian=True) @ theta
    np.testing.assert_allclose(fitted.direction_, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_many_dimensions_never_build_the_square_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the width × width problem was solved")

    monkeypatch.setattr(np.linalg, "eigh", refused)
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(10, 3000)), np.arange(10) % 2
    assert MassMean(tilt=True).fit(rows, labels).score(rows, labels) == 1.0


def test_the_absolute_tolerance_drops_small_eigenvalues() -> None:
    around = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.05], [0.0, -0.05]])
    rows, labels = np.concatenate([around, around + 1.0]), [0] * 4 + [1] * 4
    plain = MassMean(tilt=True, shrinkage=0.0).fit(rows, labels)
    floored = MassMean(tilt=True, shrinkage=0.0, atol=1e-2).fit(rows, labels)
    np.testing.assert_allclose(plain.direction_, [1 / 0.5, 1 / 0.00125])
    np.testing.assert_allclose(floored.direction_, [1 / 0.5, 0.0], atol=1e-9)


def test_centring_on_the_mean_follows_the_share_of_the_classes() -> None:
    rows, labels = np.array([[0.0], [1.0], [1.0], [1.0]]), [0, 1, 1, 1]
    assert -MassMean(centre="mean").fit(rows, labels).bias_ == pytest.approx(0.75)
    assert -MassMean().fit(rows, labels).bias_ == pytest.approx(0.5)


@pytest.mark.parametrize("standardise", [True, False])
def test_the_logistic_probe_speaks_in_the_units_of_the_states(standardise: bool) -> None:
    rows, labels = two_classes(200, 5, 3)
    rows = rows * np.array([1.0, 10.0, 0.1, 1.0, 100.0], dtype=np.float32)
    probe = LogisticProbe(standardise=standardise, tol=1e-8, max_iter=20_000).fit(rows, labels)
    x = rows.astype(np.float64)
    if standardise:
        x = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(tol=1e-8, max_iter=20_000).fit(x, labels)
    np.testing.assert_allclose(probe.decision_function(rows), reference.decision_function(x), atol=1e-3)
    np.testing.assert_allclose(probe.predict_proba(rows), reference.predict_proba(x), atol=1e-3)


def test_without_an_intercept_the_score_of_zero_is_zero() -> None:
    rows, labels = two_classes(60, 4, 5)
    probe = LogisticProbe(fit_intercept=False).fit(rows, labels)
    assert probe.decision_function(np.zeros((1, 4)))[0] == 0.0


@pytest.mark.parametrize("n", [12, 200])
@pytest.mark.parametrize(
    ("shrinkage", "estimator"), [("auto", LedoitWolf()), ("ledoit-wolf", LedoitWolf()), ("oas", OAS())]
)
def test_the_discriminant_is_scikit_learns(shrinkage: Any, estimator: Any, n: int) -> None:
    """With more rows than dimensions and with fewer, on classes of unequal size."""
    rows, labels = two_classes(n, 20, 6, share=0.3)
    reference = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=estimator).fit(
        rows.astype(np.float64), labels
    )
    fitted = Lda(shrinkage).fit(rows, labels)
    np.testing.assert_allclose(fitted.direction_, reference.coef_[0], rtol=1e-4)
    assert fitted.bias_ == pytest.approx(float(reference.intercept_[0]), rel=1e-4)
    np.testing.assert_allclose(fitted.predict_proba(rows), reference.predict_proba(rows), atol=1e-4)


def test_a_discriminant_of_few_rows_never_builds_the_square_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the width × width problem was solved")

    monkeypatch.setattr(np.linalg, "eigh", refused)
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(10, 3000)), np.arange(10) % 2
    for shrinkage in ("oas", "ledoit-wolf"):
        assert Lda(shrinkage).fit(rows, labels).score(rows, labels) == 1.0  # type: ignore[arg-type]


def test_the_published_logistic_probe_is_a_thousand_steps_of_adamw() -> None:
    rows, labels = two_classes(80, 6, 7)
    rows = rows - rows.mean(0)
    probe = LogisticProbe(solver="adamw", standardise=False, fit_intercept=False).fit(rows, labels)
    x, y = torch.from_numpy(rows).double(), torch.from_numpy(labels).double()
    weights = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([weights], lr=1e-3, weight_decay=0.1)
    for _ in range(1000):
        loss = torch.nn.BCELoss()(torch.sigmoid(x @ weights), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    np.testing.assert_allclose(probe.direction_, weights.detach(), rtol=1e-8)
    assert probe.bias_ == 0.0
    with torch.inference_mode():
        again = LogisticProbe(solver="adamw", standardise=False, fit_intercept=False).fit(rows, labels)
    np.testing.assert_array_equal(again.direction_, probe.direction_)


def test_means_are_taken_in_double_precision() -> None:
    """Against plain NumPy sums of float32 rows far from zero, where float32 sums lose the difference."""
    random = np.random.default_rng(8)
    labels = np.arange(20_000) % 2 == 0
    rows = (random.normal(size=(20_000, 3)) + 1000.0 + 0.01 * labels[:, None]).astype(np.float32)
    total = [np.array([float(x) for x in rows[part].astype(np.float64).sum(0)]) for part in (labels, ~labels)]
    expected = total[0] / 10_000 - total[1] / 10_000
    for estimator in (DifferenceInMeans(), MassMean()):
        np.testing.assert_allclose(estimator.fit(rows, labels).direction_, expected, rtol=1e-9)


def test_of_round_classes_every_estimator_finds_the_bayes_direction() -> None:
    random = np.random.default_rng(9)
    labels = np.arange(4000) % 2
    apart = np.array([1.0, -2.0, 0.5, 0.0])
    rows = random.normal(size=(4000, 4)) + labels[:, None] * apart
    for estimator in (DifferenceInMeans(), MassMean(tilt=True), Lda(), Lda("oas"), LogisticProbe()):
        assert _cosine(estimator.fit(rows, labels).direction_, apart) > 0.995, estimator


@pytest.mark.parametrize(
    "estimator", [DifferenceInMeans(), MassMean(tilt=True), Lda(), LogisticProbe()], ids=str
)
def test_tensors_of_any_precision_are_taken(estimator: LinearDirection) -> None:
    rows, labels = two_classes(60, 4, 4)
    plain = _clone(estimator).fit(rows, labels)
    tensors = _clone(estimator).fit(torch.from_numpy(rows).requires_grad_(), torch.from_numpy(labels))
    half = _clone(estimator).fit(torch.from_numpy(rows).bfloat16(), torch.from_numpy(labels).int())
    np.testing.assert_array_equal(tensors.direction_, plain.direction_)
    assert _cosine(half.direction_, plain.direction_) > 0.99
    assert cross_val_score(estimator, rows, labels, cv=3).mean() > 0.7


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DifferenceInMeans().fit(np.eye(3), [1, 1, 1]), "only one class"),
        (lambda: LogisticProbe().fit(np.eye(3), [0, 1, 2]), "Only binary classification"),
        (lambda: MassMean(tilt=True, shrinkage=1.5).fit(np.eye(4), [0, 1, 0, 1]), "0 to 1 or 'oas', not 1.5"),
        (lambda: MassMean(tilt=True, shrinkage="lw").fit(np.eye(4), [0, 1, 0, 1]), "'oas', not 'lw'"),  # type: ignore[arg-type]
        (lambda: Lda(-0.1).fit(np.eye(4), [0, 1, 0, 1]), "'ledoit-wolf' or 'oas', not -0.1"),
        (lambda: Lda("auto!").fit(np.eye(4), [0, 1, 0, 1]), "not 'auto!'"),  # type: ignore[arg-type]
        (
            lambda: Lda("ledoit-wolf").fit_moments(
                streamed(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])), SITE
            ),
            "needs the rows",
        ),
        (lambda: LogisticProbe(solver="sgd").fit(np.eye(4), [0, 1, 0, 1]), "not 'sgd'"),  # type: ignore[arg-type]
        (lambda: MassMean(centre="median").fit(np.eye(4), [0, 1, 0, 1]), "not 'median'"),  # type: ignore[arg-type]
        (lambda: MassMean(tilt=True, ddof=4).fit(np.eye(4), [0, 1, 0, 1]), "more than 4 rows"),
        (
            lambda: DifferenceInMeans().fit_moments(
                streamed(np.eye(2, dtype=np.float32), np.array([3, 4])), SITE
            ),
            r"classes \[3, 4\], not 0",
        ),
    ],
)
def test_misuse_is_named(make: Any, sentence: str) -> None:
    with pytest.raises(DirectionError, match=sentence):
        make()


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _clone(estimator: LinearDirection) -> Any:
    return type(estimator)(**estimator.get_params())
