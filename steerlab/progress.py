"""Progress of long loops: a bar on the terminal, nothing at all when nobody watches.

The bar goes to standard error and appears when that is a terminal or when `STEERLAB_PROGRESS=1`. Bars that run
inside one another share one display, the inner ones below and gone when they are done.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from steerlab.showing import visible

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

_display: Progress | None = None


def watched() -> bool:
    """Whether a bar would be shown."""
    choice = os.environ.get("STEERLAB_PROGRESS")
    return choice == "1" if choice is not None else sys.stderr.isatty()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable`, showing a bar named `description` while somebody watches.

    >>> list(track([1, 2], "adding"))
    [1, 2]
    """
    if not watched():
        yield from iterable
        return
    description = visible(description)
    if _display is not None:
        yield from _inner(_display, iterable, description, total)
        return
    with _outermost() as display:
        yield from display.track(iterable, total=total, description=description)


@contextmanager
def counting(description: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for work that is counted in pieces; what the context gives is told how many more are done.

    description: None shows none.
    """
    if description is None or not watched():
        yield lambda more: None
        return
    with _outermost() if _display is None else nullcontext(_display) as display:
        task = display.add_task(visible(description), total=total)
        try:
            yield lambda more: display.advance(task, more)
        finally:
            display.remove_task(task)


def _inner(display: Progress, iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    task = display.add_task(description, total=total)
    try:
        yield from display.track(iterable, total=total, task_id=task)
    finally:
        display.remove_task(task)


@contextmanager
def _outermost() -> Iterator[Progress]:
    global _display
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        _display = display
        try:
            yield display
        finally:
            _display = None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings while a checkpoint is read (transformers, peft, kernels of other machines), bars only if watched."""
    from transformers.utils import logging as quietable

    own: Any = quietable  # its functions carry no types
    level, before = own.get_verbosity(), logging.root.manager.disable
    own.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with transformers_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        own.set_verbosity(level)


@contextmanager
def transformers_bars() -> Iterator[None]:
    """transformers' own progress bars, too, show only while somebody watches."""
    from transformers.utils import logging as quietable

    own: Any = quietable  # its functions carry no types
    hidden = own.is_progress_bar_enabled() and not watched()
    if hidden:
        own.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            own.enable_progress_bar()
