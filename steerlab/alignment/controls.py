"""Controls: maps that cannot carry a direction, with which a transfer is compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone

from steerlab.alignment._aligner import Aligner
from steerlab.alignment._spectra import Rows
from steerlab.alignment.registry import ALIGNERS
from steerlab.alignment.ridge import Ridge


@ALIGNERS.register("zero-pad")
class ZeroPad(Aligner):
    """The identity, cut or filled with zeros where the widths differ: as if both models shared their axes."""

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        rank = min(x.shape[1], y.shape[1])
        left, right = (np.eye(rows.shape[1], rank) for rows in (x, y))
        self._hold((x.mean(axis=0), y.mean(axis=0)), left, np.eye(rank), right)


@ALIGNERS.register("random-orthogonal")
class RandomOrthogonal(Aligner):
    """A random turn, scaled so that it gives states of the target's size.

    Args:
        seed: of the turn.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        rng = np.random.default_rng(self.seed)
        rank = min(x.shape[1], y.shape[1])
        left, right = (np.linalg.qr(rng.standard_normal((rows.shape[1], rank)))[0] for rows in (x, y))
        spread = [((rows - rows.mean(axis=0)) ** 2).sum() for rows in (x, y)]
        size = np.sqrt(spread[1] / spread[0] * x.shape[1] / rank)
        self._hold((x.mean(axis=0), y.mean(axis=0)), left, size * np.eye(rank), right)


@ALIGNERS.register("shuffled-pairs")
class ShuffledPairs(Aligner):
    """Another aligner fitted on pairs that do not belong together.

    Args:
        aligner: what is fitted; ridge by default.
        seed: of the shuffle.
    """

    def __init__(self, aligner: Aligner | None = None, *, seed: int = 0) -> None:
        self.aligner = aligner
        self.seed = seed

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        inner: Any = clone(self.aligner) if self.aligner is not None else Ridge()
        order = np.random.default_rng(self.seed).permutation(len(y))
        inner.fit(x, y[order])
        self._hold((inner.mean_x_, inner.mean_y_), inner.left_, inner.core_, inner.right_)


@ALIGNERS.register("mean-only")
class MeanOnly(Aligner):
    """Every point goes to the target's mean, every direction to zero."""

    def _fit_rows(self, x: Rows, y: Rows) -> None:
        left, right = (np.zeros((rows.shape[1], 0)) for rows in (x, y))
        self._hold((x.mean(axis=0), y.mean(axis=0)), left, np.zeros((0, 0)), right)
