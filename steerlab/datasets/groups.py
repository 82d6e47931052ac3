"""Which texts are held out together: those of one group, and matched texts of a contrast that nobody grouped.

People write contrasts as pairs ("I am thrilled today" and "I am miserable today"). A held-out text whose twin carries
the other label in the training part is pushed to the wrong side, so a held-out accuracy is too low; a reworded text
with the same label makes it too high. Both go whole to one side of every split.

Twins are found by order and shared words: the i-th texts of two equally long lists are twins where they share more
words with each other than with the other texts, for most of the pairs. Elsewhere two texts of different classes are
twins where each is the other's closest and they share at least half of their words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerlab.datasets.contrast import NEAR_DUPLICATE, similarity
from steerlab.errors import DatasetError

IN_ORDER = 0.5  # share of the pairs that must be each other's closest for lists to be matched in order
TWINS = 0.5  # words shared by twins that stand in any order


@dataclass(frozen=True)
class Groups:
    """A group number for each text, and how the groups came about in a sentence ("" where every text is its own).

    numbers: [text]. matched: pairs of texts with different labels that share a group.
    """

    numbers: tuple[int, ...]
    sentence: str
    matched: int = 0

    def __len__(self) -> int:
        """How many groups there are."""
        return len(set(self.numbers))


def groups_of(
    texts: Sequence[str], labels: Sequence[int], groups: Sequence[Hashable] | None = None
) -> Groups:
    """The groups in which texts are held out.

    Args:
        texts: prompts of two classes.
        labels: 0 or 1 a text.
        groups: the caller's own, one name a text (a pair, a template, a subject); None finds twins and rewordings.

    Raises:
        DatasetError: another number of labels or groups than texts.
    """
    for what, given in (("labels", labels), ("groups", groups)):
        if given is not None and len(given) != len(texts):
            raise DatasetError(f"{len(texts)} texts came with {len(given)} {what}; give one a text.")
    if groups is not None:
        number = {name: at for at, name in enumerate(dict.fromkeys(groups))}
        numbers = [number[name] for name in groups]
        return Groups(tuple(numbers), f"{len(number)} groups are held out whole.", _matched(numbers, labels))
    parent = list(range(len(texts)))
    alike = similarity(texts, texts) if texts else np.zeros((0, 0))
    for first, second in [
        *np.argwhere(np.triu(alike, 1) >= NEAR_DUPLICATE),
        *_twins(alike, np.asarray(labels)),
    ]:
        parent[_root(parent, int(first))] = _root(parent, int(second))
    numbers = [_root(parent, text) for text in range(len(texts))]
    matched = _matched(numbers, labels)
    sentences = []
    if matched:
        sentences.append(f"{matched} matched pairs found; both of a pair are held out together.")
    alike_ones = Counter(zip(numbers, labels, strict=True))
    if reworded := len({number for (number, _), count in alike_ones.items() if count > 1}):
        sentences.append(f"{reworded} groups of reworded texts found; each is held out whole.")
    return Groups(tuple(numbers), " ".join(sentences), matched)


def _twins(alike: NDArray[np.float64], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of texts of different classes that are written as counterparts."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if not len(positive) or not len(negative):
        return []
    between = alike[np.ix_(positive, negative)]
    if len(positive) == len(negative) and _in_order(between):
        return list(zip(positive.tolist(), negative.tolist(), strict=True))
    closest, back = between.argmax(axis=1), between.argmax(axis=0)
    return [
        (int(positive[row]), int(negative[column]))
        for row, column in enumerate(closest)
        if back[column] == row and between[row, column] >= TWINS
    ]


def _in_order(between: NDArray[np.float64]) -> bool:
    """Whether the i-th texts of both lists belong together: most are each other's single closest."""
    own = np.diag(between)
    others = between - np.diag(np.full(len(own), np.inf))
    is_closest = (own > others.max(axis=1, initial=0.0)) & (own > others.max(axis=0, initial=0.0))
    return len(own) > 1 and float(is_closest.mean()) >= IN_ORDER


def _root(parent: list[int], text: int) -> int:
    while parent[text] != text:
        text = parent[text]
    return text


def _matched(numbers: Sequence[int], labels: Sequence[int]) -> int:
    """How many groups hold both labels."""
    kinds: dict[int, set[int]] = {}
    for number, label in zip(numbers, labels, strict=True):
        kinds.setdefault(number, set()).add(int(label))
    return sum(len(held) == 2 for held in kinds.values())
