"""How alike are two maps? The published statistics, and better ones.

Published (Du et al., 2025): each map is quantised between its own extremes (`quantised`), then correlated over all
cells. More than nine tenths of the cells are then zero and the last token's column decides: on the published map of
Llama-3.1-8B, erasing every effect of subject and object still gives 0.86. So here the correlation runs over cells of
subject and object tokens, on unquantised effects of the same pairs in both models, beside what halves of the pairs of
one model agree in and what a shift by one layer would give; and every cell's difference has an interval and a q-value.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from steerlab.record import Record
from steerlab.statistics import (
    Estimate,
    Number,
    benjamini_hochberg,
    bootstrap,
    bootstrap_curve,
    but_for_rounding,
    mean_test,
    split_half,
)
from steerlab.studies._knowledge.maps import Traced

Map = Float[np.ndarray, "row column"]
_DRAWS = 10_000


class Published(Record):
    """Du et al.'s statistics of two quantised maps: Pearson correlation, largest differences of all and of subject and
    object cells."""

    correlation: Number
    largest: Number
    largest_knowledge: Number


class CellDifference(Record):
    """One cell's normalised effect in post less that in base; q after Benjamini and Hochberg over the map."""

    row: int
    column: int
    difference: Estimate
    q: Number

    @property
    def significant(self) -> bool:
        """False discovery held at 5 %."""
        return self.q <= 0.05


class Comparison(Record):
    """Two models' maps of the same pairs.

    correlation: of mean normalised effects over cells of subject and object tokens. overall: over all cells.
    ceilings: of two halves of the pairs, within each model; crossed: base's half against post's other half, to be
    read beside them. shifted: what base would give against itself moved down by one layer. published,
    published_halves, published_shifted: the same three questions for the published statistics. largest:
    |difference| over subject and object cells, with the chance that any of them lies as many standard errors from zero.
    """

    cells: tuple[CellDifference, ...]
    correlation: Estimate
    overall: Estimate
    ceilings: dict[str, Estimate]
    crossed: Estimate
    shifted: Number
    largest: Estimate
    largest_p: Number
    published: Published
    published_halves: dict[str, Published]
    published_shifted: Published


def quantised(values: Map) -> Map:
    """Du et al.'s normalisation: twenty bins between the map's extremes, the lower ten 0, the others 0.1 to 1."""
    low, high = np.nanmin(values) - 1e-5, np.nanmax(values) + 1e-5
    return np.asarray(np.clip(np.ceil(20 * (values - low) / (high - low)) - 10, 0, 10) / 10)


def published(first: Map, second: Map, knowledge: tuple[int, ...]) -> Published:
    """The published statistics of two raw maps."""
    first_steps, second_steps = quantised(first), quantised(second)
    difference = np.abs(second_steps - first_steps)
    return Published(
        correlation=_pearson(first_steps, second_steps),
        largest=float(np.nanmax(difference)),
        largest_knowledge=float(np.nanmax(difference[:, list(knowledge)])) if knowledge else float("nan"),
    )


def shifted_down(values: Map, by: int = 1) -> Map:
    """The map `by` layers later, its first layers as they would be at the first."""
    return np.concatenate([values[:1].repeat(by, axis=0), values[:-by]]) if by else values


def compare_maps(
    base: Traced, post: Traced, clusters: Int[np.ndarray, " pair"], *, seed: int = 0
) -> Comparison:
    """Compare two sweeps of the same pairs, cell by cell and as wholes. The embedding's row is left out."""
    rows, places = list(base.layers), list(base.knowledge)
    effects = {name: traced.nie[:, rows] for name, traced in (("base", base), ("post", post))}
    raw = {name: mean_map(traced.raw[:, rows]) for name, traced in (("base", base), ("post", post))}
    knowledge = {name: effect[:, :, places] for name, effect in effects.items()}

    def half(name: str) -> Estimate:
        return split_half(lambda pairs: mean_map(knowledge[name][pairs]), _pearson, clusters, seed=seed)

    halves = halves_of(clusters, seed)
    difference = but_for_rounding(effects["post"], effects["base"]) - effects["base"]
    cells, largest, p = _cells(difference, places, clusters, seed, rows)
    return Comparison(
        cells=tuple(cells),
        correlation=_correlation(knowledge["base"], knowledge["post"], clusters, seed),
        overall=_correlation(effects["base"], effects["post"], clusters, seed),
        ceilings={name: half(name) for name in effects},
        crossed=_crossed(knowledge["base"], knowledge["post"], clusters, seed),
        shifted=_pearson(mean_map(knowledge["base"]), shifted_down(mean_map(knowledge["base"]))),
        largest=largest,
        largest_p=p,
        published=published(raw["base"], raw["post"], base.knowledge),
        published_halves={
            name: published(
                mean_map(traced.raw[halves[0]][:, rows]),
                mean_map(traced.raw[halves[1]][:, rows]),
                base.knowledge,
            )
            for name, traced in (("base", base), ("post", post))
        },
        published_shifted=published(raw["base"], shifted_down(raw["base"]), base.knowledge),
    )


