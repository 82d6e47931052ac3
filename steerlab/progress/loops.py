"""Loops inside one another as one sentence: how far they are, and how long it still takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from steerlab.showing import duration


@dataclass
class Loop:
    """One loop: what it does, how many steps it has (None where unknown) and how many are done."""

    description: str
    total: int | None
    done: int = 0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def counted(self) -> str:
        """ "Reading states: 30 of 400"."""
        return f"{self.description}: {self.done}" + ("" if self.total is None else f" of {self.total}")


class Loops:
    """The loops that are running, the outermost first."""

    def __init__(self) -> None:
        self._running: dict[int, Loop] = {}
        self._number = 0

    @property
    def running(self) -> int:
        """How many loops are running."""
        return len(self._running)

    def begin(self, description: str, total: int | None) -> int:
        """The number of a loop that begins now."""
        self._number += 1
        self._running[self._number] = Loop(description, total)
        return self._number

    def advance(self, loop: int, more: int) -> None:
        """So many more steps of a loop are done."""
        self._running[loop].done += more

    def end(self, loop: int) -> Loop:
        """Forget a loop, and give back what it was."""
        return self._running.pop(loop)

    @property
    def share(self) -> float:
        """How much of the outermost loop is done, from 0 to 1; a step that runs counts as far as its own loop is."""
        share = 0.0
        for loop in reversed(self._running.values()):
            share = min(1.0, (loop.done + share) / loop.total) if loop.total else 0.0
        return share

    @property
    def left(self) -> float | None:
        """Seconds that the outermost loop still takes at its pace so far; None at its beginning and end."""
        if not 0 < self.share < 1:
            return None
        elapsed = time.monotonic() - next(iter(self._running.values())).started
        return elapsed * (1 - self.share) / self.share

    @property
    def sentence(self) -> str:
        """ "steering base: 2 of 5, about 8 minutes left; Reading states: 30 of 400"."""
        outermost, *inner = (loop.counted for loop in self._running.values())
        left = self.left
        return "; ".join([outermost + ("" if left is None else f", about {duration(left)} left"), *inner])
