"""Progress of long loops: a bar on the terminal, nothing at all when nobody watches.

The bar goes to standard error and appears when that is a terminal or when `STEERLAB_PROGRESS=1`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(iterable, total=total, description=description)
