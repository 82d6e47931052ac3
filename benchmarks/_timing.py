"""Times that hold on a shared machine: the variants run in turn, and ratios are taken within a turn.

In every turn each variant runs once, in an order that alternates (A B C, C B A, ...). A ratio is that of two times
of the same turn; the median over the turns is the result, and minimum and maximum show how noisy the machine was.
Wall seconds and the processor seconds of the process (all its threads) are both taken: the latter suffer less from
neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of the turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some numbers."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} … {self.high:.3f})"

    def to_dict(self) -> dict[str, float]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Times:
    """Seconds of one run: on the clock, and of processor time over all threads."""

    wall: float
    cpu: float


Turns = dict[str, list[Times]]


def in_turn(variants: Mapping[str, Callable[[], Any]], turns: int) -> Turns:
    """Times of each variant in each turn, after one uncounted turn."""
    names = list(variants)
    times: Turns = {name: [] for name in names}
    for turn in range(-1, turns):
        for name in names if turn % 2 == 0 else reversed(names):
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            if turn >= 0:
                times[name].append(Times(time.perf_counter() - wall, time.process_time() - cpu))
    return times


def wall_ratio(times: Turns, name: str, base: str, share: float = 1.0) -> Spread:
    """Wall time of ``name`` over ``share`` times that of ``base``, turn by turn."""
    return Spread.of([a.wall / (share * b.wall) for a, b in zip(times[name], times[base], strict=True)])


def cpu_ratio(times: Turns, name: str, base: str, share: float = 1.0) -> Spread:
    """Processor time of ``name`` over ``share`` times that of ``base``, turn by turn."""
    return Spread.of([a.cpu / (share * b.cpu) for a, b in zip(times[name], times[base], strict=True)])