# -- private, in the order they are called --


def mean_map(effects: Float[np.ndarray, "pair row column"]) -> Map:
    """Mean over the pairs that have the cell; NaN where none has."""
    present = ~np.isnan(effects)
    total = present.sum(axis=0)
    sums = np.where(present, effects, 0.0).sum(axis=0)
    mean: Map = np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0)
    return mean


def _pearson(first: Map, second: Map) -> float:
    """NaN where either map is constant."""
    both = np.isfinite(first) & np.isfinite(second)
    x, y = first[both], second[both]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _correlation(
    base: Float[np.ndarray, "pair row column"],
    post: Float[np.ndarray, "pair row column"],
    clusters: Int[np.ndarray, " pair"],
    seed: int,
) -> Estimate:
    def statistic(
        first: Float[np.ndarray, "pair row column"], second: Float[np.ndarray, "pair row column"]
    ) -> float:
        return _pearson(mean_map(first), mean_map(second))

    return bootstrap(statistic, base, post, clusters=clusters, seed=seed, draws=500)


def halves_of(clusters: Int[np.ndarray, " pair"], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two halves of the pairs that share no cluster."""
    names = np.random.default_rng(seed).permutation(np.unique(clusters))
    first = np.isin(clusters, names[: len(names) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def _crossed(
    base: Float[np.ndarray, "pair row column"],
    post: Float[np.ndarray, "pair row column"],
    clusters: Int[np.ndarray, " pair"],
    seed: int,
) -> Estimate:
    both = {"base": base, "post": post}

    def fit(pairs: NDArray[np.int64]) -> dict[str, Map]:
        return {name: mean_map(effects[pairs]) for name, effects in both.items()}

    def agreement(first: dict[str, Map], second: dict[str, Map]) -> float:
        return float(
            np.mean([_pearson(first["base"], second["post"]), _pearson(first["post"], second["base"])])
        )

    return split_half(fit, agreement, clusters, seed=seed)


def _cells(
    difference: Float[np.ndarray, "pair row column"],
    knowledge: list[int],
    clusters: Int[np.ndarray, " pair"],
    seed: int,
    rows: list[int],
) -> tuple[list[CellDifference], Estimate, float]:
    """Every cell with its q-value; the largest of subject and object cells with its own p-value.

    Null: a mean difference of zero, whatever the shape of the differences (`mean_test`).
    """
    shape = difference.shape[1:]
    flat = difference.reshape(len(difference), -1)
    estimates = bootstrap_curve(flat, clusters, seed=seed)
    p, _ = mean_test(flat, clusters, seed=seed, draws=_DRAWS)
    q = benjamini_hochberg(p)
    cells = [
        CellDifference(row=rows[at // shape[1]], column=at % shape[1], difference=estimate, q=float(q[at]))
        for at, estimate in enumerate(estimates)
        if np.isfinite(estimate.value)
    ]
    mine = [
        at for at in range(flat.shape[1]) if at % shape[1] in knowledge and np.isfinite(estimates[at].value)
    ]
    if not mine:
        return cells, Estimate(value=float("nan")), float("nan")
    _, joint = mean_test(flat[:, mine], clusters, seed=seed, draws=_DRAWS)
    top = max(range(len(mine)), key=lambda at: abs(estimates[mine[at]].value))
    return cells, estimates[mine[top]], float(joint[top])
