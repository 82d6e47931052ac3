"""Branching factor and its relatives as pure functions of recorded steps.

`values` is always [sequence, step] in nats, NaN after a sequence's end; lengths N_i follow from it and count the
stop token. With A_i = sum_t h_t the entropies' sum of sequence i:

    sequence-weighted  mean_i A_i / N_i       exp of it is the branching factor, BF (the printed definition)
    token-weighted     sum A_i / sum N_i      exp of it is exp(H(Y|x) / E[N]) in expectation
    total              mean_i A_i = H(Y|x)    nats an output: tells shorter apart from narrower

Logarithms are averaged and exponentiated last. Surprisals may replace entropies in the token-weighted form only: the
mean of their ratios does not estimate the same thing when lengths are random. Source: Yang and Holtzman,
arXiv 2506.17871, for the definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Steps = Float[np.ndarray, "sequence step"]


def lengths(values: Steps) -> Int[np.ndarray, " sequence"]:
    """Recorded steps of each sequence."""
    return np.asarray((~np.isnan(values)).sum(axis=1))


def sequence_means(values: Steps) -> Float[np.ndarray, " sequence"]:
    """A_i / N_i of each sequence. Raises ValueError for a sequence without a step."""
    if (lengths(values) == 0).any():
        raise ValueError("every sequence has at least one step: an output of a stop token alone has one")
    return np.asarray(np.nanmean(values, axis=1))


def sequence_weighted(values: Steps) -> float:
    """Mean over sequences of their mean; exp of it is BF."""
    return float(sequence_means(values).mean())


def token_weighted(values: Steps) -> float:
    """Sum over all steps by their number (the ratio of sums; also right for surprisals)."""
    return float(np.nanmean(values))


def total(values: Steps) -> float:
    """Mean over sequences of their sum: H(Y|x) in nats an output."""
    return float(np.nansum(values, axis=1).mean())


def by_prompt(
    per_sequence: Float[np.ndarray, " sequence"], prompt: Int[np.ndarray, " sequence"]
) -> Float[np.ndarray, " prompt"]:
    """Mean over the sequences of each prompt, prompts in order of their number."""
    _, group = np.unique(prompt, return_inverse=True)
    return np.bincount(group, weights=per_sequence) / np.bincount(group)


def martingale_z(entropy: Steps, surprisal: Steps) -> float:
    """z of the mean over sequences of sum_t (s_t - h_t), which is 0 when the scored law is the sampled one.

    0 when every difference is 0 (greedy, uniform); NaN for one sequence.
    """
    gaps = np.nansum(surprisal - entropy, axis=1)
    if len(gaps) < 2:
        return math.nan
    spread = float(gaps.std(ddof=1))
    # an equal law at every step leaves rounding only, which is no evidence against the record
    if spread <= 1e-6 * max(1.0, float(np.abs(np.nansum(entropy, axis=1)).max())):
        return 0.0 if abs(float(gaps.mean())) <= 1e-4 else math.inf
    return float(gaps.mean()) * math.sqrt(len(gaps)) / spread


# -- as a function of position: means of log quantities; exponentiate to draw a branching factor --


def alive(values: Steps) -> Int[np.ndarray, " step"]:
    """Sequences that have a step at each position."""
    return np.asarray((~np.isnan(values)).sum(axis=0))


def local(values: Steps) -> Float[np.ndarray, " step"]:
    """Mean over the sequences alive at each position (NaN where none is): survivors change along it."""
    count = alive(values)
    mean: Float[np.ndarray, " step"] = np.full(len(count), np.nan)
    np.divide(np.nansum(values, axis=0), count, out=mean, where=count > 0)
    return mean


def windowed(values: Steps, width: int) -> Float[np.ndarray, " window"]:
    """Mean over windows of `width` steps, of the sequences alive for the whole window; the rest is left out."""
    n_windows = values.shape[1] // width
    blocks = values[:, : n_windows * width].reshape(len(values), n_windows, width)
    return local(blocks.mean(axis=2))


def cumulative(values: Steps) -> Float[np.ndarray, " step"]:
    """(1/t) sum over u <= t of the local mean."""
    curve = local(values)
    return np.cumsum(curve) / np.arange(1, len(curve) + 1)


def absorbed(values: Steps) -> Float[np.ndarray, " step"]:
    """Mean over all sequences, ended ones counting 0: sums to H(Y|x) exactly."""
    return np.asarray(np.nansum(values, axis=0) / len(values))


def cohort(values: Steps, steps: int) -> Bool[np.ndarray, " sequence"]:
    """The sequences with at least `steps` steps: a curve over them up to there does not change its members."""
    return lengths(values) >= steps


def largest_cohort(values: Steps) -> int:
    """The number of steps that keeps the most: the t at which t times the number alive is largest."""
    count = alive(values)
    return int(np.argmax(count * np.arange(1, len(count) + 1))) + 1


def repetition_rate(
    tokens: Sequence[Sequence[int]], *, n: int = 4, window: int = 64
) -> Float[np.ndarray, " sequence"]:
    """Share of repeated n-grams among those of the last `window` tokens of each sequence (NaN below n tokens)."""
    return np.array([_repeated(tuple(sequence[-window:]), n) for sequence in tokens])


def _repeated(tokens: tuple[int, ...], n: int) -> float:
    grams = [tokens[start : start + n] for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else math.nan
