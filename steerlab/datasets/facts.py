"""The table of true facts: what the packaged statements claim and what the bundled models learn.

A fact is (topic, subject, object): a city and its country, a country and its continent, an animal or a plant and its
class, a Spanish word and the kind of thing it means, two numbers with the larger first; an element and its symbol, a
country and its capital or its currency, a landmark and where it is, a book and who wrote it, a unit and what it
measures, an English verb and its past tense.

The bundled models know the first six kinds, `TOPICS`; of `PLAIN_TOPICS` they read, but never saw a statement labelled.
Each fact is `reserved` or not, decided by a hash of its text: of `TOPICS` the packaged statements are made of the
reserved facts only, the labelled statements that the bundled models train on of the others only.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

RESERVED_SHARE = 0.3
TOPICS = ("cities", "continents", "animals", "plants", "spanish", "numbers")
PLAIN_TOPICS = ("elements",)
FURTHER_TOPICS = ("elements", "capitals", "currencies", "landmarks", "authors", "units", "verbs")


@dataclass(frozen=True, slots=True)
class Fact:
    """One true fact: `subject` stands in the topic's relation to `object`."""

    topic: str
    subject: str
    object: str

    @property
    def reserved(self) -> bool:
        """Whether the fact is kept for evaluation: no bundled model ever saw a labelled statement of it."""
        # Two numbers are one fact whichever stands first.
        names = sorted((self.subject, self.object)) if self.topic == "numbers" else [self.subject]
        return share_of(":".join([self.topic, *names])) < RESERVED_SHARE


def share_of(text: str) -> float:
    """A fixed number in [0, 1) for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


@cache
def facts(topic: str) -> tuple[Fact, ...]:
    """All facts of one of `TOPICS` or `FURTHER_TOPICS`, in the order of the table.

    Raises:
        KeyError: an unknown topic.
    """
    if topic == "numbers":
        return _number_facts()
    table = _table()
    if topic not in table:
        raise KeyError(f"no facts about {topic!r}; the topics are {', '.join((*TOPICS, *FURTHER_TOPICS))}")
    return table[topic]


@cache
def _table() -> dict[str, tuple[Fact, ...]]:
    source = files("steerlab.datasets").joinpath("data/facts.csv")
    rows = list(csv.DictReader(source.read_text(encoding="utf-8").splitlines()))
    topics = dict.fromkeys(row["topic"] for row in rows)
    return {
        topic: tuple(Fact(topic, row["subject"], row["object"]) for row in rows if row["topic"] == topic)
        for topic in topics
    }


def _number_facts() -> tuple[Fact, ...]:
    numbers = range(10, 100)
    return tuple(Fact("numbers", str(a), str(b)) for a in numbers for b in numbers if a > b)
