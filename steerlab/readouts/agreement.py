"""Do two models point the same way, and how much could they agree at best?

A direction is a difference of class means, so it is linear in the rows: d = w @ states, with weights w that are
+1/n for one class and -1/n for the other. Resampled, halved and label-shuffled directions are then rows of one
matrix product, and every control costs a small fraction of the reading.

The split-half ceiling: fitted twice on disjoint halves of its own data a model agrees with itself by
r = cos(d(A), d(B)); two models whose directions were equal would agree across halves by sqrt(r_base r_post).
`crossed` is what they do reach across halves, so that no row is on both sides. `shuffled` gives every row a
random label, the same in both models: how alike any difference in means is in the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray

from steerlab import plots
from steerlab.plots import Series
from steerlab.plots.theme import SeriesRole
from steerlab.record import Record
from steerlab.statistics import Estimate, cosine_null

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

States = Float[np.ndarray, "row width"]
Stack = Float[np.ndarray, "layer row width"]
Counts = Float[np.ndarray, "draw row"]
Fit = Callable[[States, NDArray[np.bool_], Counts], Float[np.ndarray, "draw width"]]

#: A difference in means below this share of the states' norm is rounding, not a direction.
_DUST = 1e-9


class Agreement(Record):
    """The cosine of two models' directions at one layer, beside its ceiling and its nulls.

    cosine: all rows in both models. crossed: base on one half, post on the other. ceiling: each model with
    itself across the same halves. shuffled: with shuffled labels, the same in both. random: the |cosine| that
    random directions of this width stay below 95 times in 100.
    """

    layer: int
    cosine: Estimate
    crossed: Estimate
    ceiling: Estimate
    shuffled: Estimate
    random: float


#: Columns of a table of agreements.
COLUMNS = {
    "layer": "layer",
    "cosine": "cosine",
    "across halves": "crossed",
    "ceiling (same model)": "ceiling",
    "shuffled labels": "shuffled",
    "random below": "random",
}


def cosine_figure(rows: Sequence[Agreement], title: str) -> Figure:
    """Cosines by layer with the ceiling and both nulls."""
    x = [row.layer for row in rows]

    def line(name: str, field: str, role: SeriesRole | None) -> Series:
        return Series.of(name, [getattr(row, field) for row in rows], x=x, role=role)

    random = [row.random for row in rows]
    return plots.curves(
        [
            line("base and post", "cosine", "other"),
            line("base and post, different halves", "crossed", "other"),
            line("ceiling: one model, two halves", "ceiling", "other"),
            line("shuffled labels", "shuffled", "control"),
            Series(
                "random directions",
                np.zeros(len(x)),
                [-bound for bound in random],
                random,
                x=x,
                role="control",
            ),
        ],
        title=title,
        x_title="Layer",
        y_title="Cosine",
        y_range=(-1.03, 1.03),
    )


def contrast_weights(
    labels: NDArray[np.bool_], counts: Counts | None = None
) -> Float[np.ndarray, "draw row"]:
    """The weights that turn rows into differences of class means.

    labels: [row] or [draw, row]. counts: [draw, row] how often each row was drawn; once without them. A draw that
    misses a class gives NaN.
    """
    truth = np.atleast_2d(labels).astype(bool)
    drawn = np.ones(truth.shape) if counts is None else counts
    positive, negative = drawn * truth, drawn * ~truth
    with np.errstate(invalid="ignore", divide="ignore"):
        weights: Float[np.ndarray, "draw row"] = positive / positive.sum(axis=1, keepdims=True) - negative / (
            negative.sum(axis=1, keepdims=True)
        )
    return weights


def difference_in_means(
    states: States, labels: NDArray[np.bool_], counts: Counts
) -> Float[np.ndarray, "draw width"]:
    """Differences of class means, one for each draw of `labels` ([row] or [draw, row]) and `counts`."""
    return without_dust(contrast_weights(labels, counts) @ states, states)


def centre(states: States, groups: ArrayLike) -> States:
    """Each row minus the mean of its group."""
    centred = states.astype(np.float64)
    for rows in _members(np.asarray(groups)):
        centred[rows] -= centred[rows].mean(axis=0)
    return centred


def agreement_by_layer(
    base: Stack,
    post: Stack,
    labels: ArrayLike,
    *,
    clusters: ArrayLike,
    strata: ArrayLike,
    layers: Sequence[int],
    seed: int,
    draws: int = 200,
    splits: int = 30,
    fit: Fit = difference_in_means,
) -> list[Agreement]:
    """`Agreement` at each layer of two stacks of states of the same labelled rows.

    clusters: [row] what is drawn and halved together; strata: [row] what both halves share evenly and inside
    which labels are shuffled. fit: directions for draws of labels and counts. All layers use the same draws.
    """
    truth, units, blocks = np.asarray(labels, dtype=bool), np.asarray(clusters), np.asarray(strata)
    rng = np.random.default_rng(seed)
    once = np.ones((1, len(truth)))
    resampled = _resamples(units, rng, draws)
    inside = np.stack([_half(units, blocks, rng) for _ in range(splits)])
    shuffled = shuffled_labels(truth, blocks, rng, draws)
    rows: list[Agreement] = []
    for layer, x, y in zip(layers, base, post, strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        (ax, bx), (ay, by) = (
            (fit(z, truth, inside.astype(float)), fit(z, truth, (~inside).astype(float))) for z in (x, y)
        )
        own = np.maximum(cosines(ax, bx), 0) * np.maximum(cosines(ay, by), 0)
        rows.append(
            Agreement(
                layer=layer,
                cosine=_recentred(
                    float(cosines(fit(x, truth, once), fit(y, truth, once))[0]),
                    cosines(fit(x, truth, resampled), fit(y, truth, resampled)),
                    units,
                    draws,
                    seed,
                ),
                crossed=_spread((cosines(ax, by) + cosines(bx, ay)) / 2, units, f"{splits} random halvings"),
                ceiling=_spread(np.sqrt(own), units, f"{splits} random halvings"),
                shuffled=_spread(
                    cosines(
                        fit(x, shuffled, np.ones(shuffled.shape)), fit(y, shuffled, np.ones(shuffled.shape))
                    ),
                    units,
                    f"{draws} shuffles of the labels",
                ),
                random=cosine_null(x.shape[1]).threshold(),
            )
        )
    return rows


def cosines(
    first: Float[np.ndarray, "draw width"], second: Float[np.ndarray, "draw width"]
) -> Float[np.ndarray, " draw"]:
    """Row by row; NaN where a row is zero or NaN."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    values: Float[np.ndarray, " draw"] = np.divide(
        (first * second).sum(axis=1), norms, out=np.full(len(first), np.nan), where=norms > 0
    )
    return values


