"""Centred kernel alignment without the bias of few rows, and its permutation null."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from steerlab.alignment._spectra import Rows
from steerlab.errors import AlignmentError


def debiased_cka(x: Rows, y: Rows) -> float:
    """HSIC₁(X, Y) / √(HSIC₁(X, X) HSIC₁(Y, Y)) of matched rows with a linear kernel.

    Zero in expectation for unrelated rows whatever the widths, where the plain CKA is near one for more dimensions
    than rows.
    Source: Song et al. (2012) for HSIC₁; Nguyen, Raghu and Kornblith (2021).

    Raises:
        AlignmentError: fewer than four rows.
    """
    return _cka(_kernel(x), _kernel(y))


def cka_null(x: Rows, y: Rows, *, draws: int = 199, seed: int = 0) -> tuple[float, float]:
    """The debiased CKA and the share of row permutations (with itself) that reach it."""
    first, second = _kernel(x), _kernel(y)
    observed = _cka(first, second)
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(x)) for _ in range(draws))
    reached = sum(_cka(first, second[np.ix_(order, order)]) >= observed for order in orders)
    return observed, (1 + reached) / (1 + draws)


def cka_of_layers(source: list[Rows], target: list[Rows]) -> Float[np.ndarray, "source target"]:
    """Debiased CKA of every source layer with every target layer on the same rows."""
    first, second = ([_kernel(rows) for rows in side] for side in (source, target))
    return np.array([[_cka(layer, other_layer) for other_layer in second] for layer in first])


def _kernel(rows: Rows) -> Float[np.ndarray, "row row"]:
    if len(rows) < 4:
        raise AlignmentError(f"The debiased CKA needs at least four rows; it got {len(rows)}.")
    centred = np.asarray(rows, dtype=np.float64) - np.mean(rows, axis=0, dtype=np.float64)
    kernel = centred @ centred.T
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _cka(first: Float[np.ndarray, "row row"], second: Float[np.ndarray, "row row"]) -> float:
    scale = _hsic(first, first) * _hsic(second, second)
    return _hsic(first, second) / float(np.sqrt(scale)) if scale > 0 else float("nan")


def _hsic(k: Float[np.ndarray, "row row"], m: Float[np.ndarray, "row row"]) -> float:
    n = len(k)
    sums = k.sum(axis=0), m.sum(axis=0)
    total = (k * m).sum() + sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * sums[0] @ sums[1]) / (n * (n - 3)))
