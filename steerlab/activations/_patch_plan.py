"""Which cells run together: prompts of one length, cells of one starting block, first positions near one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Chunk: TypeAlias = list[int]
Item: TypeAlias = tuple[int, int]  # a prompt's row in its chunk, and the number of a cell
_WASTE = 1 / 3  # of a batch's columns that its last rows run without need
_HELD = 4  # cached tokens of a batch over those that run


@dataclass(frozen=True)
class Batch:
    """Cells that begin at one block, run from one column on."""

    items: tuple[Item, ...]
    start: int
    column: int


def chunks_of(lengths: Sequence[int], token_budget: int) -> list[Chunk]:
    """Prompts of equal length whose tokens stay within the budget, in the order in which they come."""
    by_length: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        by_length.setdefault(length, []).append(number)
    return [
        numbers[first : first + each]
        for length, numbers in by_length.items()
        for each in [max(1, token_budget // length)]
        for first in range(0, len(numbers), each)
    ]


def batches_of(
    items: Sequence[Item],
    starts: Mapping[Item, int],
    columns: Mapping[Item, int],
    width: int,
    token_budget: int,
) -> Iterator[Batch]:
    """Batches within the budget in which no row runs much more columns than it must."""
    by_start: dict[int, list[Item]] = {}
    for item in items:
        by_start.setdefault(starts[item], []).append(item)
    for start, some in sorted(by_start.items()):
        some.sort(key=lambda item: (columns[item], item))
        first = 0
        while first < len(some):
            column = columns[some[first]]
            most = max(1, min(token_budget // (width - column), _HELD * token_budget // width))
            stop = first
            while (
                stop < len(some)
                and stop - first < most
                and columns[some[stop]] - column <= _WASTE * (width - column)
            ):
                stop += 1
            yield Batch(tuple(some[first:stop]), start, column)
            first = stop
