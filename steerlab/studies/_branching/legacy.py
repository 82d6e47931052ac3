"""The four aggregations behind the published branching-factor figures, defects included, for comparison only.

None of them equals the printed formula when lengths vary. `values` is [sequence, step] of one prompt, NaN after a
sequence's end, as in `estimators`. Source: public code of arXiv 2506.17871; section 3.3 of our reading
of it is summed up on the methods page.

    L0  exp of each sample's mean entropy, averaged over samples; every sample is cut to the shortest seen *so far*
    L1  the condensed rule in logarithms; over prompts exp of the mean (geometric)
    L2  the condensed rule, exponentiated; over prompts the arithmetic mean
    L3  the condensed running mean at every position, exponentiated; over prompts the arithmetic mean

Condensed: at each position the mean over the samples still running, up to the 95 % quantile of the lengths or
until three samples are left; a long prompt (more than 50 positions) takes surprisals, as running means, and of
them the last entry only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from steerlab.studies._branching.estimators import Steps, lengths

Legacy = Literal["L0", "L1", "L2"]
_LONG = 50
_FEWEST = 3


def l0(entropy: Steps) -> float:
    """Mean of exp, with the running-minimum defect: an early short sample cuts all that come after it."""
    shortest, factors = math.inf, []
    for row, length in zip(entropy, lengths(entropy), strict=True):
        shortest = min(shortest, int(length))
        factors.append(math.exp(float(row[: int(shortest)].mean())))
    return float(np.mean(factors))


def condensed(values: Steps) -> Float[np.ndarray, " step"]:
    """Mean over the samples still running, up to where the published rule stops. May be empty."""
    stop = int(np.quantile(lengths(values), 0.95))
    running = (~np.isnan(values)).sum(axis=0)
    few = np.flatnonzero(running[:stop] <= _FEWEST)
    stop = int(few[0]) if len(few) else stop
    return np.asarray(np.nansum(values[:, :stop], axis=0) / np.maximum(running[:stop], 1))


def running_means(values: Steps) -> Steps:
    """Each sequence's mean over its first t steps, NaN after its end."""
    means: Steps = np.cumsum(values, axis=1) / np.arange(1, values.shape[1] + 1)
    return means


def log_factor(entropy: Steps, surprisal: Steps) -> float:
    """The condensed rule: entropies for short prompts, the last condensed running mean of surprisals for long ones.

    NaN where the rule leaves nothing (the published code stops with an error there: fewer than four samples).
    """
    short = condensed(entropy)
    if len(short) == 0:
        return math.nan
    if len(short) <= _LONG:
        return float(short.mean())
    return float(condensed(running_means(surprisal))[-1])


def over_prompts(entropies: Sequence[Steps], surprisals: Sequence[Steps], kind: Legacy) -> float:
    """The published number of several prompts; prompts that the rule cannot take are left out."""
    if kind == "L0":
        return float(np.mean([l0(entropy) for entropy in entropies]))
    logs = np.array([log_factor(h, s) for h, s in zip(entropies, surprisals, strict=True)])
    logs = logs[~np.isnan(logs)]
    if len(logs) == 0:
        return math.nan
    return float(np.exp(logs.mean()) if kind == "L1" else np.exp(logs).mean())


def l3(entropies: Sequence[Steps]) -> Float[np.ndarray, " step"]:
    """The published curve: exp of each prompt's condensed running mean, averaged over the prompts that reach a
    position."""
    curves = [
        np.exp(np.cumsum(curve) / np.arange(1, len(curve) + 1))
        for curve in map(condensed, entropies)
        if len(curve)
    ]
    steps = max(map(len, curves), default=0)
    return np.array([np.mean([curve[at] for curve in curves if len(curve) > at]) for at in range(steps)])


def smoothed(
    curve: Float[np.ndarray, " step"], alpha: float = 0.1, *, corrected: bool = True
) -> Float[np.ndarray, " step"]:
    """Exponential smoothing; `corrected` divides by the weight seen so far, without it the first value lingers
    (published)."""
    means = np.empty(len(curve))
    total = weight = 0.0
    for at, value in enumerate(curve):
        if corrected:
            total, weight = (1 - alpha) * total + alpha * value, (1 - alpha) * weight + alpha
        else:
            total, weight = (value if at == 0 else (1 - alpha) * total + alpha * value), 1.0
        means[at] = total / weight
    return means
