"""Labelled prompts about statements: which are used, what is held out, how the question reads.

A question is some labelled lines of the statement's own topic, the statement, and "This statement is:" (Marks and
Tegmark, 2023); the labelled lines are never the statement itself nor another one about its subject. The span
`answer_site` marks the statement's last word token and its full stop, where truth is written, `question_end` the last
character of the question, where the answer is decided.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steerlab.datasets import Statement, StatementSet
from steerlab.errors import DatasetError, PromptError, reason
from steerlab.models import LanguageModel, Prompt

QUESTION = " This statement is:"
ANSWER_SITE, QUESTION_END = "answer_site", "question_end"
#: Words for true and false, in the order in which they are tried.
ANSWERS = ((" TRUE", " FALSE"), (" true", " false"), (" True", " False"), (" Yes", " No"))
FEWEST_TOPICS, WANTED_TOPICS = 4, 6
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
    forms: [row] "simple", "conjunction" or "disjunction"; joined statements are only ever tested on.
    clusters: [row] number of the subject, so that a statement and its negation are resampled together.
    folds: what is held out of what, usually every group in turn.
    examples: by group, further statements that label the question's opening lines.
    """

    statements: StatementSet
    groups: NDArray[np.str_]
    forms: NDArray[np.str_]
    clusters: NDArray[np.int64]
    folds: tuple[Fold, ...]
    examples: dict[str, tuple[Statement, ...]]
    by_topic: bool

    @property
    def labels(self) -> NDArray[np.bool_]:
        """[row] the truth of each statement."""
        return np.array(self.statements.labels, dtype=bool)

    @property
    def polarity(self) -> NDArray[np.int64]:
        """[row] 1 for affirmed, -1 for negated statements."""
        return np.array(self.statements.polarity)

    @property
    def simple(self) -> NDArray[np.bool_]:
        """[row] True for statements that join no others."""
        simple: NDArray[np.bool_] = self.forms == "simple"
        return simple

    @property
    def strata(self) -> NDArray[np.str_]:
        """[row] group and form: what is centred by one mean, and inside which labels are shuffled."""
        return np.char.add(np.char.add(self.groups, "/"), self.forms)

    def rows(self, groups: Sequence[str]) -> NDArray[np.int64]:
        """The rows of the simple statements of some groups."""
        return np.flatnonzero(np.isin(self.groups, list(groups)) & self.simple)

    def joined(self, groups: Sequence[str]) -> NDArray[np.int64]:
        """The rows of the joined statements of some groups."""
        return np.flatnonzero(np.isin(self.groups, list(groups)) & ~self.simple)

    def balanced(self, groups: Sequence[str], n: int, seed: int) -> NDArray[np.int64]:
        """About `n` rows of some groups, as many true as false ones, spread evenly over the groups."""
        rng = np.random.default_rng(seed)
        per_group = max(1, n // (2 * len(groups)))
        picked = [
            rng.permutation(np.flatnonzero((self.groups == group) & (self.labels == label) & self.simple))[
                :per_group
            ]
            for group in groups
            for label in (True, False)
        ]
        return np.sort(np.concatenate(picked))


def plan(
    statements: StatementSet, *, per_topic: int, seed: int, held_out: int | None = None, shots: int = 4
) -> Plan:
    """Choose statements, labelled examples and folds.

    per_topic: at most so many statements of each topic and form, balanced. held_out: None holds every topic out in
    turn; a number holds out so many at once, in a single fold. Topics with fewer than ten simple statements of either
    class are left out, and joined statements of topics that have no simple ones.

    Raises:
        DatasetError: when too few statements are left to hold any out.
    """
    simple = StatementSet(item for item in statements if item.form == "simple")
    by_topic = _big_enough(simple)
    named = len(by_topic) >= FEWEST_TOPICS
    groups = {topic: simple.topic(topic) for topic in by_topic} if named else _random_parts(simple, seed)
    examples, rows = {}, []
    for name, members in groups.items():
        examples[name] = examples_of(members, shots, seed)
        chosen = StatementSet(not_shown(members, examples[name])).sample(per_topic, seed)
        rows += [(item, name) for item in chosen]
    rows += [(item, item.topic) for item in _joined(statements, by_topic if named else [], per_topic, seed)]
    return Plan(
        statements=StatementSet(item for item, _ in rows),
        groups=np.array([name for _, name in rows]),
        forms=np.array([item.form for item, _ in rows]),
        clusters=np.unique([f"{item.topic}/{subject(item)}" for item, _ in rows], return_inverse=True)[
            1
        ].astype(np.int64),
        folds=_folds(list(groups), held_out, seed),
        examples=examples,
        by_topic=named,
    )


def some_folds(folds: Sequence[Fold], n: int | None, seed: int) -> tuple[int, ...]:
    """Numbers of `n` folds drawn at random, in order; all of them for None."""
    if n is None or n >= len(folds):
        return tuple(range(len(folds)))
    return tuple(sorted(random.Random(seed).sample(range(len(folds)), n)))


def examples_of(members: StatementSet, shots: int, seed: int) -> tuple[Statement, ...]:
    """Labelled lines, true and false in turn, about different subjects and of both polarities where there are."""
    picked: list[Statement] = []
    pool = list(members.sample(len(members), seed + 1))
    wanted = [(label, polarity) for polarity in (1, -1) for label in (True, False)]
    for number in range(shots):
        label, polarity = wanted[number % len(wanted)]
        fresh = [
            item
            for item in pool
            if item.label == label and subject(item) not in {subject(shown) for shown in picked}
        ]
        alike = [item for item in fresh if item.polarity == polarity]
        picked += (alike or fresh)[:1]
    return tuple(picked)


def not_shown(
    members: Iterable[Statement], examples: Sequence[Statement], *, by_subject: bool = True
) -> list[Statement]:
    """The statements that the labelled lines do not give away.

    by_subject: drop every statement about a subject of the lines; otherwise only those whose text the lines contain,
    as the published code does.
    """
    shown = "\n".join(item.text for item in examples)
    taken = {subject(item) for item in examples} if by_subject else set()
    return [item for item in members if item.text not in shown and subject(item) not in taken]


def subject(statement: Statement) -> str:
    """What the statement is about: its subject (two joined ones' both), or the whole text where it is not known."""
    spans = [statement.spans[name] for name in ("first_subject", "subject") if name in statement.spans]
    return " / ".join(sorted(statement.text[start:end] for start, end in spans)) or statement.text


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
    text = opening + statement.text + QUESTION
    return Prompt(text, spans={ANSWER_SITE: (last - 1, end), QUESTION_END: (len(text) - 1, len(text))})


def answer_words(models: Iterable[LanguageModel], answers: tuple[str, str] | None = None) -> tuple[str, str]:
    """The words for true and false that are asked for: those named, else the first of `ANSWERS` that fit.

    Words fit that are two different single tokens in every model.

    Raises:
        PromptError: the named words, or all of `ANSWERS`, do not fit.
    """
    asked = tuple(models)
    if answers is not None and (
        isinstance(answers, str) or len(answers) != 2 or not all(isinstance(word, str) for word in answers)
    ):
        raise PromptError(f"Answers are two words, for true and for false, not {answers!r}.")
    for words in ANSWERS if answers is None else ((answers[0], answers[1]),):
        try:
            for model in asked:
                answer_tokens(model, words)
        except PromptError as error:
            if answers is not None:
                raise PromptError(
                    f"{spoken(words)} cannot be asked for: {reason(error)}; begin it with a space, or name two other "
                    "words."
                ) from error
            continue
        return words
    tried = ", ".join(map(spoken, ANSWERS))
    raise PromptError(
        f"None of the answers {tried} are single tokens in {' and '.join(model.name for model in asked)}; name two "
        "words that are (answers=, --answers)."
    )


def spoken(words: tuple[str, str]) -> str:
    """Both answer words in a sentence: "TRUE or FALSE"."""
    return " or ".join(word.strip() for word in words)


def answer_tokens(model: LanguageModel, answers: tuple[str, str]) -> tuple[int, int]:
    """Token ids of the two answer words.

    Raises:
        PromptError: one is not a single token of this model, or both are the same.
    """
    true, false = (model.token_id(word) for word in answers)
    if true == false:
        raise PromptError(f"The answers {answers[0]!r} and {answers[1]!r} are one token in {model.name}.")
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
    if any(min(sum(part.labels), len(part) - sum(part.labels)) < _FEWEST_A_CLASS for part in parts.values()):
        raise DatasetError(
            f"{len(statements)} statements are too few to find a truth direction and test it on held-out ones: give "
            f"at least {_FEWEST_A_CLASS} true and {_FEWEST_A_CLASS} false ones on each of four topics, or about 150."
        )
    return parts


def _joined(statements: StatementSet, topics: Sequence[str], per_topic: int, seed: int) -> list[Statement]:
    kinds = [(topic, form) for topic in topics for form in ("conjunction", "disjunction")]
    return [
        item
        for topic, form in kinds
        for item in StatementSet(
            item for item in statements if item.topic == topic and item.form == form
        ).sample(per_topic, seed)
    ]


def _folds(groups: list[str], held_out: int | None, seed: int) -> tuple[Fold, ...]:
    if held_out is None:
        return tuple(Fold(tuple(name for name in groups if name != test), (test,)) for test in groups)
    test = sorted(random.Random(seed).sample(groups, min(held_out, len(groups) - 2)))
    return (Fold(tuple(name for name in groups if name not in test), tuple(test)),)


def _last_word_end(text: str) -> int:
    """Where the last letter or digit of `text` ends."""
    return next((place + 1 for place in reversed(range(len(text))) if text[place].isalnum()), len(text))
