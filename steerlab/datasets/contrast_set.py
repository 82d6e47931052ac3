"""Two kinds of prompts held against each other (harmful and harmless requests, say), in three splits.

Splits of people's own prompts are made from whole groups (see `datasets.groups`): matched prompts of the two kinds and
rewordings of one prompt stand in one split.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from steerlab.datasets.groups import groups_of
from steerlab.errors import DatasetError
from steerlab.showing import cut, html_table, html_text

SPLITS = ("train", "val", "test")
SHARES = (0.5, 0.2, 0.3)


@dataclass(frozen=True, slots=True, repr=False)
class ContrastSet:
    """Prompts of two kinds; `splits` names, for each positive and each negative prompt, its split.

    An empty `splits` means that the prompts are not split (or are one split already). `matched` says that the i-th
    positive and the i-th negative prompt are a pair, which is held out whole. Raises `DatasetError` for a text of both
    kinds, and for matched prompts that do not come in pairs of one split.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    positive_name: str = "harmful"
    negative_name: str = "harmless"
    splits: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    matched: bool = False

    def __post_init__(self) -> None:
        both = set(self.positive) & set(self.negative)
        if both:
            kinds = f"{self.positive_name} and {self.negative_name} ({len(both)} of them)"
            raise DatasetError(
                f"Texts stand in both kinds, {kinds}; a text has one label, so leave out what has two."
            )
        if self.matched and (len(self.positive) != len(self.negative) or self.splits[0] != self.splits[1]):
            raise DatasetError(
                f"{len(self.positive)} {self.positive_name} and {len(self.negative)} {self.negative_name} texts are no "
                "pairs; matched texts come in equal numbers, both of a pair in one split."
            )

    @classmethod
    def from_texts(
        cls,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        positive_name: str = "harmful",
        negative_name: str = "harmless",
        groups: Sequence[Hashable] | None = None,
        matched: bool = False,
        seed: int = 0,
    ) -> ContrastSet:
        """A set whose splits are drawn here, fixed by the seed; whole groups stand in one split.

        groups: one name a prompt, positive first; None finds matched prompts and rewordings. matched: the i-th prompts
        of both kinds are a pair, whatever their words; without `groups` each pair is a group.
        """
        one = cls(tuple(positive), tuple(negative), positive_name, negative_name, matched=matched)
        texts, kinds = [*positive, *negative], [0] * len(positive) + [1] * len(negative)
        names = _assign(groups_of(texts, kinds, groups or one.pairs).numbers, kinds, seed)
        return replace(one, splits=(tuple(names[: len(positive)]), tuple(names[len(positive) :])))

    @property
    def pairs(self) -> list[int] | None:
        """The number of each prompt's pair, positive first, where they are matched; else None."""
        return [*range(len(self.positive))] * 2 if self.matched else None

    def split(self, name: str) -> ContrastSet:
        """The prompts of one split, "train", "val" or "test"; DatasetError for another name or an unsplit set."""
        if name not in SPLITS or not any(self.splits):
            known = ", ".join(SPLITS) if any(self.splits) else "none, it is not split"
            raise DatasetError(f"There is no split {name!r} in this contrast set; its splits are {known}.")
        positive, negative = (
            tuple(text for text, at in zip(texts, where, strict=True) if at == name)
            for texts, where in zip((self.positive, self.negative), self.splits, strict=True)
        )
        return replace(self, positive=positive, negative=negative, splits=((), ()))

    def balanced(self, seed: int = 0) -> ContrastSet:
        """As many prompts of either kind in every split: some of the larger kind are drawn by the seed.

        Matched prompts are as many already.
        """
        if self.matched:
            return self
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
        """A stable hash of both lists, their splits and whether they match, for manifests and saved directions."""
        parts = (self.positive, self.negative, self.positive_name, self.negative_name, self.splits)
        # Sets that are not matched keep the hash that manifests of before hold.
        content = repr((*parts, "matched") if self.matched else parts)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

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
