"""How well a direction of one model tells held-out texts apart in the same model or in the other one.

The difference of class means of the texts of a fold's rest, decided at the middle between the class means along it: of
the model that is read (a shift between the models does no harm) or of the direction's own model (the probe exactly as
fitted). Null: labels shuffled inside every group that holds both classes, and between the groups that hold one; those
that judge as well as those that fit, in both models alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from steerlab.readouts.agreement import Stack, contrast_weights, shuffled_labels
from steerlab.record import Record
from steerlab.statistics import Estimate, proportion
from steerlab.studies._contrast.reading import Reading, Texts

Midpoint = Literal["model read", "direction's model"]
Draws = Bool[np.ndarray, "draw text"]
MIDPOINTS: tuple[Midpoint, ...] = ("model read", "direction's model")
_SHUFFLES = 100


class LayerAccuracy(Record):
    """Held-out accuracy of a model's own direction at a layer, beside shuffled labels."""

    model: str
    layer: int
    accuracy: Estimate
    control: Estimate


class Cell(Record):
    """A direction of one model on held-out texts of a model, at the layers chosen in the rest of each fold.

    layers: where the direction was fitted; read_at: where its states were read; one a fold. midpoint: whose class means
    it is decided between. chance: always naming the more frequent class.
    """

    direction: str
    states: str
    midpoint: Midpoint
    layers: tuple[int, ...]
    read_at: tuple[int, ...]
    accuracy: Estimate
    control: Estimate
    chance: float

    @property
    def above_chance(self) -> bool:
        """True when the interval lies above chance, and the value above all but the luckiest shuffled labels."""
        return self.accuracy.low > self.chance and self.accuracy.value > self.control.high


def draws_of(texts: Texts, seed: int) -> Draws:
    """Row 0 the labels themselves, the others shuffled."""
    rng = np.random.default_rng(seed)
    truth = texts.labels.astype(bool)
    drawn = shuffled_labels(truth, texts.groups, rng, _SHUFFLES)
    _, codes = np.unique(texts.groups, return_inverse=True)
    sizes, positive = np.bincount(codes), np.bincount(codes, weights=truth)
    pure = np.flatnonzero((positive == 0) | (positive == sizes))
    rows = np.isin(codes, pure)
    of_group = np.zeros(len(sizes), dtype=bool)
    for draw in drawn:
        of_group[pure] = rng.permutation(positive[pure] > 0)
        draw[rows] = of_group[codes[rows]]
    return np.vstack([truth, drawn])


def accuracy_by_layer(reading: Reading, texts: Texts, draws: Draws) -> list[LayerAccuracy]:
    """The model's own direction at every layer."""
    folds = range(len(texts.folds))
    rows = []
    for layer in range(len(reading.stack)):
        at = [layer for _ in folds]
        accuracy, control = _estimates(
            _right(reading.stack, reading.stack, at, at, texts, draws, "model read"), texts
        )
        rows.append(LayerAccuracy(model=reading.role, layer=layer, accuracy=accuracy, control=control))
    return rows


def cells_of(
    source: Reading, target: Reading, texts: Texts, draws: Draws, *, same_depth: bool
) -> tuple[list[Cell], NDArray[np.bool_]]:
    """The source's direction on the target's held-out states with each midpoint (its own states: one), and [text] which
    of them are right by the model read's.

    The states are read at the direction's layer; in a model of another depth at that model's own chosen layer.
    """
    read_at = source.layers if same_depth else target.layers
    cells: list[Cell] = []
    right_of_first = np.zeros(0, dtype=bool)
    for midpoint in MIDPOINTS[:1] if source is target else MIDPOINTS:
        right = _right(source.stack, target.stack, source.layers, read_at, texts, draws, midpoint)
        accuracy, control = _estimates(right, texts)
        share = float(texts.labels.mean())
        cells.append(
            Cell(
                direction=source.role,
                states=target.role,
                midpoint=midpoint,
                layers=source.layers,
                read_at=read_at,
                accuracy=accuracy,
                control=control,
                chance=max(share, 1 - share),
            )
        )
        right_of_first = right[:, 0] if midpoint == MIDPOINTS[0] else right_of_first
    return cells, right_of_first


# -- private, in the order they are called --


def _right(
    source: Stack,
    target: Stack,
    layers: Sequence[int],
    read_at: Sequence[int],
    texts: Texts,
    draws: Draws,
    midpoint: Midpoint,
) -> Bool[np.ndarray, "text draw"]:
    """Whether each text is labelled right by the direction that never saw its group."""
    right = np.zeros(draws.T.shape, dtype=bool)
    for (train, test), layer, there in zip(texts.folds, layers, read_at, strict=True):
        x, y = source[layer].astype(np.float64), target[there].astype(np.float64)
        weights = contrast_weights(draws[:, train])
        directions = weights @ x[train]
        middles = np.abs(weights) / 2 @ (y if midpoint == "model read" else x)[train]
        along = y[test] @ directions.T - (directions * middles).sum(axis=1)
        right[test] = (along > 0) == draws[:, test].T
    return right


def _estimates(right: Bool[np.ndarray, "text draw"], texts: Texts) -> tuple[Estimate, Estimate]:
    """The accuracy with the real labels, and the mean and central 95 % with shuffled ones."""
    shuffled = right[:, 1:].mean(axis=0)
    mean, (low, high) = float(shuffled.mean()), np.quantile(shuffled, [0.025, 0.975])
    control = Estimate(
        value=mean,
        low=min(float(low), mean),
        high=max(float(high), mean),
        n=len(np.unique(texts.groups)),
        method=f"{len(shuffled)} shuffles of the labels",
    )
    return proportion(right[:, 0], clusters=texts.groups), control
