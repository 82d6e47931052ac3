"""Questions with two answers, one showing a behaviour and one not: the pairs of contrastive activation addition.

An answer is a letter in brackets, "(A)" or "(B)", as in the published sets; `letter` and `other_letter` are the
letters alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from steerlab.errors import DatasetError


@dataclass(frozen=True, slots=True)
class ChoicePair:
    """A question that lists its lettered choices, the answer that matches the behaviour and the one that does not.

    Raises:
        DatasetError: an answer is not a letter in brackets, or both are the same.
    """

    question: str
    matching: str
    not_matching: str

    def __post_init__(self) -> None:
        if self.letter == self.other_letter:
            raise DatasetError(f"Both answers are {self.matching!r}; a pair needs two different letters.")

    @property
    def letter(self) -> str:
        """The letter of the matching answer."""
        return _letter(self.matching)

    @property
    def other_letter(self) -> str:
        """The letter of the other answer."""
        return _letter(self.not_matching)


def choices_hash(pairs: Sequence[ChoicePair]) -> str:
    """A stable hash of some pairs, for saved directions."""
    parts = [(pair.question, pair.matching, pair.not_matching) for pair in pairs]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _letter(answer: str) -> str:
    match = re.fullmatch(r"\s*\(([A-Z])\)\s*", answer)
    if match is None:
        raise DatasetError(f"The answer {answer!r} is not a letter in brackets; write it like '(A)'.")
    return match[1]
