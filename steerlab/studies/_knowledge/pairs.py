"""Pairs of prompts that a sweep can patch between: token for token alike but for the subject (or the object).

Statements are aligned by the character spans of their subject and object, whatever the tokenizer: two of them can be a
pair when they have the same words around the spans and the same number of tokens in every part. Every token has a role
("last subject", "between", "question"); columns of a map are roles, so statements of different lengths can be averaged.

Source: Du et al. (2025), section 3 (same object, subjects differ; fixed token counts for four tokenizers).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from jaxtyping import Int

from steerlab.datasets import Differ, Matching, Statement, StatementPair, StatementSet, match
from steerlab.errors import DatasetError, PromptError
from steerlab.models import LanguageModel
from steerlab.readouts.questions import examples_of, not_shown
from steerlab.studies._knowledge.layouts import Layouts, TracingPair

Columns = Literal["roles", "tokens"]


@dataclass(frozen=True)
class TracingPairs:
    """The pairs of a study.

    Attributes:
        pairs: in random order.
        differ: what the two statements of a pair differ in.
        reused: statements that stand in more than one pair.
        left_out: statements without a pair, by reason.
        shots: labelled lines before every statement.
        answers: the two words asked for.
    """

    pairs: tuple[TracingPair, ...]
    differ: Differ
    reused: int
    left_out: Mapping[str, int]
    shots: int
    answers: tuple[str, str]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> TracingPair:
        return self.pairs[number]

    @property
    def clusters(self) -> Int[np.ndarray, " pair"]:
        """What is drawn together in a bootstrap."""
        return np.array([pair.cluster for pair in self.pairs])

    def only(self, rows: Sequence[int]) -> TracingPairs:
        """Some of the pairs."""
        return TracingPairs(
            tuple(self.pairs[row] for row in rows),
            self.differ,
            self.reused,
            self.left_out,
            self.shots,
            self.answers,
        )


def tracing_pairs(
    models: Sequence[LanguageModel],
    statements: StatementSet | Sequence[StatementPair],
    *,
    answers: tuple[str, str] = (" TRUE", " FALSE"),
    differ: Differ = "subject",
    shots: int = 4,
    limit: int | None = None,
    matching: Matching = "corrected",
    seed: int = 0,
) -> TracingPairs:
    """Make pairs whose two prompts are aligned in every model.

    Args:
        statements: labelled statements with the spans "subject" and "object", or pairs that are given (`read_pairs`).
        answers: the words asked for, each one token in every model.
        differ: "subject" pairs statements on the same object, "object" on the same subject.
        shots: labelled lines of the statement's topic before it, never about a traced subject.
        limit: at most so many pairs, spread evenly over topics.

    Raises:
        DatasetError: no statement has the spans, nothing can be paired, or given pairs whose prompts differ in length.
        PromptError: an answer that is several tokens, both the same token, or prompts beyond the context.
    """
    for model in models:
        answer_ids(model, answers)
    singly = isinstance(statements, StatementSet)
    simple = [item for item in _single(statements) if item.form == "simple"]
    _require_spans(simple)
    topics = dict.fromkeys(item.topic for item in simple)
    lines = {topic: examples_of(StatementSet(_of(simple, topic)), shots, seed) for topic in topics}
    traced = [item for topic in topics for item in not_shown(_of(simple, topic), lines[topic])]
    layouts = Layouts(models, lines, answers, seed)
    reasons = Counter({"in a labelled line": len(simple) - len(traced)})
    if singly:
        matched = match(traced, _group(layouts, differ), matching=matching, seed=seed)
        reasons |= _unpaired(traced, matched, layouts)
    else:
        matched = _given(cast("Sequence[StatementPair]", statements), traced, layouts)
    if not matched:
        raise DatasetError(
            f"No true and false statement of one wording share their {'object' if differ == 'subject' else 'subject'} "
            "and have equally many tokens; give more statements of each topic, or pair them on the other one "
            "(differ=...)."
        )
    chosen = _spread(matched, limit, seed)
    counts = Counter(item.text for pair in chosen for item in (pair.true, pair.false))
    return TracingPairs(
        tuple(
            layouts.pair(pair, number, cluster)
            for number, (pair, cluster) in enumerate(zip(chosen, _clusters(chosen), strict=True))
        ),
        differ,
        sum(n > 1 for n in counts.values()),
        {reason: n for reason, n in reasons.items() if n},
        shots,
        answers,
    )


def answer_ids(model: LanguageModel, answers: tuple[str, str]) -> tuple[int, int]:
    """The two answers' tokens.

    Raises:
        PromptError: one is not a single token of this model, or both are the same.
    """
    true, false = (model.token_id(word) for word in answers)
    if true == false:
        raise PromptError(
            f"The answers {answers[0]!r} and {answers[1]!r} are one token in {model.name}, so their logits never "
            "differ; choose words that are different tokens."
        )
    return true, false


# -- private, in the order they are called --


def _single(statements: StatementSet | Sequence[StatementPair]) -> list[Statement]:
    if isinstance(statements, StatementSet):
        return list(statements)
    return [item for pair in statements for item in (pair.true, pair.false)]


def _given(
    pairs: Sequence[StatementPair], traced: Sequence[Statement], layouts: Layouts
) -> list[StatementPair]:
    """The given pairs of which no statement is shown in a labelled line."""
    kept = set(map(id, traced))
    usable = [pair for pair in pairs if id(pair.true) in kept and id(pair.false) in kept]
    _require_aligned(usable, layouts)
    return usable


def _group(layouts: Layouts, differ: Differ) -> Callable[[Statement], Hashable | None]:
    """What two statements of a pair must agree in: topic, words around the spans, one of the two, and token counts."""
    shared = "object" if differ == "subject" else "subject"

    def group(item: Statement) -> Hashable | None:
        layout = layouts.of(item)
        return None if layout is None else (item.topic, _words(item), _part(item, shared), layout)

    return group


def _unpaired(
    traced: Sequence[Statement], matched: Sequence[StatementPair], layouts: Layouts
) -> Counter[str]:
    used = {item.text for pair in matched for item in (pair.true, pair.false)}
    known = [item for item in traced if layouts.of(item) is not None]
    return Counter(
        {
            "subject and object not known, not apart or cut otherwise": len(traced) - len(known),
            "no partner": sum(item.text not in used for item in known),
        }
    )


def _require_spans(statements: Sequence[Statement]) -> None:
    known = [item for item in statements if {"subject", "object"} <= set(item.spans)]
    if not known:
        example = f", for example {statements[0].text!r}" if statements else ""
        raise DatasetError(
            f"None of the {len(statements)} statements says where its subject and object stand{example}; name both in "
            "the file's columns, or give a template with {subject} and {object} (with_template)."
        )
    for item in known:
        if not (item.text[: item.spans["subject"][0]] + item.text[item.spans["subject"][1] :]).strip(" ."):
            raise DatasetError(
                f"The subject of {item.text!r} is the whole statement, so nothing is said of it; mark the words that "
                "name what it is about."
            )


def _of(statements: Sequence[Statement], topic: str) -> list[Statement]:
    return [item for item in statements if item.topic == topic]


def _part(item: Statement, name: str) -> str:
    return item.text[slice(*item.spans[name])]


def _words(item: Statement) -> str:
    """The statement with its subject and object taken out."""
    text = item.text
    for name, (start, end) in sorted(item.spans.items(), key=lambda entry: -entry[1][0]):
        if name in ("subject", "object"):
            text = f"{text[:start]}{{{name}}}{text[end:]}"
    return text


def _require_aligned(pairs: Sequence[StatementPair], layouts: Layouts) -> None:
    for number, pair in enumerate(pairs, start=1):
        true, false = layouts.of(pair.true), layouts.of(pair.false)
        if true is None or false is None:
            raise DatasetError(
                f"Pair {number}: subject and object of {pair.true.text!r} or {pair.false.text!r} are not marked, or "
                "share a token; give a template with {subject} and {object}."
            )
        if true != false:
            counts = len(true), len(false)
            raise DatasetError(
                f"Pair {number}: {pair.true.text!r} and {pair.false.text!r} have {counts[0]} and {counts[1]} tokens, "
                "or divide them otherwise between subject and object, so equal positions are not equal words; pair "
                "statements of equal lengths (tracing_pairs does, given single statements)."
            )


def _spread(pairs: Sequence[StatementPair], limit: int | None, seed: int) -> list[StatementPair]:
    """Some pairs in random order, spread evenly over topics and polarity."""
    groups: dict[tuple[str, int], list[StatementPair]] = {}
    for pair in pairs:
        groups.setdefault((pair.true.topic, pair.true.polarity), []).append(pair)
    rng = random.Random(seed)
    queues = list(groups.values())
    for queue in queues:
        rng.shuffle(queue)
    turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return turns if limit is None else turns[:limit]


def _clusters(pairs: Sequence[StatementPair]) -> list[int]:
    """A number for each pair, the same for pairs that share a statement, directly or through others."""
    leader: dict[str, str] = {}

    def root(text: str) -> str:
        leader.setdefault(text, text)
        while leader[text] != text:
            text = leader[text]
        return text

    for pair in pairs:
        leader[root(pair.true.text)] = root(pair.false.text)
    names = {
        name: number for number, name in enumerate(dict.fromkeys(root(pair.true.text) for pair in pairs))
    }
    return [names[root(pair.true.text)] for pair in pairs]
