"""How much a branching study draws: prompts, samples and steps, by size of the run and of the models."""

from __future__ import annotations

from dataclasses import dataclass

from steerlab.record import Record
from steerlab.studies._pair import LARGE


class Budget(Record):
    """Prompts, samples of each and steps of each sample at most; sequences run together."""

    prompts: int
    samples: int
    steps: int
    rows: int = 256


@dataclass(frozen=True)
class PartsAmount:
    """What the parts beside the factor draw.

    prompts, samples, steps: of a prompt set, at `levels`, and of nudging, by `prefixes` too. questions, rollouts,
    continuations, positions, sum_steps: of resampling, whose rollouts are half of the votes.
    """

    prompts: int
    samples: int
    steps: int
    questions: int
    rollouts: int
    continuations: int
    positions: tuple[int, ...]
    sum_steps: int = 64
    levels: tuple[int, int] = (0, 2)
    prefixes: tuple[int, ...] = (1, 5, 10)


BUDGETS = {
    "quick": Budget(prompts=40, samples=8, steps=48),
    LARGE: Budget(prompts=16, samples=4, steps=32),
    "full": Budget(prompts=100, samples=32, steps=256),
}
PARTS = {
    "quick": PartsAmount(8, 4, 24, 10, 6, 4, (0, 4, 12)),
    LARGE: PartsAmount(8, 2, 12, 8, 3, 2, (0, 4), 20, prefixes=(5,)),
    "full": PartsAmount(40, 16, 128, 40, 10, 8, (0, 5, 25, 50), 128),
}
