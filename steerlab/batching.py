"""How many tokens one forward pass takes: each step has a number of its own, and a caller may set one for all of them.

    with sl.batching.batch_tokens(1024):
        sl.compare(...)

Fewer tokens need less memory, more are faster on a large accelerator. Results differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from steerlab.errors import SteerlabError

__all__ = ["batch_tokens", "tokens_of_a_batch"]

_wanted: ContextVar[int | None] = ContextVar("steerlab_batch_tokens", default=None)


@contextmanager
def batch_tokens(tokens: int | None) -> Iterator[None]:
    """Give every forward pass inside so many tokens, padding included; a longer prompt is a batch of its own.

    tokens: None leaves every step its own number.

    Raises:
        SteerlabError: less than one token.
    """
    if tokens is not None and tokens < 1:
        raise SteerlabError(f"A batch cannot have {tokens} tokens; give at least 1.")
    token = _wanted.set(tokens)
    try:
        yield
    finally:
        _wanted.reset(token)


def tokens_of_a_batch(own: int) -> int:
    """The number that a caller has set, or a step's own."""
    return _wanted.get() or own
