"""Bars in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bars:
    """One bar a loop with its count and the time left; inner ones stand below and vanish when they are done."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._progress.start()

    def begin(self, description: str, total: int | None) -> int:
        """The number of a new bar."""
        return self._progress.add_task(description, total=total)

    def advance(self, loop: int, more: int) -> None:
        """Move a bar on."""
        self._progress.advance(TaskID(loop), more)

    def end(self, loop: int) -> None:
        """Take an inner bar away; the outermost one stays as it is."""
        if loop:
            self._progress.remove_task(TaskID(loop))

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()
