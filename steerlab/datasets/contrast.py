"""Two kinds of prompts held against each other (harmful and harmless requests, say), in three splits.

Splits of people's own prompts are made from groups of near-duplicates (Jaccard similarity of their word sets at or
above `NEAR_DUPLICATE`), so that no prompt of one split is a rewording of a prompt in another.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from steerlab.errors import DatasetError
from steerlab.showing import cut, html_table, html_text

SPLITS = ("train", "val", "test")
SHARES = (0.5, 0.2, 0.3)
NEAR_DUPLICATE = 0.8
_BLOCK = 512


@dataclass(frozen=True, slots=True, repr=False)
class ContrastSet:
    """Prompts of two kinds; `splits` names, for each positive and each negative prompt, its split.

    An empty `splits` means that the prompts are not split (or are one split already).
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    positive_name: str = "harmful"
    negative_name: str = "harmless"
    splits: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @classmethod
    def from_texts(
        cls,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        positive_name: str = "harmful",
        negative_name: str = "harmless",
        seed: int = 0,
    ) -> ContrastSet:
        """A set whose splits are drawn here: fixed by the seed, near-duplicates always in the same split."""
        texts = [*positive, *negative]
        names = _assign(near_duplicate_groups(texts), [0] * len(positive) + [1] * len(negative), seed)
        splits = (tuple(names[: len(positive)]), tuple(names[len(positive) :]))
        return cls(tuple(positive), tuple(negative), positive_name, negative_name, splits)

    def split(self, name: str) -> ContrastSet:
        """The prompts of one split, "train", "val" or "test"; DatasetError for another name or an unsplit set."""
        if name not in SPLITS or not any(self.splits):
            known = ", ".join(SPLITS) if any(self.splits) else "none, it is not split"
            raise DatasetError(f"There is no split {name!r} in this contrast set; its splits are {known}.")
        positive, negative = (
            tuple(text for text, at in zip(texts, where, strict=True) if at == name)
            for texts, where in zip((self.positive, self.negative), self.splits, strict=True)
        )
        return ContrastSet(positive, negative, self.positive_name, self.negative_name)

    def balanced(self, seed: int = 0) -> ContrastSet:
        """As many prompts of either kind in every split: some of the larger kind are drawn by the seed."""
        rng = random.Random(seed)
        kinds = (self.positive, self.negative)
        places = [where or ("",) * len(texts) for texts, where in zip(kinds, self.splits, strict=True)]
        counts = {name: min(where.count(name) for where in places) for name in (*SPLITS, "")}

        def drawn(where: tuple[str, ...]) -> list[int]:
            members = {name: [i for i, at in enumerate(where) if at == name] for name in counts}
            return sorted(i for name, n in counts.items() for i in rng.sample(members[name], n))

        chosen = [drawn(where) for where in places]
        positive, negative = (
            tuple(texts[i] for i in indices) for texts, indices in zip(kinds, chosen, strict=True)
        )
        if not any(self.splits):
            return replace(self, positive=positive, negative=negative)
        first, second = (
            tuple(where[i] for i in indices) for where, indices in zip(places, chosen, strict=True)
        )
        return replace(self, positive=positive, negative=negative, splits=(first, second))

    @property
    def hash(self) -> str:
        """A stable hash of both lists and their splits, for manifests and saved directions."""
        parts = (self.positive, self.negative, self.positive_name, self.negative_name, self.splits)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)

    def __repr__(self) -> str:
        sizes = f"{len(self.positive)} {self.positive_name}, {len(self.negative)} {self.negative_name}"
        where = [*self.splits[0], *self.splits[1]]
        splits = ", ".join(f"{name} {where.count(name)}" for name in SPLITS) if where else "one split"
        examples = ", ".join(repr(cut(text, 60)) for text in self._harmless())
        return f"ContrastSet({sizes}; {splits}; for example {examples})"

    def _repr_html_(self) -> str:
        kinds = [
            (name, len(texts), *(where.count(split) for split in SPLITS))
            for name, texts, where in zip(
                (self.positive_name, self.negative_name),
                (self.positive, self.negative),
                self.splits,
                strict=True,
            )
        ]
        table = html_table("Two kinds of prompts", ["Kind", "Prompts", *SPLITS], kinds)
        return table + "".join(html_text(f"For example: {cut(text)}") for text in self._harmless())

    def _harmless(self) -> tuple[str, ...]:
        """Two examples of the kind that may be shown."""
        return (self.positive if self.positive_name == "harmless" else self.negative)[:2]


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


def _assign(groups: Sequence[int], kinds: Sequence[int], seed: int) -> list[str]:
    """Give every group to the split that lacks most prompts of the group's kinds, in a seeded order."""
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    totals = [max(kinds.count(kind), 1) for kind in (0, 1)]
    filled = {name: [0.0, 0.0] for name in SPLITS}
    names = [""] * len(groups)
    for group in order:
        counts = [sum(kinds[i] == kind for i in members[group]) / totals[kind] for kind in (0, 1)]

        def lack(name: str, counts: list[float] = counts) -> float:
            share = SHARES[SPLITS.index(name)]
            return sum(c * (share - f) / share for c, f in zip(counts, filled[name], strict=True))

        chosen = max(SPLITS, key=lack)
        for kind in (0, 1):
            filled[chosen][kind] += counts[kind]
        for i in members[group]:
            names[i] = chosen
    return names