def without_dust(
    directions: Float[np.ndarray, "draw width"], states: States
) -> Float[np.ndarray, "draw width"]:
    """Directions that are rounding errors made zero: where all rows hold the same state, class means differ by dust."""
    typical = np.linalg.norm(states, axis=1).mean()
    kept: Float[np.ndarray, "draw width"] = np.where(
        np.linalg.norm(directions, axis=1, keepdims=True) <= _DUST * typical, 0.0, directions
    )
    return kept


def shuffled_labels(
    labels: Bool[np.ndarray, " row"], strata: NDArray[np.generic], rng: np.random.Generator, draws: int
) -> Bool[np.ndarray, "draw row"]:
    """`labels` permuted inside each stratum, `draws` times."""
    shuffled = np.tile(labels, (draws, 1))
    for rows in _members(strata):
        shuffled[:, rows] = rng.permuted(shuffled[:, rows], axis=1)
    return shuffled


def random_units(width: int, draws: int, seed: int) -> Float[np.ndarray, "draw width"]:
    """Random directions of length one."""
    vectors = np.random.default_rng(seed).standard_normal((draws, width))
    unit: Float[np.ndarray, "draw width"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


# -- private, in the order they are called --


def _members(groups: NDArray[np.generic]) -> Iterator[NDArray[np.int64]]:
    for name in np.unique(groups):
        yield np.flatnonzero(groups == name)


def _resamples(
    units: NDArray[np.generic], rng: np.random.Generator, draws: int
) -> Float[np.ndarray, "draw row"]:
    names, codes = np.unique(units, return_inverse=True)
    drawn = rng.integers(len(names), size=(draws, len(names)))
    counts = np.stack([np.bincount(draw, minlength=len(names)) for draw in drawn]).astype(float)
    chosen: Float[np.ndarray, "draw row"] = counts[:, codes]
    return chosen


def _half(
    units: NDArray[np.generic], strata: NDArray[np.generic], rng: np.random.Generator
) -> Bool[np.ndarray, " row"]:
    """A random half of the clusters of every stratum (a cluster belongs to the stratum of its first row)."""
    names, first, codes = np.unique(units, return_index=True, return_inverse=True)
    inside = np.zeros(len(names), dtype=bool)
    for members in _members(strata[first]):
        # an odd stratum gives its last cluster to either half by a coin
        inside[rng.permutation(members)[: (len(members) + int(rng.integers(2))) // 2]] = True
    chosen: Bool[np.ndarray, " row"] = inside[codes]
    return chosen


def _recentred(
    value: float, drawn: Float[np.ndarray, " draw"], units: NDArray[np.generic], draws: int, seed: int
) -> Estimate:
    """The bootstrap interval moved so that its centre is the value: resampling adds noise and so lowers cosines."""
    usable = drawn[np.isfinite(drawn)]
    low, high = (
        np.quantile(usable, [0.025, 0.975]) + value - usable.mean() if len(usable) else (np.nan, np.nan)
    )
    return Estimate(
        value=value,
        low=min(value, max(-1.0, float(low))),
        high=max(value, min(1.0, float(high))),
        n=len(np.unique(units)),
        method=f"cluster bootstrap, bias removed, {draws} draws, seed {seed}",
    )


def _spread(values: Float[np.ndarray, " draw"], units: NDArray[np.generic], how: str) -> Estimate:
    usable = values[np.isfinite(values)]
    if len(usable) == 0:
        return Estimate(value=float("nan"), n=len(np.unique(units)), method=how)
    low, high = np.quantile(usable, [0.025, 0.975])
    mean = float(usable.mean())
    return Estimate(
        value=mean,
        low=min(mean, float(low)),
        high=max(mean, float(high)),
        n=len(np.unique(units)),
        method=f"mean and central 95 % over {how}",
    )
