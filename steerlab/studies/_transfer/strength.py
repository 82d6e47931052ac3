"""How far to turn: the strength that does most on questions kept for choosing, and no more than that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

GRID = (0.05, 0.1, 0.2, 0.5, 0.7, 1.0)
#: How near the best outcome the chosen one must come, and how much more repetition is let pass.
NEAR, LOOPS = 0.9, 0.1


@dataclass(frozen=True)
class Chosen:
    """A strength, how it was chosen, and (strength, outcome, guard) of what was tried."""

    strength: float
    how: str
    tried: tuple[tuple[float, float, float], ...] = ()


def choose_strength(
    score: Callable[[float], tuple[float, float]], grid: Sequence[float], how: str = "chosen on dev questions"
) -> Chosen:
    """The smallest strength whose outcome is within a tenth of the best among those whose guard has not grown.

    score: outcome and guard (share of repeated text) at a strength; strength 0 is asked for the guard without steering.
    """
    before = score(0.0)
    tried = [(alpha, *score(alpha)) for alpha in grid]
    allowed = [row for row in tried if row[2] <= before[1] + LOOPS] or [
        tried[int(np.argmin([row[2] for row in tried]))]
    ]
    best = max(row[1] for row in allowed)
    if best == before[0]:
        how += "; no strength did more than none"
    alpha = next(row[0] for row in sorted(allowed) if row[1] >= NEAR * best)
    return Chosen(float(alpha), how, tuple(tried))
