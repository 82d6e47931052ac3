"""Which cells run together: prompts of one length, blocks and first positions near one another.

A batch runs from its earliest block and first position on, so a cell in it may run a little more than it must; that is
worth it while batches are small, since a short pass through a block costs hardly less than a longer one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Chunk: TypeAlias = list[int]
Item: TypeAlias = tuple[int, int]  # a prompt's row in its chunk, and the number of a cell
_WASTE = 1 / 3  # of a batch's columns (or of its blocks) that its last rows run without need
_NARROW, _SHALLOW = 4, 2  # columns and blocks too few to be worth a batch of their own
_SMALL = 1024  # tokens of a batch that is joined by cells of later blocks
_HELD = 4  # cached tokens of a batch over those that run


@dataclass(frozen=True)
class Batch:
    """Cells that are run together from one block and one column on."""

    items: tuple[Item, ...]
    start: int
    column: int


def batches_of(
    items: Sequence[Item],
    starts: Mapping[Item, int],
    columns: Mapping[Item, int],
    shape: tuple[int, int],
    token_budget: int,
) -> Iterator[Batch]:
    """Batches within the budget in which no row runs much more than it must; `shape` is (blocks, columns)."""
    n_layers, width = shape
    for group in _together(items, starts, columns, n_layers, width):
        group.sort(key=lambda item: (columns[item], item))
        first = 0
        while first < len(group):
            column = columns[group[first]]
            most = max(1, min(token_budget // (width - column), _HELD * token_budget // width))
            stop = first
            while (
                stop < len(group)
                and stop - first < most
                and columns[group[stop]] - column <= max(_WASTE * (width - column), _NARROW - 1)
            ):
                stop += 1
            batch = tuple(group[first:stop])
            yield Batch(batch, min(starts[item] for item in batch), column)
            first = stop


def _together(
    items: Sequence[Item],
    starts: Mapping[Item, int],
    columns: Mapping[Item, int],
    n_layers: int,
    width: int,
) -> Iterator[list[Item]]:
    """The cells of one starting block, joined by those of later ones while they are few."""
    by_start: dict[int, list[Item]] = {}
    for item in items:
        by_start.setdefault(starts[item], []).append(item)
    group: list[Item] = []
    earliest, tokens = 0, 0
    for start, cells in sorted(by_start.items()):
        # Cells that run the embedding anew (start below 0) skip no block and stay alone.
        near = earliest >= 0 and start - earliest <= max(_WASTE * (n_layers - earliest), _SHALLOW)
        if group and not (near and tokens < _SMALL):
            yield group
            group, tokens = [], 0
        if not group:
            earliest = start
        group = [*group, *cells]
        tokens += sum(width - columns[item] for item in cells)
    if group:
        yield group
