"""A bar in a notebook's cell: plain HTML that every front end shows, without widgets."""

from __future__ import annotations

import time
from html import escape
from typing import Any

from steerlab.progress.loops import Loops
from steerlab.showing import duration

#: Seconds before a bar appears, so that short loops leave no output, and between two drawings.
FIRST, GAP = 1.0, 0.25


class Notebook:
    """Loops as one bar with a sentence; what stays in the cell is how long the outermost loop took."""

    def __init__(self) -> None:
        self._loops = Loops()
        self._started = time.monotonic()
        self._due = self._started + FIRST
        self._place: Any = None
        self._last = ""

    def begin(self, description: str, total: int | None) -> int:
        """The number of a new loop."""
        return self._loops.begin(description, total)

    def advance(self, loop: int, more: int) -> None:
        """Count, and draw when it is time."""
        self._loops.advance(loop, more)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + GAP
            self._show(self._loops.sentence, self._loops.share)

    def end(self, loop: int) -> None:
        """Forget a loop."""
        self._last = self._loops.end(loop).counted

    def close(self) -> None:
        """Leave one line in place of the bar, where there is one."""
        if self._place is not None:
            self._show(f"{self._last}, {duration(time.monotonic() - self._started)}", None)

    def _show(self, text: str, share: float | None) -> None:
        from IPython.display import display

        bar = "" if share is None else f"<progress max='1' value='{share:.4f}'></progress> "
        shown = {"text/plain": text, "text/html": f"{bar}<small>{escape(text)}</small>"}
        if self._place is None:
            self._place = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._place.update(shown, raw=True)
