"""Does a map between two models carry a direction, or does it only look like it? Measured on held-out rows.

A high R² of points says little: the first axes of two related models match, and a behaviour may live elsewhere. So the
verdict needs the direction itself: how much of it the map reads, whether the map would give the same answer for any
input, and whether two halves of the data give the same transported vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from steerlab.alignment._aligner import Aligner
from steerlab.alignment._spectra import Rows
from steerlab.alignment.cka import cka_null
from steerlab.record import Record
from steerlab.statistics import Number

Verdict = Literal["reliable", "weak", "not identified"]

#: Below these a layer pair is weak: share of the direction read, agreement of halves; above it, sameness of outputs.
ENERGY, HALVES, SPECIFICITY = 0.2, 0.5, 0.5
_ISOTROPIC = 100
_P_VALUE = 0.05


class LayerReport(Record):
    """One layer pair on held-out rows; NaN is what could not be had.

    r2_point, cos_point: prediction of points about the target mean. r2_diff: R² of differences of rows.
    r2_shuffled: the same for a map fitted on shuffled pairs. r2_contrast: R² of the locked-to-unlocked
    differences, about zero.
    cka: debiased, with its permutation p. rank: of the map. energy_in: share of the direction's squared length
    that the map reads. gain: length of the moved direction over the median of random directions'. specificity:
    mean |cosine| of the moved direction with moved random ones, 1 when the map ignores its input. split_half:
    cosine of the vectors moved by maps of two halves of the rows. cos_native: with the target's own direction.
    cos_mean: with the target's mean state.
    """

    source: int
    target: int
    rows: int
    rank: int
    r2_point: Number
    cos_point: Number
    r2_diff: Number
    r2_shuffled: Number
    cka: Number
    cka_p: Number
    r2_contrast: Number = float("nan")
    energy_in: Number = float("nan")
    gain: Number = float("nan")
    specificity: Number = float("nan")
    split_half: Number = float("nan")
    cos_native: Number = float("nan")
    cos_mean: Number = float("nan")

    @property
    def faults(self) -> tuple[str, ...]:
        """What speaks against the transfer at this layer, the worst first."""
        faults = []
        if self.rank <= 1:
            faults.append("the map has rank one, so every direction comes out the same")
        if not self.r2_diff > max(0.0, self.r2_shuffled):
            faults.append("differences are predicted no better than with shuffled pairs")
        if self.cka_p > _P_VALUE:
            faults.append("the two layers are no more alike than shuffled rows")
        if self.specificity > SPECIFICITY:
            faults.append("random directions come out much the same")
        if self.energy_in < ENERGY:
            faults.append("most of the direction lies outside what the map reads")
        if self.split_half < HALVES:
            faults.append("halves of the data give different vectors")
        if np.isnan(self.energy_in):
            faults.append("no direction was given")
        return tuple(faults)

    @property
    def verdict(self) -> Verdict:
        """Reliable without a fault; not identified where the map has learnt nothing that could carry a direction."""
        if (
            self.rank <= 1
            or not self.r2_diff > max(0.0, self.r2_shuffled)
            or self.specificity > 0.9
            or self.split_half < 0.2
        ):
            return "not identified"
        return "weak" if self.faults else "reliable"


class AlignmentReport(Record):
    """All layer pairs of an alignment, and one verdict."""

    aligner: str
    part: str
    layers: tuple[LayerReport, ...]

    @property
    def verdict(self) -> Verdict:
        """Reliable where at least half of the layers are; not identified where more than half are not."""
        verdicts = [layer.verdict for layer in self.layers]
        if 2 * verdicts.count("not identified") > len(verdicts):
            return "not identified"
        return "reliable" if 2 * verdicts.count("reliable") >= len(verdicts) else "weak"

    @property
    def reliable(self) -> tuple[int, ...]:
        """The target layers that are reliable."""
        return tuple(layer.target for layer in self.layers if layer.verdict == "reliable")

    @property
    def sentence(self) -> str:
        """The verdict as a sentence."""
        counts = {kind: [layer.verdict for layer in self.layers].count(kind) for kind in ("reliable", "weak")}
        faults = [fault for layer in self.layers for fault in layer.faults]
        worst = max(set(faults), key=lambda fault: (faults.count(fault), fault)) if faults else ""
        why = f"; most often {worst} ({faults.count(worst)} layers)" if worst else ""
        return (
            f"The transfer is {self.verdict}: of {len(self.layers)} layers {counts['reliable']} are reliable and "
            f"{counts['weak']} weak by {self.aligner}{why}."
        )


def examine(
    aligner: Aligner,
    x: Rows,
    y: Rows,
    *,
    layers: tuple[int, int],
    shuffled: Aligner | None = None,
    direction: Float[np.ndarray, " width_x"] | None = None,
    halves: Sequence[Aligner] = (),
    native: Float[np.ndarray, " width_y"] | None = None,
    contrast: tuple[Rows, Rows] | None = None,
    seed: int = 0,
) -> LayerReport:
    """The report of one layer pair on rows x, y that the aligner never saw.

    Args:
        aligner: the fitted map.
        x: held-out rows of the source.
        y: the matching rows of the target.
        layers: numbers of source and target layer.
        shuffled: the same aligner fitted on shuffled pairs.
        direction: the source direction that is to be moved.
        halves: the same aligner fitted on two halves of its rows.
        native: the target's own direction, where it can be had.
        contrast: unlocked minus locked states of held-out prompts in both models, where they can be had.
        seed: of random directions and permutations.
    """
    cka, p_value = cka_null(x, y, seed=seed) if len(x) >= 4 else (float("nan"), float("nan"))
    about = {} if direction is None else _of_direction(aligner, direction, halves, native, seed)
    return LayerReport(
        source=layers[0],
        target=layers[1],
        rows=len(x),
        rank=aligner.rank,
        r2_point=r2_point(aligner, x, y),
        cos_point=cos_point(aligner, x, y),
        r2_diff=r2_diff(aligner, x, y),
        r2_shuffled=float("nan") if shuffled is None else r2_diff(shuffled, x, y),
        cka=cka,
        cka_p=p_value,
        r2_contrast=float("nan") if contrast is None else _r2_contrast(aligner, *contrast),
        **about,
    )


def r2_point(aligner: Aligner, x: Rows, y: Rows) -> float:
    """1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over rows; about the mean, so that predicting the mean gains nothing."""
    truth = np.asarray(y, dtype=np.float64)
    return _r2(truth - aligner.transform_point(x), truth - truth.mean(axis=0))


def r2_diff(aligner: Aligner, x: Rows, y: Rows) -> float:
    """R² of the differences of all pairs of rows, which no mean enters."""
    truth = np.asarray(y, dtype=np.float64)
    residual = truth - aligner.transform_point(x)
    return _r2(residual - residual.mean(axis=0), truth - truth.mean(axis=0))


def cos_point(aligner: Aligner, x: Rows, y: Rows) -> float:
    """Mean cosine of predicted and true rows, both about the target's mean of the fit."""
    moved = aligner.transform_point(x) - aligner.mean_y_
    cosines = _cosine(moved, np.asarray(y, dtype=np.float64) - aligner.mean_y_)
    return float(np.nanmean(cosines)) if np.isfinite(cosines).any() else float("nan")


