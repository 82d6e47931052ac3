"""Ridge regression from one model's states to the other's: the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float

from steerlab.alignment._aligner import _SpectralAligner
from steerlab.alignment._spectra import Rows, Spectra
from steerlab.alignment._strength import Scores, scores_by_moments, scores_by_rows
from steerlab.alignment.cross_moments import CrossMoments
from steerlab.alignment.registry import ALIGNERS
from steerlab.errors import AlignmentError

GRID = tuple(float(x) for x in np.logspace(-6, 1, 15))
_MOST_ROWS = 4096  # above it, products of rows are larger than second moments


@ALIGNERS.register("ridge")
class Ridge(_SpectralAligner):
    """W = (XᵀX + λI)⁻¹ XᵀY on centred rows, with λ = strength · ‖X‖²_F / n.

    With fewer rows than dimensions this is Xᵀ(XXᵀ + λI)⁻¹Y and no d×d map is built. It drops no axis, so a behaviour
    that lives in directions of little variance survives.

    Args:
        strength: a number, or None to choose from `grid` the one with the best R² of differences of held-out rows.
        grid: strengths to choose from.
        folds: of the choice; fewer where there are few rows.
        seed: deals rows to folds.

    Attributes:
        strength_: the strength used. cv_scores_: mean held-out R² of differences by strength of the grid.

    Source: Hoerl and Kennard (1970); the default by the synthetic comparison of the methods page.
    """

    def __init__(
        self,
        strength: float | None = None,
        *,
        grid: Sequence[float] = GRID,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.strength = strength
        self.grid = grid
        self.folds = folds
        self.seed = seed

    def fit_moments(self, moments: CrossMoments) -> Self:
        """Fit from streamed moments; their folds choose the strength where none is given."""
        self._choose(
            None if self._is_given() else scores_by_moments(moments, self.grid),
            sum(fold.n > 1 for fold in moments.folds),
        )
        return super().fit_moments(moments)

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        folds = min(self.folds, len(x) // 2)
        scores = None
        if not self._is_given() and folds >= 2:
            if len(x) <= max(_MOST_ROWS, x.shape[1]):
                scores = scores_by_rows(x, y, self.grid, folds, self.seed)
            else:
                order = np.random.default_rng(self.seed).permutation(len(x))
                streamed = CrossMoments(x.shape[1], y.shape[1], folds=folds, memory_budget=2**62)
                scores = scores_by_moments(streamed.update(x[order], y[order]), self.grid)
        self._choose(scores, folds)
        super()._fit_rows(x, y)

    def _is_given(self) -> bool:
        if self.strength is not None and not self.strength >= 0:
            raise AlignmentError(f"Ridge(strength={self.strength}) is no strength; give 0 or more, or None.")
        return self.strength is not None

    def _choose(self, scores: Scores | None, folds: int) -> None:
        if self.strength is not None:
            self.strength_, self.cv_scores_ = float(self.strength), None
            return
        if scores is None or folds < 2:
            raise AlignmentError(
                "A ridge strength is chosen by leaving rows out, which needs at least four; give Ridge(strength=...)."
            )
        self.cv_scores_ = scores.mean(axis=0)
        self.strength_ = float(self.grid[int(np.nanargmax(self.cv_scores_))])

    def _ridge(self, spectra: Spectra) -> float:
        return self.strength_ * float((spectra.scale_x**2).sum()) / spectra.rows

    def _core(self, spectra: Spectra) -> tuple[Spectra, Float[np.ndarray, "rank_x rank_y"]]:
        shrink = spectra.scale_x / (spectra.scale_x**2 + self._ridge(spectra))
        return spectra, shrink[:, None] * spectra.inner * spectra.scale_y
