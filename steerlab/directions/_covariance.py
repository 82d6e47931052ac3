"""Covariances touched only through their spectrum, so that few rows in many dimensions never make a d × d map."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from steerlab.directions.linear import Floats

Vector: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64]


def spectrum_of_rows(rows: Floats, divisor: float = 1.0) -> tuple[Vector, Matrix]:
    """Eigenvalues [k] and eigenvectors [width, k] of rowsᵀ rows / divisor, k = min(rows, width)."""
    rows = rows.astype(np.float64, copy=False)
    if len(rows) >= rows.shape[1]:
        values, vectors = np.linalg.eigh(rows.T @ rows / divisor)
        return values, vectors
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    return singular**2 / divisor, right.T


def inverse_times(theta: Vector, values: Vector, vectors: Matrix, outside: float, floor: float) -> Vector:
    """Σ⁺ θ [width] for Σ with eigenvalues [k] on the vectors [width, k] and `outside` on all that is orthogonal.

    Eigenvalues up to ``floor`` count as zero.
    """
    along = vectors.T @ theta
    result = vectors @ np.divide(along, values, out=np.zeros_like(along), where=values > floor)
    if outside > floor:
        result += (theta - vectors @ along) / outside
    return np.asarray(result, dtype=np.float64)


def leading_of_rows(rows: Floats) -> Vector:
    """The unit vector [width] along which rows [row, width] have the largest mean square."""
    rows = rows.astype(np.float64, copy=False)
    if len(rows) >= rows.shape[1]:
        return leading(rows.T @ rows)
    vector = rows.T @ leading(rows @ rows.T)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float64)


def leading(symmetric: Matrix) -> Vector:
    """The eigenvector of the largest eigenvalue of a symmetric matrix."""
    last = len(symmetric) - 1
    _, vectors = linalg.eigh(symmetric, subset_by_index=[last, last])
    return np.asarray(vectors[:, 0], dtype=np.float64)


def oas_weight(trace: float, square: float, width: int, n: int) -> float:
    """The oracle-approximating weight of the round covariance (Chen et al. 2010, in scikit-learn's form).

    Args:
        trace: tr S of a covariance S of n rows.
        square: tr S².
        width: its dimensions.
        n: the rows.
    """
    mean_square, square_mean = square / width**2, (trace / width) ** 2
    spread = (n + 1.0) * (mean_square - square_mean / width)
    return 1.0 if spread <= 0 else float(min(1.0, (mean_square + square_mean) / spread))
