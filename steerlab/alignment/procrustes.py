"""A rotation between the principal subspaces of the two models."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from steerlab.alignment._aligner import _SpectralAligner
from steerlab.alignment._spectra import Spectra
from steerlab.alignment.registry import ALIGNERS


@ALIGNERS.register("procrustes")
class Procrustes(_SpectralAligner):
    """W = s V_x R V_yᵀ: both sides in k principal axes, R orthogonal with the least ‖P R − Q‖, one scale s.

    With P, Q the rows in those axes and PᵀQ = U Σ Vᵀ: R = U Vᵀ and s = tr Σ / ‖P‖². It keeps angles, so it suits
    few rows and claims about geometry, and cannot weigh axes.

    Args:
        k: axes of both sides, at most the number of rows.
        scale: False leaves s = 1.

    Source: Schönemann (1966).
    """

    def __init__(self, k: int = 64, *, scale: bool = True) -> None:
        self.k = k
        self.scale = scale

    def _core(self, spectra: Spectra) -> tuple[Spectra, Float[np.ndarray, "rank_x rank_y"]]:
        k = self._checked_k(self.k, spectra.rows)
        k = min(k, len(spectra.scale_x), len(spectra.scale_y))
        kept = spectra.truncated(k, k)
        left, values, right = np.linalg.svd(kept.scale_x[:, None] * kept.inner * kept.scale_y)
        size = values.sum() / (kept.scale_x**2).sum() if self.scale else 1.0
        return kept, size * left @ right
