"""Streamed second moments of two models' matched rows, from which closed-form aligners are fitted.

Keeps n, both means and Σ(x−μ_x)(x−μ_x)ᵀ, Σ(y−μ_y)(y−μ_y)ᵀ, Σ(x−μ_x)(y−μ_y)ᵀ in float64, for each of a few folds,
so that a ridge strength can be chosen without the rows. Blocks merge exactly (Chan, Golub and LeVeque, 1979).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from steerlab.alignment._spectra import Spectra
from steerlab.directions.linear import to_numpy
from steerlab.errors import AlignmentError
from steerlab.models.memory import readable

_log = logging.getLogger(__name__)


class _Sums:
    """n, means and centred second moments of one fold."""

    def __init__(self, width_x: int, width_y: int) -> None:
        self.n = 0
        self.mean_x, self.mean_y = np.zeros(width_x), np.zeros(width_y)
        self.xx = np.zeros((width_x, width_x))
        self.yy = np.zeros((width_y, width_y))
        self.xy = np.zeros((width_x, width_y))

    def merge(self, other: _Sums) -> _Sums:
        if other.n == 0:
            return self
        total = self.n + other.n
        shift_x, shift_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        between = self.n * other.n / total
        self.xx += other.xx + between * np.outer(shift_x, shift_x)
        self.yy += other.yy + between * np.outer(shift_y, shift_y)
        self.xy += other.xy + between * np.outer(shift_x, shift_y)
        self.mean_x = self.mean_x + shift_x * (other.n / total)
        self.mean_y = self.mean_y + shift_y * (other.n / total)
        self.n = total
        return self

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> _Sums:
        moments = cls(0, 0)
        moments.n, moments.mean_x, moments.mean_y = len(x), x.mean(axis=0), y.mean(axis=0)
        x, y = x - moments.mean_x, y - moments.mean_y
        moments.xx, moments.yy, moments.xy = x.T @ x, y.T @ y, x.T @ y
        return moments


class CrossMoments:
    """Streaming second moments of one layer pair.

    Args:
        width_x: width of the source rows.
        width_y: width of the target rows.
        folds: parts that rows are dealt to in turn; a strength is chosen by leaving each out.
        memory_budget: bytes that the sums may take; more is refused before anything is allocated.

    Raises:
        AlignmentError: when the sums would need more than the budget.
    """

    def __init__(self, width_x: int, width_y: int, *, folds: int = 5, memory_budget: int = 4 * 2**30) -> None:
        self.widths = (width_x, width_y)
        needed = self.memory_needed(width_x, width_y, folds)
        if needed > memory_budget:
            raise AlignmentError(
                f"Moments of widths {width_x} and {width_y} in {folds} folds need {readable(needed)}, more "
                f"than the budget of {readable(memory_budget)}. Take fewer folds, or raise memory_budget."
            )
        _log.info("cross moments of widths %d and %d: %s", width_x, width_y, readable(needed))
        self.folds = [_Sums(width_x, width_y) for _ in range(folds)]
        self._next = 0

    @staticmethod
    def memory_needed(width_x: int, width_y: int, folds: int = 5) -> int:
        """Bytes of the sums: 8 (d_x² + d_y² + d_x d_y) a fold."""
        return 8 * folds * (width_x**2 + width_y**2 + width_x * width_y)

    @property
    def count(self) -> int:
        """Rows taken so far."""
        return sum(fold.n for fold in self.folds)

    def update(self, x: Any, y: Any) -> CrossMoments:
        """Take matched rows x [row, width_x] and y [row, width_y]; returns self.

        Raises:
            AlignmentError: rows that do not match in number or width, or are not finite.
        """
        rows_x, rows_y = (np.asarray(to_numpy(rows), dtype=np.float64) for rows in (x, y))
        if (rows_x.shape[1:], rows_y.shape[1:]) != ((self.widths[0],), (self.widths[1],)):
            raise AlignmentError(
                f"These moments take rows of widths {self.widths[0]} and {self.widths[1]}, not of shapes "
                f"{rows_x.shape} and {rows_y.shape}."
            )
        if len(rows_x) != len(rows_y):
            raise AlignmentError(f"{len(rows_x)} source rows came with {len(rows_y)} target rows.")
        if not (np.isfinite(rows_x).all() and np.isfinite(rows_y).all()):
            raise AlignmentError("Rows hold NaN or infinity; leave them out.")
        turn = (np.arange(len(rows_x)) + self._next) % len(self.folds)
        self._next = (self._next + len(rows_x)) % len(self.folds)
        for number, fold in enumerate(self.folds):
            in_fold = turn == number
            if in_fold.any():
                fold.merge(_Sums.of(rows_x[in_fold], rows_y[in_fold]))
        return self

    def merge(self, other: CrossMoments) -> CrossMoments:
        """Add another object's rows, exactly; returns self.

        Raises:
            AlignmentError: moments of other widths or of another number of folds.
        """
        if (self.widths, len(self.folds)) != (other.widths, len(other.folds)):
            raise AlignmentError("Cross moments of other widths or numbers of folds cannot be merged.")
        for mine, theirs in zip(self.folds, other.folds, strict=True):
            mine.merge(theirs)
        return self

    def total(self, *, without: int | None = None) -> _Sums:
        """The sums of all folds, or of all but one."""
        whole = _Sums(*self.widths)
        for number, fold in enumerate(self.folds):
            if number != without:
                whole.merge(fold)
        return whole

    def spectra(self, *, center: bool = True) -> Spectra:
        """Both sides' principal axes.

        Raises:
            AlignmentError: fewer than two rows.
        """
        if self.count < 2:
            raise AlignmentError(f"Cross moments of {self.count} rows cannot be aligned; update them first.")
        sums = self.total()
        means, xx, yy, xy = (sums.mean_x, sums.mean_y), sums.xx, sums.yy, sums.xy
        if not center:
            xx = xx + sums.n * np.outer(means[0], means[0])
            yy = yy + sums.n * np.outer(means[1], means[1])
            xy = xy + sums.n * np.outer(means[0], means[1])
            means = (np.zeros_like(means[0]), np.zeros_like(means[1]))
        return Spectra.of_moments(*means, xx, yy, xy, sums.n + (not center))

    def trace_yy(self, number: int) -> float:
        """Squared distance of a fold's target rows from their mean."""
        return float(np.trace(self.folds[number].yy))
