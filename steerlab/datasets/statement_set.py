"""Statements that are true or false, with the character spans of what they are about."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from steerlab.showing import counted, cut, html_table, html_text

Form = Literal["simple", "conjunction", "disjunction"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, its truth, and where in `text` its subject and object stand.

    `polarity` is +1 for an affirmation and -1 for a negation; `spans` maps names ("subject", "object") to
    (start, end) character positions, and is empty where they are unknown; `form` tells two joined statements
    ("conjunction", "disjunction") from a "simple" one. Of two joined ones "subject" and "object" belong to the last,
    "first_subject" and "first_object" to the first.
    """

    text: str
    label: bool
    topic: str = "statements"
    polarity: int = 1
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    form: Form = "simple"


class StatementSet(Sequence[Statement]):
    """An ordered, immutable collection of statements."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        self._items = tuple(statements)

    @overload
    def __getitem__(self, index: int) -> Statement: ...
    @overload
    def __getitem__(self, index: slice) -> StatementSet: ...
    def __getitem__(self, index: int | slice) -> Statement | StatementSet:
        return StatementSet(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Statement]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StatementSet) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        true = sum(self.labels)
        sizes = f"{counted(len(self), 'statement')}, {true} true and {len(self) - true} false"
        examples = ", ".join(repr(cut(text, 60)) for text in self.texts[:2])
        return f"StatementSet({sizes}, topics {', '.join(self.topics_present)}; for example {examples})"

    def _repr_html_(self) -> str:
        rows = [
            (topic, len(labels), sum(labels), len(labels) - sum(labels))
            for topic in self.topics_present
            if (labels := [item.label for item in self._items if item.topic == topic])
        ]
        table = html_table("Statements", ["Topic", "Statements", "True", "False"], rows)
        return table + "".join(html_text(f"For example: {text}") for text in self.texts[:2])

    @property
    def texts(self) -> list[str]:
        """The statements' texts, in order."""
        return [item.text for item in self._items]

    @property
    def labels(self) -> list[bool]:
        """The truth of each statement, in order."""
        return [item.label for item in self._items]

    @property
    def topics(self) -> list[str]:
        """The topic of each statement, in order."""
        return [item.topic for item in self._items]

    @property
    def polarity(self) -> list[int]:
        """+1 or -1 for each statement, in order."""
        return [item.polarity for item in self._items]

    @property
    def subjects(self) -> list[str]:
        """What each statement is about, in order: its "subject" span, or the whole text where that is unknown.

        With them as groups, cross-validation keeps all statements about one subject on one side; joined statements
        are about both their subjects, whichever comes first.
        """
        return [_subject(item) for item in self._items]

    @property
    def topics_present(self) -> tuple[str, ...]:
        """The different topics, in order of first appearance."""
        return tuple(dict.fromkeys(self.topics))

    def topic(self, name: str) -> StatementSet:
        """Only the statements of one topic; KeyError where there are none."""
        chosen = [item for item in self._items if item.topic == name]
        if not chosen:
            raise KeyError(
                f"no statements of topic {name!r}; the topics are {', '.join(self.topics_present)}"
            )
        return StatementSet(chosen)

    def without(self, topic: str) -> StatementSet:
        """All statements but those of one topic."""
        return StatementSet(item for item in self._items if item.topic != topic)

    def sample(self, n: int, seed: int) -> StatementSet:
        """`n` statements (all of them where there are fewer), spread evenly over topic, label and polarity."""
        groups: dict[tuple[str, bool, int], list[Statement]] = {}
        for item in self._items:
            groups.setdefault((item.topic, item.label, item.polarity), []).append(item)
        rng = random.Random(seed)
        queues = list(groups.values())
        for queue in queues:
            rng.shuffle(queue)
        rng.shuffle(queues)
        turns = [
            queue[turn]
            for turn in range(max(map(len, queues), default=0))
            for queue in queues
            if turn < len(queue)
        ]
        chosen = turns[:n]
        rng.shuffle(chosen)
        return StatementSet(chosen)

    @property
    def hash(self) -> str:
        """A stable hash of texts, labels, topics and polarity, for manifests and saved directions."""
        digest = hashlib.sha256()
        for item in self._items:
            digest.update(repr((item.text, item.label, item.topic, item.polarity)).encode())
        return digest.hexdigest()[:16]


def _subject(item: Statement) -> str:
    spans = (item.spans[name] for name in ("first_subject", "subject") if name in item.spans)
    return " / ".join(sorted(item.text[slice(*span)] for span in spans)) or item.text
