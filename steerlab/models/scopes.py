"""What is in force where: values that a piece of code enters and leaves, in any order and from any thread.

A `ContextVar` holds a tuple of entries. Leaving marks an entry dead and never resets the variable, so that contexts may
overlap, suspended generators may be closed in any order, and a generator may be closed by another thread. asyncio tasks
and `asyncio.to_thread` start with the entries of whoever started them; a plain thread or an executor starts with none
(`contextvars.copy_context().run(...)` hands them over).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Entry(Generic[T]):
    """One value in force, from `Scope.enter` to `close`."""

    __slots__ = ("alive", "scope", "value")

    def __init__(self, scope: Scope[T], value: T) -> None:
        self.scope, self.value, self.alive = scope, value, True

    @property
    def is_here(self) -> bool:
        """Whether the value is in force in the running context."""
        return self.alive and self in _ENTRIES.get()

    def close(self) -> None:
        """End it everywhere; any thread may do so, once or more often."""
        self.alive = False


_ENTRIES: ContextVar[tuple[Entry[Any], ...]] = ContextVar("steerlab_entries", default=())


class Scope(Generic[T]):
    """Values of one kind that belong to one object."""

    def here(self) -> list[Entry[T]]:
        """What is in force in the running context, the outermost first."""
        return [entry for entry in _ENTRIES.get() if entry.scope is self and entry.alive]

    def enter(self, value: T) -> Entry[T]:
        """Put a value in force in the running context and in those that start from it."""
        entry = Entry(self, value)
        _ENTRIES.set((*(other for other in _ENTRIES.get() if other.alive), entry))
        return entry

    @contextmanager
    def holding(self, value: T) -> Iterator[Entry[T]]:
        """The value is in force inside the `with` statement."""
        entry = self.enter(value)
        try:
            yield entry
        finally:
            entry.close()
