"""Coordinates of one scale: closed forms, scikit-learn's pipeline, moments, and what a direction keeps of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import steerlab as sl
from steerlab.activations import Moments
from steerlab.directions import (
    Ccs,
    DifferenceInMeans,
    InCoordinates,
    Lda,
    LinearDirection,
    LogisticProbe,
    MassMean,
    PcaReader,
    Ttpd,
    dominance,
    fit_direction,
)
from steerlab.directions.coordinates import chosen_coordinates
from steerlab.errors import DirectionError
from steerlab.models import Site

SITE = Site("resid_post", 0)


@parametrize_with_checks(
    [
        InCoordinates(DifferenceInMeans()),
        InCoordinates(MassMean(tilt=True)),
        InCoordinates(DifferenceInMeans(), "winsorised"),
    ]
)
def test_scikit_learn_conformity(estimator: Any, check: Any) -> None:
    check(estimator)


def rows_and_labels(n: int = 120, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of uneven coordinates about a large mean, and labels of both classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 3 > 0
    rows = random.normal(size=(n, width)) @ random.normal(size=(width, width)) + 0.8 * labels[:, None]
    return rows * np.logspace(-1, 3, width) + 50.0, labels


def test_difference_in_means_is_divided_by_the_variance() -> None:
    rows, labels = rows_and_labels()
    found = InCoordinates(DifferenceInMeans()).fit(rows, labels)
    gap = rows[labels].mean(axis=0) - rows[~labels].mean(axis=0)
    np.testing.assert_allclose(found.direction_, gap / rows.var(axis=0), rtol=1e-9)
    middle = (rows[labels].mean(axis=0) + rows[~labels].mean(axis=0)) / 2
    assert found.bias_ == pytest.approx(-found.direction_ @ middle)


@pytest.mark.parametrize(
    "estimator", [DifferenceInMeans(), MassMean(tilt=True), Lda(), LogisticProbe(standardise=False), Ttpd()]
)
def test_scores_are_those_of_a_pipeline(estimator: LinearDirection) -> None:
    rows, labels = rows_and_labels()
    found = InCoordinates(estimator).fit(rows, labels)
    pipeline = make_pipeline(StandardScaler(), estimator).fit(rows, labels)
    np.testing.assert_allclose(
        found.decision_function(rows), pipeline.decision_function(rows), rtol=1e-6, atol=1e-8
    )
    if not isinstance(estimator, Ttpd):  # which scores by two projections
        np.testing.assert_allclose(
            rows @ found.direction_ + found.bias_, found.decision_function(rows), atol=1e-7
        )


def test_what_is_invariant_stays_as_it_is() -> None:
    rows, labels = rows_and_labels(width=3)
    rows = rows / rows.std(axis=0) * np.array([1.0, 2.0, 5.0])
    free = LogisticProbe(C=1e8, standardise=False, max_iter=10_000, tol=1e-10)
    plain, scaled = free.fit(rows, labels), InCoordinates(free).fit(rows, labels)
    np.testing.assert_allclose(plain.direction_, scaled.direction_, rtol=1e-3, atol=1e-4)
    own = LogisticRegression(C=np.inf, max_iter=10_000, tol=1e-10).fit(rows, labels)
    np.testing.assert_allclose(own.coef_[0], scaled.direction_, rtol=1e-3, atol=1e-4)
    for estimator in (Lda(0.0), MassMean(tilt=True, shrinkage=0.0)):
        np.testing.assert_allclose(
            InCoordinates(estimator).fit(rows, labels).direction_,
            estimator.fit(rows, labels).direction_,
            rtol=1e-7,
        )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
    st.sampled_from([DifferenceInMeans(), MassMean(tilt=True), Lda(), LogisticProbe(standardise=False)]),
)
def test_scores_do_not_hang_on_the_scale_of_coordinates(
    scale: list[float], estimator: LinearDirection
) -> None:
    rows, labels = rows_and_labels(60)
    rescaled = rows * np.array(scale)
    one, other = (InCoordinates(estimator).fit(x, labels).decision_function(x) for x in (rows, rescaled))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_winsorised_rows_are_clipped_while_fitting() -> None:
    rows, labels = rows_and_labels(200)
    wild = rows.copy()
    wild[0] += 1e6
    found = InCoordinates(DifferenceInMeans(), "winsorised", tail=0.05).fit(wild, labels)
    low, high = np.quantile(wild, [0.05, 0.95], axis=0)
    expected = DifferenceInMeans().fit(np.clip(wild, low, high), labels)
    np.testing.assert_allclose(found.direction_, expected.direction_)
    assert found.bias_ == pytest.approx(expected.bias_)
    with pytest.raises(DirectionError, match="below one half"):
        InCoordinates(DifferenceInMeans(), "winsorised", tail=0.5).fit(rows, labels)
    with pytest.raises(DirectionError, match="Coordinates are plain"):
        InCoordinates(DifferenceInMeans(), "wide").fit(rows, labels)  # type: ignore[arg-type]


def test_pairs_and_polarity_reach_the_estimators_that_take_them() -> None:
    rows, _ = rows_and_labels(80)
    labels, pairs = np.arange(80) % 2 == 0, np.arange(80) // 2
    polarity = np.where(np.arange(80) % 4 < 2, 1, -1) * np.where(labels, 1, -1)
    found = InCoordinates(PcaReader()).fit(rows, labels, pairs=pairs, polarity=polarity)
    scaled = StandardScaler().fit_transform(rows)
    expected = PcaReader().fit(scaled, labels, pairs=pairs, polarity=polarity)
    np.testing.assert_allclose(found.decision_function(rows), expected.decision_function(scaled), atol=1e-9)
    once = InCoordinates(Ccs(restarts=1, steps=5)).fit(rows, labels, pairs=pairs, polarity=polarity)
    again = Ccs(restarts=1, steps=5).fit(rows, labels, pairs=pairs, polarity=polarity)
    np.testing.assert_allclose(once.direction_, again.direction_, rtol=1e-6)  # it standardises by itself


# -- moments --


def streamed(rows: np.ndarray, labels: np.ndarray, order: Any = "scatter") -> Moments:
    moments = Moments(order)
    moments.update({SITE: torch.from_numpy(rows)}, labels.tolist())
    return moments


@pytest.mark.parametrize("estimator", [DifferenceInMeans(), MassMean(tilt=True), Lda("oas")])
def test_moments_give_what_rows_give(estimator: LinearDirection) -> None:
    rows, labels = rows_and_labels()
    rows = np.column_stack([rows, np.full(len(rows), 3.0)]).astype(np.float32)
    by_rows = InCoordinates(estimator).fit(rows, labels)
    by_moments = InCoordinates(estimator).fit_moments(
        streamed(rows, labels), SITE, negative=False, positive=True
    )
    np.testing.assert_allclose(by_rows.direction_[:-1], by_moments.direction_[:-1], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        rows @ by_moments.direction_ + by_moments.bias_, by_rows.decision_function(rows), atol=2e-3
    )


def test_moments_without_variances_or_rows_end_in_a_sentence() -> None:
    rows, labels = rows_and_labels()
    both = {"negative": False, "positive": True}
    with pytest.raises(DirectionError, match=r'capture into Moments\("scatter"\)'):
        InCoordinates(DifferenceInMeans()).fit_moments(streamed(rows, labels, "mean"), SITE, **both)
    with pytest.raises(DirectionError, match="in winsorised coordinates needs the rows"):
        InCoordinates(DifferenceInMeans(), "winsorised").fit_moments(streamed(rows, labels), SITE, **both)
    with pytest.raises(DirectionError, match="LogisticProbe in standardised coordinates needs the rows"):
        InCoordinates(LogisticProbe()).fit_moments(streamed(rows, labels), SITE, **both)


# -- directions --

TEXTS = [f"{word} number {n}" for n in range(6) for word in ("good", "bad")]
LABELS = [1, 0] * 6


def test_a_direction_keeps_its_coordinates() -> None:
    states = sl.capture(tiny("llama"), TEXTS, "resid_post")
    plain = fit_direction(states, LABELS)
    read = fit_direction(states, LABELS, coordinates="standardised")
    assert plain.estimator == read.estimator == "DifferenceInMeans"
    assert (plain.parameters, read.parameters) == ({}, {"coordinates": "standardised"})
    site = read.sites[0]
    expected = plain[site].double() / states[site].double().var(dim=0, correction=0)
    torch.testing.assert_close(read[site].double(), expected, rtol=1e-4, atol=1e-4)
    assert read.accuracy[site].n == 12
    clipped = fit_direction(states, LABELS, "mass-mean", coordinates="winsorised", hold_out=False)
    assert (clipped.parameters["coordinates"], clipped.parameters["tail"]) == ("winsorised", 0.01)
    with pytest.raises(DirectionError, match="Coordinates are plain"):
        fit_direction(states, LABELS, coordinates="whitened")  # type: ignore[arg-type]
    made = sl.extract(tiny("llama"), TEXTS[::2], TEXTS[1::2], coordinates="standardised")
    assert made.parameters["coordinates"] == "standardised"


def test_groups_are_centred_apart() -> None:
    model = tiny("llama")
    states = sl.capture(model, TEXTS, "resid_post")
    topics = np.repeat(range(3), 4).tolist()
    found = fit_direction(states, LABELS, groups=topics, centre_groups=True, hold_out=False)
    site = found.sites[-1]
    rows = states[site].double().numpy()
    centred = np.concatenate([rows[at : at + 4] - rows[at : at + 4].mean(axis=0) for at in (0, 4, 8)])
    expected = DifferenceInMeans().fit(centred + rows.mean(axis=0), LABELS)
    np.testing.assert_allclose(found[site].numpy(), expected.direction_, atol=1e-5)
    assert found.parameters == {"centre_groups": True}
    assert found.statistics[site].bias == pytest.approx((expected.bias_,), abs=1e-4)
    shifted = {
        name: x + 100.0 * torch.tensor(topics)[:, None] for name, x in states.states.items()
    }  # topics apart
    moved = fit_direction(
        sl.activations.Activations(**(vars(states) | {"states": shifted})),
        LABELS,
        groups=topics,
        centre_groups=True,
        hold_out=False,
    )
    np.testing.assert_allclose(moved[site].numpy(), found[site].numpy(), atol=1e-3)
    made = sl.extract(model, TEXTS[::2], TEXTS[1::2], groups=[*range(6)] * 2, centre_groups=True)
    assert made.parameters == {"centre_groups": True}
    assert made.accuracy


def test_groups_that_cannot_be_centred_end_in_a_sentence() -> None:
    states = sl.capture(tiny("llama"), TEXTS, "resid_post")
    with pytest.raises(DirectionError, match="needs groups="):
        fit_direction(states, LABELS, centre_groups=True)
    with pytest.raises(DirectionError, match="holds one class only"):
        fit_direction(states, LABELS, groups=LABELS, centre_groups=True)
    streams = sl.capture(tiny("llama"), TEXTS, "resid_post", into=Moments(), labels=LABELS)
    with pytest.raises(DirectionError, match="needs the rows"):
        fit_direction(streams, groups=LABELS, centre_groups=True)


def test_a_mean_that_dominates_asks_for_standardised_coordinates() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8))
    assert dominance(rows) < 0.3
    assert dominance(rows + 100.0) > 0.99
    assert dominance(np.zeros((3, 8))) == 0.0
    assert dominance(np.ones((3, 8))) == pytest.approx(1.0)
    assert [chosen_coordinates(x) for x in (rows, rows + 100.0)] == ["plain", "standardised"]
