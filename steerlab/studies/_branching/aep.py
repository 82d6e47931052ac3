"""Does the surprisal of a long output settle at its entropy? Three panels of one model's record.

Running means of entropy and surprisal over a fixed cohort (no survivors switching), their difference with the band
that a martingale leaves it, and the spread of the running mean surprisal beside the curve that its own autocovariance
predicts; for independent steps that falls as 1/√t. Source: asymptotic equipartition without stationarity, arXiv
2405.13798, as used in arXiv 2506.17871 (figure on AEP), whose two curves drew apart.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from steerlab.record import Record
from steerlab.statistics import Number
from steerlab.studies._branching.estimators import Steps, cohort, largest_cohort
from steerlab.studies._branching.legacy import running_means


class Panels(Record):
    """By position, over the cohort of sequences that reach the last one; nats.

    entropy, surprisal: running means, averaged. gap: surprisal minus entropy. band: 1.96 standard errors of the
    gap under the martingale property (its conditional variances add up). spread: standard deviation over samples
    of the running mean surprisal, averaged over prompts. predicted: the same from the variance and autocovariance
    of the steps.
    slope: of log spread on log position. sequences: in the cohort.
    """

    name: str
    sequences: int
    entropy: tuple[Number, ...]
    surprisal: tuple[Number, ...]
    gap: tuple[Number, ...]
    band: tuple[Number, ...]
    spread: tuple[Number, ...]
    predicted: tuple[Number, ...]
    slope: Number

    @property
    def outside(self) -> float:
        """Share of positions at which the gap lies outside its band; about 0.05 by chance, positions being
        correlated."""
        return float(np.mean(np.abs(self.gap) > np.array(self.band) + 1e-12))


def panels(name: str, entropy: Steps, surprisal: Steps, prompt: Int[np.ndarray, " sequence"]) -> Panels:
    """The panels of a record; positions up to where most steps are kept."""
    steps = largest_cohort(entropy)
    kept = cohort(entropy, steps)
    h, s, group = entropy[kept, :steps], surprisal[kept, :steps], prompt[kept]
    at = np.arange(1, steps + 1)
    gaps = s - h
    variance = np.cumsum((gaps**2).mean(axis=0)) / len(h)
    spread, predicted = _spread(s, group)
    usable = np.isfinite(spread) & (spread > 0) & (at >= 4)
    slope = (
        float(np.polyfit(np.log(at[usable]), np.log(spread[usable]), 1)[0]) if usable.sum() >= 3 else math.nan
    )
    return Panels(
        name=name,
        sequences=len(h),
        entropy=tuple(running_means(h).mean(axis=0)),
        surprisal=tuple(running_means(s).mean(axis=0)),
        gap=tuple(running_means(gaps).mean(axis=0)),
        band=tuple(1.96 * np.sqrt(variance) / at),
        spread=tuple(spread),
        predicted=tuple(predicted),
        slope=slope,
    )


def _spread(surprisal: Steps, prompt: Int[np.ndarray, " sequence"]) -> tuple[np.ndarray, np.ndarray]:
    """Measured and predicted spread of the running mean, averaged over the prompts with at least three sequences."""
    steps = surprisal.shape[1]
    measured, predicted = [], []
    for number in np.unique(prompt):
        rows = surprisal[prompt == number]
        if len(rows) < 3:
            continue
        measured.append(running_means(rows).std(axis=0, ddof=1))
        centred = rows - rows.mean(axis=0)
        covariance = centred.T @ centred / (len(rows) - 1)
        # Var(mean of t steps) = sum of the leading t × t block / t², averaged along diagonals: a stationary
        # approximation
        lags = np.array([np.trace(covariance, lag) / (steps - lag) for lag in range(min(steps, 16))])
        t = np.arange(1, steps + 1, dtype=float)
        weights = np.maximum(0.0, 1 - np.arange(len(lags))[:, None] / t)
        predicted.append(
            np.sqrt(np.maximum(0.0, (lags[0] + 2 * (weights[1:] * lags[1:, None]).sum(axis=0)) / t))
        )
    if not measured:
        return np.full(steps, np.nan), np.full(steps, np.nan)
    return np.mean(measured, axis=0), np.mean(predicted, axis=0)
