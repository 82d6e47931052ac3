"""Which factor moves the branching factor: alignment, size, generation, prompt complexity?

Corrected: for each factor, paired differences of log BF between cells that agree in everything else (and the
prompt), their mean with its sign and a cluster bootstrap over prompts, and a permutation null that shuffles the
factor's levels inside such cells. Published (arXiv 2506.17871, section on Pareto shares): Ĩ(D) = Σ_{d≠d'} |mean
BF(d) − mean BF(d')| / (|D| (|D| − 1)) over marginal means, and its share of the sum; unsigned, on the scale of BF,
without a floor: noise gets a share as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from steerlab.record import Record
from steerlab.statistics import Estimate, Number, bootstrap_mean, but_for_rounding, permutation_p_value


class Attribution(Record):
    """One factor: signed mean paired change of log BF between two levels, its null, and the published share."""

    factor: str
    levels: tuple[str, str]
    change: Estimate
    p_value: Number
    share: Number


def attribute(
    logs: Float[np.ndarray, " cell"],
    factors: Mapping[str, Sequence[str]],
    prompt: Sequence[int],
    *,
    seed: int = 0,
    draws: int = 1000,
) -> list[Attribution]:
    """Every pair of levels of every factor.

    logs: [cell] log BF of a prompt under one combination of levels. factors: [cell] the level of each factor.
    prompt: [cell].

    Raises:
        ValueError: lists of other lengths, or a factor with one level.
    """
    columns = {name: np.asarray(levels, dtype=str) for name, levels in factors.items()}
    if any(len(levels) != len(logs) for levels in (*columns.values(), prompt)):
        raise ValueError("attribution needs one level of every factor, and one prompt, for each cell")
    shares = pareto_shares(np.exp(logs), factors)
    rows = []
    for name, levels in columns.items():
        others = [column for other, column in columns.items() if other != name]
        places = np.array(["\0".join(cell) for cell in zip(*others, map(str, prompt), strict=True)])
        for first, second in itertools.combinations(sorted(set(levels.tolist())), 2):
            pairs = _pairs(levels, places, first, second)
            if not pairs:
                continue
            before, after = logs[[a for a, _ in pairs]], logs[[b for _, b in pairs]]
            changes = but_for_rounding(after, before) - before
            clusters = np.array([prompt[a] for a, _ in pairs])
            rows.append(
                Attribution(
                    factor=name,
                    levels=(first, second),
                    change=bootstrap_mean(changes, clusters, seed=seed),
                    p_value=_p_value(changes, clusters, seed, draws),
                    share=shares[name],
                )
            )
    return rows


def pareto_shares(
    values: Float[np.ndarray, " cell"], factors: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The published shares of plain marginal means; they sum to one."""
    impact = {}
    for name, levels in factors.items():
        column = np.asarray(levels, dtype=str)
        means = [values[column == level].mean() for level in sorted(set(column.tolist()))]
        if len(means) < 2:
            raise ValueError(f"the factor {name!r} has one level, so nothing can be attributed to it")
        impact[name] = float(np.mean([abs(a - b) for a, b in itertools.permutations(means, 2)]))
    whole = sum(impact.values())
    return {name: value / whole if whole else float("nan") for name, value in impact.items()}


def _pairs(levels: np.ndarray, places: np.ndarray, first: str, second: str) -> list[tuple[int, int]]:
    """Cells that differ in this factor only."""
    at = {
        level: {places[cell]: cell for cell in np.flatnonzero(levels == level)} for level in (first, second)
    }
    return [(int(cell), int(at[second][place])) for place, cell in at[first].items() if place in at[second]]


def _p_value(changes: np.ndarray, clusters: np.ndarray, seed: int, draws: int) -> float:
    """Two-sided: under no effect the sign of all of a prompt's changes is a coin."""
    rng = np.random.default_rng(seed)
    _, group = np.unique(clusters, return_inverse=True)
    signs = rng.choice([-1.0, 1.0], size=(draws, group.max() + 1))[:, group]
    return permutation_p_value(abs(float(changes.mean())), np.abs((signs * changes).mean(axis=1)))
