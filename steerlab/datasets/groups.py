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
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from steerlab.datasets.similarity import near_duplicate_groups, similarity
from steerlab.errors import DatasetError
from steerlab.showing import counted

FEWEST = 5  # groups of a class, one for each fold of a held-out accuracy
IN_ORDER = 0.5  # share of the pairs that must be each other's closest for lists to be matched in order
TWINS = 0.5  # words shared by twins that stand in any order

Pairs = list[tuple[int, int]]


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
            Where rewordings would leave fewer than five groups of a class, twins alone are held out together.

    Raises:
        DatasetError: another number of labels or groups than texts.
    """
    for what, given in (("labels", labels), ("groups", groups)):
        if given is not None and len(given) != len(texts):
            raise DatasetError(f"{len(texts)} texts came with {len(given)} {what}; give one a text.")
    if groups is not None:
        numbers = _numbered(groups)
        known = len(set(numbers))
        sentence = f"{counted(known, 'group')} {'is' if known == 1 else 'are'} held out whole."
        return Groups(tuple(numbers), sentence, _both(numbers, labels))
    twins = _twins(texts, np.asarray(labels))
    sentences = [
        f"{counted(len(twins), 'matched pair')} found; both of a pair are held out together."
    ] * bool(twins)
    reworded = near_duplicate_groups(texts)
    joined, apart = _joined(reworded, twins), _joined(_numbered(texts), twins)
    if _fewest(joined, labels) < FEWEST <= _fewest(apart, labels):
        sentences.append(
            "Nearly all texts are rewordings of each other, so rewordings are not held out together."
        )
        return Groups(tuple(apart), " ".join(sentences), len(twins))
    if several := sum(count > 1 for count in Counter(reworded).values()):
        sentences.append(f"{counted(several, 'group')} of reworded texts found; each is held out whole.")
    return Groups(tuple(joined), " ".join(sentences), len(twins))


def _numbered(names: Sequence[Hashable]) -> list[int]:
    try:
        number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    except TypeError as error:
        raise DatasetError(
            f"A group is named by a text or a number, not by {type(names[0]).__name__}s."
        ) from error
    return [number[name] for name in names]


def _twins(texts: Sequence[str], labels: NDArray[np.int64]) -> Pairs:
    """Pairs of texts of different classes that are written as counterparts."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if not len(positive) or not len(negative):
        return []
    between = similarity(*([texts[int(i)] for i in side] for side in (positive, negative)))
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


def _joined(numbers: Sequence[int], pairs: Pairs) -> list[int]:
    """Group numbers once the texts of each pair share a group."""
    of = np.unique(np.asarray(numbers, dtype=np.int64), return_inverse=True)[1]
    if not pairs:
        return list(map(int, of))
    first, second = of[np.asarray(pairs)].T
    n = int(of.max()) + 1
    edges = sparse.csr_array((np.ones(len(pairs)), (first, second)), shape=(n, n))
    component = connected_components(edges, directed=False)[1]
    return list(map(int, component[of]))


def _fewest(numbers: Sequence[int], labels: Sequence[int]) -> int:
    """The number of groups of the class that has fewer."""
    return min(Counter(label for _, label in set(zip(numbers, labels, strict=True))).values(), default=0)


def _both(numbers: Sequence[int], labels: Sequence[int]) -> int:
    """How many groups hold both classes."""
    return len(set(zip(numbers, labels, strict=True))) - len(set(numbers))
