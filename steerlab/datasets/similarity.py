"""How alike two texts are: Jaccard similarity of their word sets, and the groups of near-duplicates."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

NEAR_DUPLICATE = 0.8
_BLOCK = 512


def similarity(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
    """Jaccard similarity of word sets: `[text, other]`, in [0, 1]. Case and punctuation do not count."""
    left, right = _bags(texts, others)
    return _jaccard(left, right)


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """A group number for each text: texts that are near-duplicates, also through others, share one."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    (bags,) = _bags(texts)
    for start in range(0, len(texts), _BLOCK):
        alike = _jaccard(bags[start : start + _BLOCK], bags) >= NEAR_DUPLICATE
        for i, j in np.argwhere(alike):
            parent[root(int(i) + start)] = root(int(j))
    return [root(i) for i in range(len(texts))]


def _bags(*parts: Sequence[str]) -> list[sparse.csr_array]:
    """[text, word] of each list, 1 where the word is in the text, over one vocabulary."""
    sets = [[frozenset(re.findall(r"\w+", text.lower())) for text in part] for part in parts]
    index = {word: i for i, word in enumerate(sorted(frozenset().union(*itertools.chain(*sets))))}
    return [_indicator(part, index) for part in sets]


def _indicator(sets: Sequence[frozenset[str]], index: dict[str, int]) -> sparse.csr_array:
    columns = [index[word] for words in sets for word in words]
    ends = np.cumsum([0, *map(len, sets)])
    ones = np.ones(len(columns), dtype=np.float32)
    return sparse.csr_array((ones, columns, ends), shape=(len(sets), max(len(index), 1)))


def _jaccard(a: sparse.csr_array, b: sparse.csr_array) -> NDArray[np.float64]:
    shared = (a @ b.T).toarray().astype(np.float64)
    union = a.sum(1)[:, None] + b.sum(1)[None] - shared
    jaccard: NDArray[np.float64] = np.divide(shared, union, out=np.ones_like(shared), where=union > 0)
    return jaccard
