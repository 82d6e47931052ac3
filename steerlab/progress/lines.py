"""Plain lines, for a log file or a pipe: the first after ten seconds, then ever rarer, down to one a minute."""

from __future__ import annotations

import sys
import time

from steerlab.progress.loops import Loops

#: Seconds before the first line, and between two lines at most. A gap is as long as everything before it.
FIRST, LONGEST = 10.0, 60.0


class Lines:
    """Loops as lines on standard error."""

    def __init__(self) -> None:
        self._loops = Loops()
        self._started = time.monotonic()
        self._due = self._started + FIRST

    def begin(self, description: str, total: int | None) -> int:
        """The number of a new loop."""
        return self._loops.begin(description, total)

    def advance(self, loop: int, more: int) -> None:
        """Count, and write a line when one is due."""
        self._loops.advance(loop, more)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + min(LONGEST, max(FIRST, now - self._started))
            print(self._loops.sentence, file=sys.stderr, flush=True)

    def end(self, loop: int) -> None:
        """Forget a loop."""
        self._loops.end(loop)

    def close(self) -> None:
        """Write nothing more."""
