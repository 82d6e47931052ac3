"""Relative representations: similarities to anchor prompts in the source, pseudo-inverse in the target."""

from __future__ import annotations

import numpy as np

from steerlab.alignment._aligner import Aligner
from steerlab.alignment._spectra import Rows
from steerlab.alignment.registry import ALIGNERS
from steerlab.errors import AlignmentError


@ALIGNERS.register("anchor")
class Anchor(Aligner):
    """W = s Â_xᵀ (Â_y⁺)ᵀ, with Â the centred anchor rows of each model at length one.

    A state is described by its inner products with the source's anchors; the target state is the smallest one with the
    same products with its own anchors. s is the least-squares scale on the rows. More than two models can meet at
    the same anchors.

    Args:
        anchors: how many rows serve as anchors, drawn by the seed; None takes all.
        rcond: singular values of the target's anchors below this share of the largest are dropped.
        seed: of the draw.

    Source: relative representations (Moschella et al., 2023) with the inverse of arXiv 2605.09875 (abstract).
    """

    def __init__(self, anchors: int | None = None, *, rcond: float = 1e-2, seed: int = 0) -> None:
        self.anchors = anchors
        self.rcond = rcond
        self.seed = seed

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        n = len(x) if self.anchors is None else self.anchors
        if not 1 <= n <= len(x):
            raise AlignmentError(
                f"Anchor(anchors={n}) cannot be drawn from {len(x)} rows; take between 1 and all of them."
            )
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(x))[:n])
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        at_x, at_y = (_unit(rows[chosen] - mean) for rows, mean in ((x, mean_x), (y, mean_y)))
        left, right = at_x.T, np.linalg.pinv(at_y, rcond=self.rcond)
        moved = (x - mean_x) @ left @ right.T
        scale = ((y - mean_y) * moved).sum() / max((moved**2).sum(), 1e-300)
        self._hold((mean_x, mean_y), left, scale * np.eye(n), right)


def _unit(rows: Rows) -> Rows:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit
