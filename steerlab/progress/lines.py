"""Plain lines, for a log file or a pipe: the first after ten seconds of work, then ever rarer, down to one a minute."""

from __future__ import annotations

import math
import sys
import time

from steerlab.progress.loops import Loops

#: Seconds before the first line, and between two lines at most. A gap is as long as everything before it.
FIRST, LONGEST = 10.0, 60.0


class Lines:
    """Loops as lines on standard error.

    The clock goes on from one loop to the next, so many short loops are not silent; it starts anew after a pause.
    """

    def __init__(self) -> None:
        self._loops = Loops()
        self._started = self._due = self._ended = -math.inf

    def begin(self, description: str, total: int | None) -> int:
        """The number of a new loop."""
        now = time.monotonic()
        if not self._loops.running and now - self._ended > FIRST:
            self._started, self._due = now, now + FIRST
        loop = self._loops.begin(description, total)
        self._write()
        return loop

    def advance(self, loop: int, more: int) -> None:
        """Count, and write a line when one is due."""
        self._loops.advance(loop, more)
        if self._loops.share < 1:
            self._write()

    def end(self, loop: int) -> None:
        """Forget a loop."""
        self._loops.end(loop)
        self._ended = time.monotonic()

    def close(self) -> None:
        """Write nothing more."""

    def _write(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + min(LONGEST, max(FIRST, now - self._started))
            print(self._loops.sentence, file=sys.stderr, flush=True)


#: The lines of this process.
LINES = Lines()
