"""The ridge strength that best predicts differences of held-out rows, by K-fold, in the smaller of two forms.

λ = strength · ‖X‖²_F / n with X centred, so that a strength means the same at every layer. The score is R² of
differences of held-out rows: residuals and targets are taken about the mean of the held-out fold, as if the
means were fitted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Float

from steerlab.alignment._spectra import Rows
from steerlab.alignment.cross_moments import CrossMoments

Scores = Float[np.ndarray, "fold strength"]


def scores_by_rows(x: Rows, y: Rows, strengths: Sequence[float], folds: int, seed: int) -> Scores:
    """[fold, strength] from row products X Xᵀ and Y Yᵀ only (dual form)."""
    inner_x, inner_y = x @ x.T, y @ y.T
    deal = np.random.default_rng(seed).permutation(len(x)) % folds
    return np.stack(
        [
            _held_out(inner_x, inner_y, np.flatnonzero(deal != fold), np.flatnonzero(deal == fold), strengths)
            for fold in range(folds)
        ]
    )


def scores_by_moments(moments: CrossMoments, strengths: Sequence[float]) -> Scores:
    """[fold, strength] from second moments (primal form)."""
    return np.stack(list(_by_fold(moments, strengths)))


# -- private, in the order they are called --


def _held_out(
    inner_x: Float[np.ndarray, "row row"],
    inner_y: Float[np.ndarray, "row row"],
    train: np.ndarray,
    test: np.ndarray,
    strengths: Sequence[float],
) -> Float[np.ndarray, " strength"]:
    both = np.concatenate([train, test])
    n = len(train)
    kx, ky = (_about_train(inner[np.ix_(both, both)], n) for inner in (inner_x, inner_y))
    values, vectors = scipy.linalg.eigh(kx[:n, :n], check_finite=False)
    reading = kx[n:, :n] @ vectors
    about = np.eye(len(test)) - 1 / len(test)
    total = np.trace(about @ ky[n:, n:])
    scores = []
    for strength in strengths:
        ridge = strength * max(values.sum(), 1e-300) / n
        weights = about @ (reading / (np.clip(values, 0, None) + ridge)) @ vectors.T
        residual = (
            total
            - 2 * np.einsum("et,et->", weights, ky[n:, :n])
            + np.einsum("et,tu,eu->", weights, ky[:n, :n], weights, optimize=True)
        )
        scores.append(1 - residual / total)
    return np.array(scores)


def _about_train(inner: Float[np.ndarray, "row row"], n: int) -> Float[np.ndarray, "row row"]:
    """Products of rows about the mean of the first n."""
    to_mean = inner[:, :n].mean(axis=1)
    centred: Float[np.ndarray, "row row"] = inner - to_mean[:, None] - to_mean[None] + to_mean[:n].mean()
    return centred


def _by_fold(moments: CrossMoments, strengths: Sequence[float]) -> Iterator[Float[np.ndarray, " strength"]]:
    for number, fold in enumerate(moments.folds):
        if fold.n < 2:
            continue
        train = moments.total(without=number)
        values, vectors = scipy.linalg.eigh(train.xx, check_finite=False)
        mapped = vectors.T @ train.xy
        against = (mapped * (vectors.T @ fold.xy)).sum(axis=1)
        itself = (vectors.T @ fold.xx @ vectors) * (mapped @ mapped.T)
        total = float(moments.trace_yy(number))
        scores = []
        for strength in strengths:
            shrink = 1 / (np.clip(values, 0, None) + strength * values.sum() / train.n)
            residual = total - 2 * (shrink * against).sum() + shrink @ itself @ shrink
            scores.append(1 - residual / total)
        yield np.array(scores)
