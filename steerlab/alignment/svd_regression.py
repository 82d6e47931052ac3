"""Principal-component regression with the target truncated as well: the published aligner."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from steerlab.alignment._aligner import _SpectralAligner
from steerlab.alignment._spectra import Spectra
from steerlab.alignment.registry import ALIGNERS


@ALIGNERS.register("svd-regression")
class SvdRegression(_SpectralAligner):
    """W = (X_k)⁺ Y_k = V_x S_x⁻¹ U_xᵀ U_y S_y V_yᵀ, with X_k and Y_k the best rank-k approximations.

    It is no Procrustes rotation: nothing is orthogonal but the bases. With k = 1 every direction comes out as plus or
    minus one vector of the target, so k = 1 is a control, not a transfer. Uncentred, the first axis is about the mean.

    Args:
        k: axes kept on both sides, at most the number of rows.
        center: subtract means. The published code does so with its PCA direction and not with its mean direction.

    Source: official code of *The Master Key Hypothesis* (arXiv 2604.06377), `hs_svd.py` and `hs_svd_zero_centered.py`.
    """

    def __init__(self, k: int = 64, *, center: bool = True) -> None:
        self.k = k
        self.center = center

    def _centered(self) -> bool:
        return self.center

    def _core(self, spectra: Spectra) -> tuple[Spectra, Float[np.ndarray, "rank_x rank_y"]]:
        k = self._checked_k(self.k, spectra.rows)
        kept = spectra.truncated(k, k)
        return kept, kept.inner / kept.scale_x[:, None] * kept.scale_y
