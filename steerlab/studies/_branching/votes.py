"""Does a narrow model vote more steadily? Spread of majority answers, with what accuracy alone explains taken out.

For each question, K of its sampled answers are drawn, the majority (ties at random) is right or wrong, and the
standard deviation over draws is the published measure (arXiv 2506.17871, Table 2; it fits a deviation per
question, not of a data set). At K = 1 that is √(p(1−p))
whatever the model: more accurate models are steadier by arithmetic. `excess` is the deviation minus the one that
independent answers, right with the question's own p and otherwise all alike wrong, would have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean


class Votes(Record):
    """Majority of K: accuracy, deviation over draws per question, and its excess over the binomial one."""

    k: int
    accuracy: Estimate
    deviation: Estimate
    excess: Estimate


def votes(
    answers: Sequence[Sequence[str]], truth: Sequence[str], k: int, *, draws: int = 400, seed: int = 0
) -> Votes:
    """Majority of `k` of each question's sampled `answers` (an unreadable answer is a class of its own, "").

    Raises:
        ValueError: no answers, or k below one.
    """
    if k < 1 or not answers or any(len(row) == 0 for row in answers):
        raise ValueError("a majority needs at least one answer a question, and k of at least one")
    rng = np.random.default_rng(seed)
    accuracy, deviation, excess = [], [], []
    for replies, right in zip(answers, truth, strict=True):
        classes, codes = np.unique(np.asarray(replies, dtype=str), return_inverse=True)
        drawn = codes[rng.integers(len(replies), size=(draws, k))]
        counts = np.stack([(drawn == code).sum(axis=1) for code in range(len(classes))], axis=1)
        # a random number below one breaks ties without preferring a class
        winner = (counts + rng.random(counts.shape) * 0.5).argmax(axis=1)
        correct = classes[winner] == right
        share = float(np.mean([reply == right for reply in replies]))
        accuracy.append(correct.mean())
        deviation.append(correct.std())
        won = majority(share, k)
        excess.append(correct.std() - np.sqrt(won * (1 - won)))
    return Votes(
        k=k,
        accuracy=bootstrap_mean(accuracy, seed=seed),
        deviation=bootstrap_mean(deviation, seed=seed),
        excess=bootstrap_mean(excess, seed=seed),
    )


def majority(p: float, k: int) -> float:
    """Chance that most of k independent answers, each right with probability p, are right; ties are a coin."""
    wins = float(stats.binom.sf(k // 2, k, p))
    return wins + (0.5 * float(stats.binom.pmf(k // 2, k, p)) if k % 2 == 0 else 0.0)
