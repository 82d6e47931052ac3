"""Packaged contrasts: two ways in which one thing can be written, in matched pairs of our own writing.

A file each in `data/contrasts`, named for the class that a direction points to; its header names both classes, its rows
are pairs. Length, last character and, wherever the contrast does not lie in it, the first word are alike in the two
classes, so that a direction is not one of form (`readouts.surface.shortcuts` measures it).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from steerlab.datasets.contrast_set import ContrastSet
from steerlab.datasets.readers.table import read_table
from steerlab.errors import DatasetError

FOLDER = Path(__file__).parent / "data" / "contrasts"


@cache
def names() -> tuple[str, ...]:
    """The names of the packaged contrasts in alphabetical order: each is that of the class a direction points to."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.csv")))


def contrasts() -> dict[str, ContrastSet]:
    """The packaged contrasts by name, each of at least 60 matched pairs in three splits.

    `positive[i]` and `negative[i]` are a pair; `positive_name` is the contrast's name. Pairs stand in one split.
    """
    return {name: contrast(name) for name in names()}


@cache
def contrast(name: str) -> ContrastSet:
    """One packaged contrast. Raises `DatasetError`, which lists the names, for an unknown one."""
    if name not in names():
        raise DatasetError(f"There is no packaged contrast {name!r}; the names are {', '.join(names())}.")
    table = read_table(FOLDER / f"{name}.csv")
    positive, negative = ([row.text(column) for row in table.rows] for column in table.columns)
    return ContrastSet.from_texts(
        positive, negative, positive_name=table.columns[0], negative_name=table.columns[1], matched=True
    )
