"""One decomposition that all closed-form aligners share.

With centred rows X = U_x S_x V_xᵀ and Y = U_y S_y V_yᵀ (thin), everything about the pair that a linear map can use
is in S_x, S_y and ``inner`` = U_xᵀ U_y; every aligner is a formula in these, and its map is W = V_x A V_yᵀ with a small
A. From second moments the same three come out of the eigenvectors of XᵀX and YᵀY and of XᵀY.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float

Rows = Float[np.ndarray, "row width"]
Square = Float[np.ndarray, "width width"]


@dataclass(frozen=True)
class Spectra:
    """Two sets of matched rows in their own principal axes.

    mean_x, mean_y: what was subtracted (zero when uncentred). basis_x, basis_y: [width, rank] orthonormal. scale_x,
    scale_y: [rank] singular values, descending, none of them rounding. inner: [rank_x, rank_y] U_xᵀ U_y. rows: count.
    """

    mean_x: Float[np.ndarray, " width_x"]
    mean_y: Float[np.ndarray, " width_y"]
    basis_x: Float[np.ndarray, "width_x rank_x"]
    basis_y: Float[np.ndarray, "width_y rank_y"]
    scale_x: Float[np.ndarray, " rank_x"]
    scale_y: Float[np.ndarray, " rank_y"]
    inner: Float[np.ndarray, "rank_x rank_y"]
    rows: int

    @classmethod
    def of_rows(cls, x: Rows, y: Rows, *, center: bool = True) -> Spectra:
        """From matched rows, by thin SVDs in float64."""
        mean_x, mean_y = (z.mean(axis=0) if center else np.zeros(z.shape[1]) for z in (x, y))
        left_x, scale_x, basis_x = _thin(x - mean_x)
        left_y, scale_y, basis_y = _thin(y - mean_y)
        return cls(mean_x, mean_y, basis_x, basis_y, scale_x, scale_y, left_x.T @ left_y, len(x))

    @classmethod
    def of_moments(
        cls,
        mean_x: Float[np.ndarray, " width_x"],
        mean_y: Float[np.ndarray, " width_y"],
        xx: Square,
        yy: Square,
        xy: Float[np.ndarray, "width_x width_y"],
        rows: int,
    ) -> Spectra:
        """From means and centred second moments Σ(x−μ)(x−μ)ᵀ; squares lose half of the digits of small axes."""
        scale_x, basis_x = _axes(xx, rows)
        scale_y, basis_y = _axes(yy, rows)
        inner = (basis_x.T @ xy @ basis_y) / scale_x[:, None] / scale_y
        return cls(mean_x, mean_y, basis_x, basis_y, scale_x, scale_y, inner, rows)

    def truncated(self, k_x: int, k_y: int) -> Spectra:
        """Only the first axes of each side."""
        return Spectra(
            self.mean_x,
            self.mean_y,
            self.basis_x[:, :k_x],
            self.basis_y[:, :k_y],
            self.scale_x[:k_x],
            self.scale_y[:k_y],
            self.inner[:k_x, :k_y],
            self.rows,
        )


def _thin(
    rows: Rows,
) -> tuple[Float[np.ndarray, "row rank"], Float[np.ndarray, " rank"], Float[np.ndarray, "width rank"]]:
    left, scale, right = scipy.linalg.svd(rows, full_matrices=False, check_finite=False)
    tolerance = max(rows.shape) * np.finfo(np.float64).eps * (scale[0] if len(scale) else 0.0)
    rank = max(1, int((scale > tolerance).sum()))
    return left[:, :rank], scale[:rank], right[:rank].T


def _axes(second: Square, rows: int) -> tuple[Float[np.ndarray, " rank"], Float[np.ndarray, "width rank"]]:
    values, vectors = scipy.linalg.eigh(second, check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(rows, len(values)) * np.finfo(np.float64).eps * values[0]
    kept[min(rows - 1, len(values)) :] = False
    rank = max(1, int(kept.sum()))
    return np.sqrt(values[:rank]), vectors[:, :rank]
