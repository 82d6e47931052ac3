"""What every aligner shares: matched rows in, an affine map with low-rank factors out.

An aligner learns x ↦ (x − μ_x) W + μ_y from rows X of one model and Y of another. A point moves with its means, a
direction without them (v ↦ v W), and a linear readout of the target is seen from the source as w ↦ W w.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from steerlab.alignment._spectra import Rows, Spectra
from steerlab.alignment.cross_moments import CrossMoments
from steerlab.directions.linear import to_numpy
from steerlab.errors import AlignmentError

Factors = tuple[
    Float[np.ndarray, "width_x rank"], Float[np.ndarray, "rank rank_y"], Float[np.ndarray, "width_y rank_y"]
]


class Aligner(MultiOutputMixin, RegressorMixin, BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn is untyped
    """An affine map between the states of two models, fitted on matched rows.

    Attributes:
        mean_x_: [width_x] source mean. mean_y_: [width_y] target mean.
        left_, core_, right_: W = left_ @ core_ @ right_.T, never multiplied out unless `dense` is called.
        n_rows_: rows it was fitted on.
    """

    mean_x_: Float[np.ndarray, " width_x"]
    mean_y_: Float[np.ndarray, " width_y"]
    left_: Float[np.ndarray, "width_x rank"]
    core_: Float[np.ndarray, "rank rank_y"]
    right_: Float[np.ndarray, "width_y rank_y"]
    n_rows_: int
    n_features_in_: int

    def fit(self, X: Any, Y: Any) -> Self:
        """Fit on matched rows X [row, width_x] and Y [row, width_y] (numpy or tensors).

        Raises:
            AlignmentError: rows that do not match in number, are not finite, or are all alike; options that
                the rows do not allow.
        """
        x, y = matched(X, Y, type(self).__name__)
        self.n_features_in_, self.n_rows_ = x.shape[1], len(x)
        self._fit_rows(x, y)
        return self

    def transform_point(self, X: Any) -> Rows:
        """States X [row, width_x] of the source as states [row, width_y] of the target."""
        moved: Rows = self.transform_direction(self._given(X, self.mean_x_) - self.mean_x_) + self.mean_y_
        return moved

    predict = transform_point

    def transform_direction(self, v: Any) -> Any:
        """Directions v [..., width_x] of the source as directions [..., width_y] of the target: no means."""
        return self._given(v, self.mean_x_) @ self.left_ @ self.core_ @ self.right_.T

    def pullback_probe(self, w: Any) -> Any:
        """Linear readouts w [..., width_y] of the target as readouts [..., width_x] of the source."""
        return self._given(w, self.mean_y_) @ self.right_ @ self.core_.T @ self.left_.T

    @property
    def factors(self) -> Factors:
        """Left [width_x, rank], core and right [width_y, rank] with W = left @ core @ right.T."""
        check_is_fitted(self, "left_")
        return self.left_, self.core_, self.right_

    @property
    def spectrum(self) -> Float[np.ndarray, " rank"]:
        """Singular values of W, descending, without multiplying it out."""
        left, core, right = self.factors
        if not core.size:
            return np.zeros(0)
        triangles: list[Any] = [np.linalg.qr(side, mode="r") for side in (left, right)]
        values: Float[np.ndarray, " rank"] = np.linalg.svd(
            triangles[0] @ core @ triangles[1].T, compute_uv=False
        )
        return values

    @property
    def rank(self) -> int:
        """Singular values of W above rounding."""
        values = self.spectrum
        return int((values > 1e-10 * values[0]).sum()) if values.size and values[0] > 0 else 0

    def energy_in(self, v: Any) -> float:
        """Share of the squared length of a direction v [width_x] inside the span that the map reads."""
        vector = self._given(v, self.mean_x_)
        if not self.core_.size:
            return 0.0
        reading = self.left_ @ np.linalg.svd(self.core_)[0][:, : max(1, self._core_rank())]
        basis, _ = np.linalg.qr(reading)
        return float(((vector @ basis) ** 2).sum() / (vector**2).sum())

    def dense(self) -> Float[np.ndarray, "width_x width_y"]:
        """W itself, width_x times width_y numbers."""
        left, core, right = self.factors
        whole: Float[np.ndarray, "width_x width_y"] = left @ core @ right.T
        return whole

    def save(self, path: str | Path) -> None:
        """Write options, means and factors as one safetensors file."""
        from steerlab.alignment import _file

        check_is_fitted(self, "left_")
        _file.save_aligner(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Aligner:
        """Read what `save` wrote. Raises `AlignmentError` for any other file."""
        from steerlab.alignment import _file

        return _file.load_aligner(Path(path))

    # -- private --

    @abstractmethod
    def _fit_rows(self, x: Rows, y: Rows) -> None:
        """Fit on checked rows, and `_hold` the means and factors."""

    def _hold(self, means: tuple[Any, Any], left: Any, core: Any, right: Any) -> None:
        self.mean_x_, self.mean_y_ = means
        self.left_, self.core_, self.right_ = left, core, right

    def _core_rank(self) -> int:
        values = np.linalg.svd(self.core_, compute_uv=False)
        return int((values > 1e-10 * values[0]).sum()) if values.size and values[0] > 0 else 0

    def _given(self, values: Any, mean: Any) -> Any:
        check_is_fitted(self, "left_")
        given = np.asarray(to_numpy(values), dtype=np.float64)
        if given.shape[-1:] != mean.shape:
            raise AlignmentError(
                f"{type(self).__name__} was fitted between widths {len(self.mean_x_)} and {len(self.mean_y_)}; it got "
                f"{given.shape[-1] if given.ndim else 'a number'} where {len(mean)} belong."
            )
        return given


class _SpectralAligner(Aligner):
    """An aligner that is a formula in `Spectra`, and so can be fitted from rows or from streamed moments."""

    def fit_moments(self, moments: CrossMoments) -> Self:
        """Fit from streamed moments of one layer pair; the same map as from the rows, to rounding of squares."""
        self.n_features_in_, self.n_rows_ = moments.widths[0], moments.count
        self._fit_spectra(moments.spectra(center=self._centered()))
        return self

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        self._fit_spectra(Spectra.of_rows(x, y, center=self._centered()))

    def _centered(self) -> bool:
        return True

    def _fit_spectra(self, spectra: Spectra) -> None:
        kept, core = self._core(spectra)
        self._hold((kept.mean_x, kept.mean_y), kept.basis_x, core, kept.basis_y)

    @abstractmethod
    def _core(self, spectra: Spectra) -> tuple[Spectra, Float[np.ndarray, "rank_x rank_y"]]:
        """The axes that are kept, and A in them."""

    def _checked_k(self, k: int, rows: int) -> int:
        if not 1 <= k <= rows:
            raise AlignmentError(
                f"{type(self).__name__}(k={k}) cannot be fitted on {rows} rows; k goes from 1 to the number of rows."
            )
        return k


def matched(X: Any, Y: Any, who: str) -> tuple[Rows, Rows]:
    """Both sets of rows in float64, checked to match.

    Raises:
        AlignmentError: other shapes, another number of rows, fewer than two, NaN or infinity, or equal rows.
    """
    x, y = (np.asarray(to_numpy(rows), dtype=np.float64) for rows in (X, Y))
    for name, rows in (("X", x), ("Y", y)):
        if rows.ndim != 2:
            raise AlignmentError(f"{who} needs {name} as [row, width]; it has the shape {rows.shape}.")
    if len(x) != len(y):
        raise AlignmentError(
            f"{who} got {len(x)} source and {len(y)} target rows; row i of both must be the same token of the "
            f"same prompt."
        )
    if len(x) < 2:
        raise AlignmentError(f"{who} needs at least two rows; it got {len(x)}.")
    for name, rows in (("source", x), ("target", y)):
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            raise AlignmentError(
                f"{bad} of the {len(rows)} {name} rows hold NaN or infinity; leave them out."
            )
        if np.ptp(rows, axis=0).max() == 0:
            raise AlignmentError(
                f"All {len(rows)} {name} rows are the same, so there is nothing to align; read another layer or "
                "position (before the first block, template tokens are equal in every prompt)."
            )
    return x, y
