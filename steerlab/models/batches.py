"""Batches of prompts of like length, run one after the other, and again in halves where memory runs out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from steerlab.batching import tokens_of_a_batch
from steerlab.errors import SteerlabError
from steerlab.models.memory import is_out_of_memory, release_cached_memory

T = TypeVar("T")


def batches_by_length(
    lengths: Sequence[int], token_budget: int, *, stretch: float = math.inf
) -> list[list[int]]:
    """Indices of prompts, longest first, in batches of like length whose padded size stays within `token_budget`.

    A prompt longer than the budget makes a batch of its own. Prompts of one length keep their order.

    Args:
        lengths: tokens of each prompt.
        token_budget: padded tokens of a batch.
        stretch: how many times as long as its shortest prompt the longest one of a batch may be; 1 gives batches of
            one length, without padding.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        is_full = not batches or (len(batches[-1]) + 1) * longest > token_budget
        if is_full or longest > stretch * lengths[index]:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def run_in_batches(
    run: Callable[[list[int]], None],
    lengths: Sequence[int],
    token_budget: int,
    *,
    stretch: float = math.inf,
    done: Callable[[int], object] = lambda rows: None,
) -> None:
    """Call `run` with the indices of each batch; a batch that does not fit into memory runs again in halves.

    Args:
        run: works on some prompts, and may be called again for the same ones.
        lengths: tokens of each prompt, those it is to write included.
        token_budget: padded tokens of a batch, unless a caller sets them (`batching`); halved whenever memory runs
            out.
        stretch: as for `batches_by_length`.
        done: is told how many prompts a batch had when it is done.

    Raises:
        SteerlabError: one prompt alone does not fit.
    """
    waiting = deque(batches_by_length(lengths, tokens_of_a_batch(token_budget), stretch=stretch))
    while waiting:
        rows = waiting[0]
        if fits(lambda rows=rows: run(rows)):  # type: ignore[misc]  # bound now
            waiting.popleft()
            done(len(rows))
            continue
        longest = max(lengths[row] for row in rows)
        if len(rows) == 1:
            raise SteerlabError(
                f"Prompt {rows[0]} with {longest} tokens does not fit in memory even alone; shorten it, or load the "
                "model in a smaller dtype."
            )
        left = [row for batch in waiting for row in batch]
        smaller = batches_by_length([lengths[row] for row in left], len(rows) * longest // 2, stretch=stretch)
        waiting = deque([left[index] for index in batch] for batch in smaller)


def run_halving(run: Callable[[Sequence[T]], object], batch: Sequence[T], what: str) -> None:
    """Call `run` with a batch, or with its halves where memory runs out.

    Raises:
        SteerlabError: one alone does not fit; `what` names it.
    """
    if fits(lambda: run(batch)):
        return
    if len(batch) == 1:
        raise SteerlabError(
            f"{what} does not fit in memory even alone; shorten it, or load the model in a smaller dtype."
        )
    half = len(batch) // 2
    run_halving(run, batch[:half], what)
    run_halving(run, batch[half:], what)


def fits(run: Callable[[], object]) -> bool:
    """Call `run`; False where memory ran out, and what it held is given back."""
    try:
        run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Outside the handler: the error's traceback keeps the failed batch's tensors alive.
    release_cached_memory()
    return False
