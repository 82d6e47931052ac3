"""Progress of long loops: a bar in a terminal or a notebook, a plain line now and then elsewhere.

Progress goes to standard error, or to a notebook's cell. Loops that run inside one another share one display: bars
stand below one another and vanish when they are done; a line names them all. The variable STEERLAB_PROGRESS chooses a
display: `0` shows nothing, `1` bars, `lines` plain lines.
"""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, TypeVar

from steerlab.progress.libraries import quiet, transformers_bars
from steerlab.showing import duration, visible

__all__ = ["counting", "quiet", "silent", "steps", "track", "transformers_bars", "watched", "way"]

T = TypeVar("T")
Way = Literal["nothing", "bars", "notebook", "lines"]
_CHOSEN: dict[str, Way] = {"1": "bars", "lines": "lines"}


class Display(Protocol):
    """Where loops are shown; it opens with the outermost loop and closes with it."""

    def begin(self, description: str, total: int | None) -> int:
        """The number of a loop that begins now."""

    def advance(self, loop: int, more: int) -> None:
        """So many more steps of a loop are done."""

    def end(self, loop: int) -> None:
        """A loop is over, whether or not all of it ran."""

    def close(self) -> None:
        """The outermost loop is over."""


_display: Display | None = None
_is_silent = False


def way() -> Way:
    """How progress is shown here and now."""
    if _is_silent:
        return "nothing"
    chosen = os.environ.get("STEERLAB_PROGRESS")
    if chosen is not None:
        return _CHOSEN.get(chosen, "nothing")
    if _in_notebook():
        return "notebook"
    return "bars" if sys.stderr.isatty() else "lines"


def watched() -> bool:
    """Whether bars are drawn in a terminal, other libraries' bars included."""
    return way() == "bars"


@contextmanager
def silent(wanted: bool = True) -> Iterator[None]:
    """Show no progress inside."""
    global _is_silent
    before, _is_silent = _is_silent, _is_silent or wanted
    try:
        yield
    finally:
        _is_silent = before


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and show how far the loop is.

    total: its length, where `iterable` does not know it.

    >>> list(track([1, 2], "adding"))
    [1, 2]
    """
    with counting(description, total or operator.length_hint(iterable) or None) as done:
        for item in iterable:
            yield item
            done(1)


@contextmanager
def counting(description: str | None, total: int | None) -> Iterator[Callable[[int], None]]:
    """A display for work that is counted in pieces; what the context gives is told how many more are done.

    description: None shows nothing. total: None where it is not known.
    """
    global _display
    shown = way()
    if description is None or shown == "nothing":
        yield lambda more: None
        return
    is_outermost = _display is None
    display = _display = _display or _opened(shown)
    loop = display.begin(visible(description), total)
    try:
        yield lambda more: display.advance(loop, more)
    finally:
        display.end(loop)
        if is_outermost:
            _display = None
            display.close()


def steps(
    names: Sequence[str],
    announce: Callable[[str], None],
    expected: Mapping[str, float | None] | None = None,
) -> Iterator[str]:
    """Yield names of long steps; as each begins, announce its number, the time left and the step that follows.

    expected: seconds of each step as foreseen. They are scaled by what the steps before have taken; where one of a
    remaining step is not known, no time is announced.
    """
    known = expected or {}
    foreseen = taken = 0.0
    for number, name in enumerate(names):
        rest = [known.get(later) for later in names[number:]]
        left = sum(seconds for seconds in rest if seconds is not None) * (
            taken / foreseen if foreseen else 1.0
        )
        parts = [f"{name}: running"]
        parts += [f"{number + 1} of {len(names)}"] * (len(names) > 1)
        parts += [f"about {duration(left)} left"] * (None not in rest)
        parts += [f"{later} comes next" for later in names[number + 1 : number + 2]]
        announce(", ".join(parts))
        started = time.monotonic()
        yield name
        if (seconds := known.get(name)) is not None:
            foreseen, taken = foreseen + seconds, taken + time.monotonic() - started


# -- private --


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


def _opened(shown: Way) -> Display:
    """A display of this kind; its library is imported now."""
    if shown == "bars":
        from steerlab.progress.bars import Bars

        return Bars()
    if shown == "notebook":
        from steerlab.progress.notebook import Notebook

        return Notebook()
    from steerlab.progress import lines

    return lines.LINES
