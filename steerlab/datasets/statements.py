"""Statements that are true or false, with the character spans of what they are about.

Every packaged fact gives four statements: affirmed and true, affirmed and false, negated and true, negated and false
("The city of Lyon is not in Japan."). Label and polarity are therefore balanced against each other in every topic, and
every statement ends with a full stop, the position at which truth is usually read.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, overload

from steerlab.datasets.facts import TOPICS, Fact, facts, objects, share_of

Form = Literal["simple", "conjunction", "disjunction"]

NUMBER_FACTS = 36
_FORMS = {
    "cities": "The city of {s} is {n}in {o}.",
    "continents": "The country {s} is {n}in {o}.",
    "animals": "{as} {s} is {n}{ao} {o}.",
    "plants": "{as} {s} is {n}{ao} {o}.",
    "spanish": "The Spanish word {s} is {n}for {ao} {o}.",
    "numbers": "{s} is {n}larger than {o}.",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, its truth, and where in `text` its subject and object stand.

    `polarity` is +1 for an affirmation and -1 for a negation; `spans` maps names ("subject", "object") to
    (start, end) character positions, and is empty where they are unknown; `form` tells two joined statements
    ("conjunction", "disjunction") from a "simple" one.
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
        return f"StatementSet({len(self)} statements, topics {', '.join(self.topics_present)})"

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


def state(fact: Fact, *, object: str | None = None, negated: bool = False) -> Statement:
    """The statement that a fact's subject stands (or, negated, does not stand) in the relation to `object`.

    Without `object` the fact's own is named. The label follows: true when exactly one of "names the true object" and
    "negated" holds.
    """
    named = fact.object if object is None else object
    holds = int(fact.subject) > int(named) if fact.topic == "numbers" else named == fact.object
    text, spans = _render(_FORMS[fact.topic], fact.subject, named, negated)
    return Statement(text, holds != negated, fact.topic, -1 if negated else 1, spans)


@cache
def statements() -> StatementSet:
    """The packaged statements: every reserved fact affirmed and negated, with its own and with another object."""
    return StatementSet(item for topic in TOPICS for fact in _packaged(topic) for item in _four(fact))


def _packaged(topic: str) -> list[Fact]:
    reserved = [fact for fact in facts(topic) if fact.reserved]
    if topic != "numbers":
        return reserved
    return sorted(reserved, key=lambda fact: share_of(f"packaged:{fact.subject}:{fact.object}"))[
        :NUMBER_FACTS
    ]


def _four(fact: Fact) -> list[Statement]:
    if fact.topic == "numbers":
        turned = Fact("numbers", fact.object, fact.subject)
        return [state(each, negated=negated) for each in (fact, turned) for negated in (False, True)]
    # The false object comes from the true objects of the topic's reserved facts, so that no object betrays the label.
    others = [other.object for other in facts(fact.topic) if other.reserved and other.object != fact.object]
    wrong = others[int(share_of(f"wrong:{fact.topic}:{fact.subject}") * len(others))]
    return [
        state(fact, object=object, negated=negated)
        for object in (fact.object, wrong)
        for negated in (False, True)
    ]


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _render(form: str, subject: str, object: str, negated: bool) -> tuple[str, dict[str, tuple[int, int]]]:
    words = {
        "as": _article(subject).capitalize(),
        "ao": _article(object),
        "n": "not " if negated else "",
    }
    before, after = form.split("{s}")
    middle, end = after.split("{o}")
    head = before.format(**words)
    link = middle.format(**words)
    start = len(head) + len(subject) + len(link)
    text = f"{head}{subject}{link}{object}{end}"
    return text, {"subject": (len(head), len(head) + len(subject)), "object": (start, start + len(object))}


def other_objects(fact: Fact) -> tuple[str, ...]:
    """The objects of the topic that make the fact's statement false."""
    return tuple(name for name in objects(fact.topic) if name != fact.object)
