"""Statements of many topics, affirmed and negated, and the states that a model reads them into."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import steerlab as sl
from steerlab.models import Last

NEGATED = "neg_"


@dataclass(frozen=True)
class Statements:
    """Row by row a statement, its truth, its set (a CSV file), topic, polarity (+1, -1) and number within the set.

    A negation has the number of its affirmation.
    """

    texts: list[str]
    labels: NDArray[np.bool_]
    sets: NDArray[np.str_]
    topics: NDArray[np.str_]
    polarity: NDArray[np.int64]
    numbers: NDArray[np.int64]


def statements_of(
    files: Mapping[str, Path], topics: Mapping[str, Sequence[str]], per_set: int, seed: int
) -> Statements:
    """`per_set` statements of every set of every topic, as many true as false, a negation for each affirmation."""
    rows: list[tuple[str, bool, str, str, int, int]] = []
    for topic, sets in topics.items():
        numbers: dict[str, NDArray[np.int64]] = {}
        for name in sets:
            read = _read(files[name])
            affirmed = name.removeprefix(NEGATED)
            if affirmed not in numbers:
                numbers[affirmed] = _chosen(read, per_set, seed)
            paired = NEGATED + affirmed in sets
            rows += [
                (*read[n], name, topic, _polarity(name, read[n][0], paired), n)
                for n in numbers[affirmed].tolist()
            ]
    texts, labels, names, of, polarity, number = zip(*rows, strict=True)
    return Statements(
        list(texts), np.array(labels), np.array(names), np.array(of), np.array(polarity), np.array(number)
    )


def first_of_each(statements: Statements, sets: Sequence[str], n: int) -> NDArray[np.int64]:
    """Rows of the first `n` statements of every one of `sets`: true and false ones take turns."""
    return np.concatenate([np.flatnonzero(statements.sets == name)[:n] for name in sets])


def read_states(model: sl.LanguageModel, texts: Sequence[str], step: int) -> dict[int, NDArray[np.float32]]:
    """By layer (every `step`-th), the state [row, width] behind the block at the last token; each text is read once."""
    sites = model.sites("resid_post", list(range(0, model.n_layers, step)))
    read = sl.capture(model, texts, sites, positions=Last(), progress="reading statements")
    return {int(site.layer or 0): read[site].float().numpy() for site in read.sites}


# -- private --


def _read(path: Path) -> list[tuple[str, bool]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["statement"], row["label"] == "1") for row in csv.DictReader(file)]


def _chosen(read: Sequence[tuple[str, bool]], n: int, seed: int) -> NDArray[np.int64]:
    """Numbers of `n` different statements, true and false in turn."""
    first: dict[str, int] = {}
    for number, (text, _) in enumerate(read):
        first.setdefault(text, number)
    rng = np.random.default_rng(seed)
    true, false = (
        rng.permutation([number for number in first.values() if read[number][1] == label])[: n // 2]
        for label in (True, False)
    )
    pairs = zip(true.tolist(), false.tolist(), strict=False)
    return np.array([number for pair in pairs for number in pair])


def _polarity(name: str, text: str, paired: bool) -> int:
    """-1 for a set of negations; where affirmations and negations share a set, for a text with "not"."""
    return -1 if name.startswith(NEGATED) or (not paired and " not " in text) else 1
