"""The part of a direction at right angles to others, against a projection by least squares of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab.directions import Direction, fit_direction, outside
from steerlab.errors import DirectionError
from steerlab.models import LanguageModel, Site

SITE = Site("resid_post", 1)
TEXTS = [
    "Rome",
    "a dog",
    "we like",
    "red",
    "one two",
    "it sat",
    "no man",
    "the cat",
    "blue",
    "on the",
    "is",
    "France",
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def fitted(model: LanguageModel) -> Direction:
    states = sl.capture(model, TEXTS, ["resid_post.0", "resid_post.1"])
    return fit_direction(states, [0, 1] * (len(TEXTS) // 2), hold_out=False)


def given(model: LanguageModel, k: int, seed: int) -> Direction:
    rows = torch.randn(k, model.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction({SITE: rows}, model.name, model.fingerprint)


def left(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Residuals of least squares on the others, float64."""
    weights, *_ = np.linalg.lstsq(others.T, rows.T, rcond=None)
    residuals: np.ndarray = rows - (others.T @ weights).T
    return residuals


def test_what_is_left_are_residuals_of_least_squares(model: LanguageModel, fitted: Direction) -> None:
    other, mean = given(model, 2, seed=1), fitted.mean(SITE, "negative").double().numpy()
    found = outside(fitted.at(SITE), other, "negative")
    spanned = np.concatenate([other.vectors[SITE].double().numpy(), mean[None]])
    right = left(fitted[SITE].double().numpy()[None], spanned)
    assert np.abs(found[SITE].double().numpy() - right[0]).max() <= 1e-6 * np.abs(right).max()
    size = np.linalg.norm(spanned, axis=1) * float(found[SITE].norm())
    assert np.abs(spanned @ found[SITE].double().numpy() / size).max() < 1e-6
    several = outside(given(model, 3, seed=2), other)
    right = left(given(model, 3, seed=2).vectors[SITE].double().numpy(), other.vectors[SITE].double().numpy())
    assert np.abs(several.vectors[SITE].double().numpy() - right).max() <= 1e-6 * np.abs(right).max()


def test_the_scale_is_that_of_the_classes_along_it_and_it_steers(
    model: LanguageModel, fitted: Direction
) -> None:
    found = outside(fitted, "negative")
    assert found.sites == fitted.sites
    for site in found.sites:
        unit = found[site].double() / found[site].double().norm()
        high, low = (float(unit @ fitted.mean(site, end).double()) for end in ("positive", "negative"))
        assert found.class_gap[site] == pytest.approx(high - low, rel=1e-5)
        assert abs(low) < 1e-5 * float(fitted.mean(site, "negative").norm())
        middle = (fitted.mean(site, "positive") + fitted.mean(site, "negative")).double() / 2
        assert float(found[site].double() @ middle) == pytest.approx(
            -found.statistics[site].bias[0], rel=1e-4
        )  # type: ignore[index]
    plain = model.logits("the cat")
    with model.steering(sl.Add(found.at(SITE))):
        assert not torch.equal(model.logits("the cat"), plain)
    with model.steering(sl.Ablate(found.at(SITE), preserve="norm")):
        assert not torch.equal(model.logits("the cat"), plain)
    one, other = given(model, 1, seed=6), given(model, 2, seed=7)
    logits = []
    for edit in (sl.Ablate(outside(one, other)), sl.Ablate(one, keep=[other])):
        with model.steering(edit):
            logits.append(model.logits("the cat"))
    assert float((logits[0] - logits[1]).abs().max()) <= 1e-5 * float(plain.abs().max())
    assert outside(given(model, 1, seed=4), given(model, 1, seed=5)).statistics[SITE].bias is None


def test_what_leaves_nothing_or_is_unknown_is_refused(model: LanguageModel, fitted: Direction) -> None:
    one = given(model, 1, seed=3)
    with pytest.raises(DirectionError, match="nothing of it remains"):
        outside(one, 2 * one)
    with pytest.raises(DirectionError, match="Nothing is left out"):
        outside(one)
    with pytest.raises(DirectionError, match="knows no mean"):
        outside(one, "negative")
    with pytest.raises(DirectionError, match="names of mean states"):
        outside(one, torch.ones(3))  # type: ignore[arg-type]
    with pytest.raises(DirectionError, match="another model"):
        outside(fitted.at(SITE), given(tiny("gpt2"), 1, seed=0))
    wider = Direction({SITE: torch.ones(7)}, "", "")
    with pytest.raises(DirectionError, match="another width"):
        outside(one, wider)