# -- private, in the order they are called --


def _of_direction(
    aligner: Aligner,
    direction: Float[np.ndarray, " width_x"],
    halves: Sequence[Aligner],
    native: Float[np.ndarray, " width_y"] | None,
    seed: int,
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    random = rng.standard_normal((_ISOTROPIC, len(direction)))
    random *= np.linalg.norm(direction) / np.linalg.norm(random, axis=1, keepdims=True)
    moved, others = aligner.transform_direction(direction), aligner.transform_direction(random)
    typical = float(np.median(np.linalg.norm(others, axis=1)))
    measures: dict[str, float] = {
        "energy_in": aligner.energy_in(direction),
        "gain": float(np.linalg.norm(moved)) / typical if typical > 0 else float("nan"),
        "specificity": float(np.mean(np.abs(_cosine(others, moved)))),
        "cos_mean": float(_cosine(moved, aligner.mean_y_)),
    }
    if len(halves) == 2:
        first, second = (half.transform_direction(direction) for half in halves)
        measures["split_half"] = float(_cosine(first, second))
    if native is not None:
        measures["cos_native"] = float(_cosine(moved, np.asarray(native, dtype=np.float64)))
    return measures


def _r2_contrast(aligner: Aligner, x: Rows, y: Rows) -> float:
    truth = np.asarray(y, dtype=np.float64)
    return _r2(truth - aligner.transform_direction(x), truth)


def _r2(residual: Rows, total: Rows) -> float:
    whole = float((total**2).sum())
    return 1 - float((residual**2).sum()) / whole if whole > 0 else float("nan")


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    dots = (a * b).sum(axis=-1)
    cosines: np.ndarray = np.divide(dots, norms, out=np.full(np.shape(norms), np.nan), where=norms > 0)
    return cosines
