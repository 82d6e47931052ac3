"""Labelled prompts about statements: which are used, what is held out, how the question reads.

A question is some labelled lines of the statement's own topic, the statement, and "This statement is:" (Marks and
Tegmark, 2023); the labelled lines are never the statement itself nor another one about its subject. The span
`answer_site` marks the statement's last word token and its full stop, where truth is written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerlab.datasets import Statement, StatementSet
from steerlab.errors import DatasetError, SteerlabError
from steerlab.models import LanguageModel, Prompt

QUESTION = " This statement is:"
ANSWER_SITE = "answer_site"
_FEWEST_A_CLASS = 8
_RANDOM_PARTS = 6


@dataclass(frozen=True)
class Fold:
    """Groups (topics) to train on and groups to test on, none in both."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The statements of a study, row by row, and what is held out of what.

    groups: [row] the statement's topic, or a random part where the statements name fewer than four topics.
    clusters: [row] number of the subject, so that a statement and its negation are resampled together.
    examples: by group, further statements that label the question's opening lines.
    """

    statements: StatementSet
    groups: NDArray[np.str_]
    clusters: NDArray[np.int64]
    folds: tuple[Fold, ...]
    examples: dict[str, tuple[Statement, ...]]
    by_topic: bool

    @property
    def labels(self) -> NDArray[np.bool_]:
        """[row] the truth of each statement."""
        return np.array(self.statements.labels, dtype=bool)

    def rows(self, groups: Sequence[str]) -> NDArray[np.int64]:
        """The rows of some groups."""
        return np.flatnonzero(np.isin(self.groups, list(groups)))

    def balanced(self, groups: Sequence[str], n: int, seed: int) -> NDArray[np.int64]:
        """About `n` rows of some groups, as many true as false ones, spread evenly over the groups."""
        rng = np.random.default_rng(seed)
        each = max(1, n // (2 * len(groups)))
        picked = [
            rng.permutation(np.flatnonzero((self.groups == group) & (self.labels == label)))[:each]
            for group in groups
            for label in (True, False)
        ]
        return np.sort(np.concatenate(picked))


def plan(
    statements: StatementSet, *, per_topic: int, held_out: int | None, seed: int, shots: int = 4
) -> Plan:
    """Choose statements, labelled examples and folds.

    per_topic: at most so many statements of each topic, balanced. held_out: so many topics are tested in one fold;
    None leaves every topic out in turn. Topics with fewer than eight statements of either class are left out.

    Raises:
        DatasetError: when too few statements are left to hold any out.
    """
    by_topic = _big_enough(statements)
    if len(by_topic) >= 4:
        groups = {topic: statements.topic(topic) for topic in by_topic}
    else:
        groups = _random_parts(statements, seed)
    examples, chosen = {}, {}
    for name, members in groups.items():
        examples[name] = _examples(members, shots, seed)
        taken = {subject(example) for example in examples[name]}
        rest = [item for item in members if subject(item) not in taken]
        chosen[name] = StatementSet(rest).sample(per_topic, seed)
    rows = [(item, name) for name, members in chosen.items() for item in members]
    subjects = [f"{item.topic}/{subject(item)}" for item, _ in rows]
    return Plan(
        statements=StatementSet(item for item, _ in rows),
        groups=np.array([name for _, name in rows]),
        clusters=np.unique(subjects, return_inverse=True)[1].astype(np.int64),
        folds=_folds(list(groups), held_out, seed),
        examples=examples,
        by_topic=len(by_topic) >= 4,
    )


def subject(statement: Statement) -> str:
    """What the statement is about: its subject, or the whole text where the subject is not known."""
    if "subject" not in statement.spans:
        return statement.text
    start, end = statement.spans["subject"]
    return statement.text[start:end]


def question(
    statement: Statement, examples: Sequence[Statement], answers: tuple[str, str], order: int | None = None
) -> Prompt:
    """Labelled lines, the statement and the question; `order` seeds the order of the lines (None keeps it)."""
    shown = list(examples)
    if order is not None:
        random.Random(order).shuffle(shown)
    lines = [f"{item.text}{QUESTION}{answers[0] if item.label else answers[1]}\n" for item in shown]
    opening = "".join(lines)
    last = len(opening) + _last_word_end(statement.text)
    end = len(opening) + len(statement.text)
    return Prompt(opening + statement.text + QUESTION, spans={ANSWER_SITE: (last - 1, end)})


def answer_tokens(model: LanguageModel, answers: tuple[str, str]) -> tuple[int, int]:
    """Token ids of the two answer words.

    Raises:
        SteerlabError: when one is not a single token of this model, or both are the same.
    """
    true, false = (model.token_id(word) for word in answers)
    if true == false:
        raise SteerlabError(f"The answers {answers[0]!r} and {answers[1]!r} are one token in {model.name}.")
    return true, false


# -- private, in the order they are called --


def _big_enough(statements: StatementSet) -> list[str]:
    def counts(topic: str) -> int:
        labels = statements.topic(topic).labels
        return min(sum(labels), len(labels) - sum(labels))

    return [topic for topic in statements.topics_present if counts(topic) >= _FEWEST_A_CLASS + 2]


def _random_parts(statements: StatementSet, seed: int) -> dict[str, StatementSet]:
    """Six random parts, statements about one subject in one part."""
    subjects = sorted({subject(item) for item in statements})
    random.Random(seed).shuffle(subjects)
    part = {name: number % _RANDOM_PARTS for number, name in enumerate(subjects)}
    parts = {
        f"part {number + 1}": StatementSet(item for item in statements if part[subject(item)] == number)
        for number in range(_RANDOM_PARTS)
    }
    if any(min(sum(each.labels), len(each) - sum(each.labels)) < _FEWEST_A_CLASS for each in parts.values()):
        raise DatasetError(
            f"{len(statements)} statements are too few to find a truth direction and test it on held-out ones: give "
            f"at least {_FEWEST_A_CLASS} true and {_FEWEST_A_CLASS} false ones on each of four topics, or about 150."
        )
    return parts


def _examples(members: StatementSet, shots: int, seed: int) -> tuple[Statement, ...]:
    """Labelled lines, true and false in turn, about different subjects and of both polarities where there are."""
    picked: list[Statement] = []
    pool = list(members.sample(len(members), seed + 1))
    wanted = [(label, polarity) for polarity in (1, -1) for label in (True, False)]
    for number in range(shots):
        label, polarity = wanted[number % len(wanted)]
        fresh = [
            item
            for item in pool
            if item.label == label and subject(item) not in {subject(one) for one in picked}
        ]
        alike = [item for item in fresh if item.polarity == polarity]
        picked += (alike or fresh)[:1]
    return tuple(picked)


def _folds(groups: list[str], held_out: int | None, seed: int) -> tuple[Fold, ...]:
    if held_out is None:
        return tuple(Fold(tuple(name for name in groups if name != test), (test,)) for test in groups)
    test = sorted(random.Random(seed).sample(groups, min(held_out, len(groups) - 2)))
    return (Fold(tuple(name for name in groups if name not in test), tuple(test)),)


def _last_word_end(text: str) -> int:
    """Where the last letter or digit of `text` ends."""
    return next((place + 1 for place in reversed(range(len(text))) if text[place].isalnum()), len(text))
