"""Canonical correlation analysis: the subspaces in which two models agree, whatever their scale."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from steerlab.alignment._aligner import _SpectralAligner
from steerlab.alignment._spectra import Spectra
from steerlab.alignment.registry import ALIGNERS
from steerlab.errors import AlignmentError


@ALIGNERS.register("cca")
class Cca(_SpectralAligner):
    """Whiten the source, turn, un-whiten into the target: W = C_x^(-1/2) U Vᵀ C_y^(1/2) over k canonical pairs.

    U ρ Vᵀ is the SVD of C_x^(-1/2) C_xy C_y^(-1/2), with C_x = XᵀX/n + reg · tr(XᵀX/n)/rank · I on the axes that vary,
    and C_y alike. With `shrink` every pair is multiplied by its correlation ρ, which is the least-squares map between
    the whitened sides.

    Args:
        k: canonical pairs, at most the number of rows.
        reg: ridge as a share of the mean variance. With fewer rows than dimensions and no ridge every ρ is one.
        shrink: multiply pairs by their correlations.

    Attributes:
        correlations_: [k] canonical correlations on the rows of the fit, descending; they are optimistic there.

    Source: Hotelling (1936); ridge as in Vinod (1976).
    """

    def __init__(self, k: int = 64, *, reg: float = 1e-2, shrink: bool = False) -> None:
        self.k = k
        self.reg = reg
        self.shrink = shrink

    def _core(self, spectra: Spectra) -> tuple[Spectra, Float[np.ndarray, "rank_x rank_y"]]:
        k = self._checked_k(self.k, spectra.rows)
        if not self.reg >= 0:
            raise AlignmentError(f"Cca(reg={self.reg}) is no ridge; give 0 or more.")
        size_x, size_y = (
            np.sqrt(scale**2 + self.reg * (scale**2).mean()) for scale in (spectra.scale_x, spectra.scale_y)
        )
        whitened = (spectra.scale_x / size_x)[:, None] * spectra.inner * (spectra.scale_y / size_y)
        left, values, right = np.linalg.svd(whitened, full_matrices=False)
        self.correlations_ = values[:k]
        pairs = left[:, :k] * self.correlations_ if self.shrink else left[:, :k]
        return spectra, (pairs / size_x[:, None]) @ (right[:k] * size_y)
