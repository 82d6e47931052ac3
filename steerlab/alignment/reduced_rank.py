"""Ridge regression whose fitted values span k dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from steerlab.alignment._spectra import Spectra
from steerlab.alignment.registry import ALIGNERS
from steerlab.alignment.ridge import GRID, Ridge


@ALIGNERS.register("reduced-rank")
class ReducedRank(Ridge):
    """W_k = W R Rᵀ with W the ridge map and R the top-k right singular vectors of the fitted values X W.

    Unlike the published aligner it keeps the target directions that the source predicts, not those of most variance.

    Args:
        k: rank, at most the number of rows.
        strength: as in `Ridge`. grid, folds, seed: likewise.

    Source: Izenman (1975), reduced-rank regression; ridge variant of Mukherjee and Zhu (2011).
    """

    def __init__(
        self,
        k: int = 64,
        strength: float | None = None,
        *,
        grid: Sequence[float] = GRID,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(strength, grid=grid, folds=folds, seed=seed)
        self.k = k

    def _core(self, spectra: Spectra) -> tuple[Spectra, Float[np.ndarray, "rank_x rank_y"]]:
        k = self._checked_k(self.k, spectra.rows)
        spectra, core = super()._core(spectra)
        _, _, right = np.linalg.svd(spectra.scale_x[:, None] * core, full_matrices=False)
        return spectra, core @ right[:k].T @ right[:k]
