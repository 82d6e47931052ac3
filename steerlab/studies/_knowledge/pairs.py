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
from typing import Literal

import numpy as np
from jaxtyping import Int

from steerlab.datasets import Differ, Matching, Statement, StatementPair, StatementSet, match
from steerlab.errors import DatasetError, PromptError
from steerlab.models import LanguageModel, Prompt
from steerlab.readouts.questions import QUESTION, examples_of, not_shown, question

Columns = Literal["roles", "tokens"]
ROLES = (
    "before",
    "first subject",
    "middle subject",
    "last subject",
    "between",
    "first object",
    "middle object",
    "last object",
    "full stop",
    "question",
    "last token",
)


@dataclass(frozen=True)
class TracingPair:
    """A true and a false prompt with equally many tokens, and where what stands.

    Attributes:
        true, false: statements in their prompts, spans "subject", "object" and "statement" of the prompt's text.
        statements: the two alone.
        first: the first traced token, which is the statement's first.
        roles: of every token from `first` on.
        topic: of both statements.
        cluster: pairs that share a statement have one number.
    """

    true: Prompt
    false: Prompt
    statements: StatementPair
    first: int
    roles: tuple[str, ...]
    topic: str
    cluster: int = 0

    @property
    def positions(self) -> tuple[int, ...]:
        """The traced tokens."""
        return tuple(range(self.first, self.first + len(self.roles)))


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
    every = (
        list(statements)
        if isinstance(statements, StatementSet)
        else [item for pair in statements for item in (pair.true, pair.false)]
    )
    for model in models:
        answer_ids(model, answers)
    simple = [item for item in every if item.form == "simple"]
    _require_spans(simple)
    topics = dict.fromkeys(item.topic for item in simple)
    lines = {topic: examples_of(StatementSet(_of(simple, topic)), shots, seed) for topic in topics}
    traced = [item for topic in topics for item in not_shown(_of(simple, topic), lines[topic])]
    laid = _Layouts(models, lines, answers, seed)
    reasons = Counter({"in a labelled line": len(simple) - len(traced)})
    if isinstance(statements, StatementSet):
        found = match(traced, _group(laid, differ), matching=matching, seed=seed)
        reasons |= _unpaired(traced, found, laid)
    else:
        kept = set(map(id, traced))
        found = [pair for pair in statements if id(pair.true) in kept and id(pair.false) in kept]
        _require_aligned(found, laid)
    if not found:
        raise DatasetError(
            f"No true and false statement of one wording share their {'object' if differ == 'subject' else 'subject'} "
            "and have equally many tokens; give more statements of each topic, or pair them on the other one "
            "(differ=...)."
        )
    chosen = _spread(found, limit, seed)
    clusters = _clusters(chosen)
    pairs = tuple(
        laid.pair(pair, number, cluster)
        for number, (pair, cluster) in enumerate(zip(chosen, clusters, strict=True))
    )
    counts = Counter(item.text for pair in chosen for item in (pair.true, pair.false))
    return TracingPairs(
        pairs,
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


def _group(laid: _Layouts, differ: Differ) -> Callable[[Statement], Hashable | None]:
    """What two statements of a pair must agree in: topic, words around the spans, one of the two, and token counts."""
    shared = "object" if differ == "subject" else "subject"

    def group(item: Statement) -> Hashable | None:
        layout = laid.of(item)
        return None if layout is None else (item.topic, _words(item), _part(item, shared), layout)

    return group


def _unpaired(traced: Sequence[Statement], found: Sequence[StatementPair], laid: _Layouts) -> Counter[str]:
    used = {item.text for pair in found for item in (pair.true, pair.false)}
    known = [item for item in traced if laid.of(item) is not None]
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


class _Layouts:
    """Prompts of statements, and the roles of their tokens in every model."""

    def __init__(
        self,
        models: Sequence[LanguageModel],
        lines: Mapping[str, Sequence[Statement]],
        answers: tuple[str, str],
        seed: int,
    ) -> None:
        self._models, self._lines, self._answers, self._seed = models, lines, answers, seed
        self._known: dict[str, tuple[str, ...] | None] = {}

    def prompt(self, item: Statement, order: int) -> Prompt:
        """The labelled lines in some order, the statement and the question."""
        asked = question(item, self._lines[item.topic], self._answers, order)
        start = len(asked.text) - len(QUESTION) - len(item.text)
        spans = {
            name: (low + start, high + start)
            for name, (low, high) in item.spans.items()
            if name in ("subject", "object")
        }
        return Prompt(asked.text, {**spans, "statement": (start, start + len(item.text))})

    def of(self, item: Statement) -> tuple[str, ...] | None:
        """Roles of its tokens; None where the two are not known or not apart, or models cut them otherwise."""
        if item.text not in self._known:
            self._known[item.text] = self._find(item)
        return self._known[item.text]

    def pair(self, pair: StatementPair, number: int, cluster: int) -> TracingPair:
        """Both prompts with the labelled lines in the same order."""
        order = random.Random(f"{self._seed} {number}").randrange(2**31)
        true, false = self.prompt(pair.true, order), self.prompt(pair.false, order)
        layouts = {roles_of(model, prompt) for model in self._models for prompt in (true, false)}
        layout = layouts.pop()
        if layouts or layout is None:
            raise PromptError(
                f"{' and '.join(model.name for model in self._models)} cut {pair.true.text!r} or {pair.false.text!r} "
                "into other tokens in its prompt, so the two have no common positions; trace each model alone."
            )
        return TracingPair(true, false, pair, *layout, pair.true.topic, cluster)

    def _find(self, item: Statement) -> tuple[str, ...] | None:
        if not {"subject", "object"} <= set(item.spans):
            return None
        found = {roles_of(model, self.prompt(item, 0)) for model in self._models}
        one = found.pop()
        return None if found or one is None else one[1]


def roles_of(model: LanguageModel, prompt: Prompt) -> tuple[int, tuple[str, ...]] | None:
    """The statement's first token, and the role of every token from there on; None where a token belongs to both
    subject and object.

    Raises:
        PromptError: a tokenizer without character offsets.
    """
    tokens = model.tokenize([prompt])
    if tokens.offsets is None:
        raise PromptError(
            f"The tokenizer of {model.name} gives no character offsets, so subjects cannot be found; use a fast one."
        )
    start, stop = prompt.spans["statement"]
    subject_at, object_at = prompt.spans["subject"], prompt.spans["object"]
    names: list[str] = []
    first = None
    for index, (low, high) in enumerate(tokens.offsets[0]):
        if high <= start or low == high:
            continue
        first = index if first is None else first
        inside = [_inside(low, high, at) for at in (subject_at, object_at)]
        if all(inside):
            return None
        names.append(
            "subject"
            if inside[0]
            else "object"
            if inside[1]
            else "question"
            if low >= stop
            else "full stop"
            if low >= max(subject_at[1], object_at[1])
            else "before"
            if high <= min(subject_at[0], object_at[0])
            else "between"
        )
    if first is None or "subject" not in names or "object" not in names:
        return None
    names[-1] = "last token"
    return first, tuple(_numbered(names))


def _inside(low: int, high: int, span: tuple[int, int]) -> bool:
    return low < span[1] and high > span[0]


def _numbered(names: Sequence[str]) -> list[str]:
    """Subject and object tokens as first, middle and last; one alone is the last."""
    made = list(names)
    for name in ("subject", "object"):
        places = [at for at, one in enumerate(names) if one == name]
        for at in places:
            made[at] = f"middle {name}"
        if places:
            made[places[0]], made[places[-1]] = f"first {name}", f"last {name}"
    return made


def _require_aligned(pairs: Sequence[StatementPair], laid: _Layouts) -> None:
    for number, pair in enumerate(pairs, start=1):
        layouts = laid.of(pair.true), laid.of(pair.false)
        if layouts[0] is None or layouts[1] is None:
            raise DatasetError(
                f"Pair {number}: subject and object of {pair.true.text!r} or {pair.false.text!r} are not marked, or "
                "share a token; give a template with {subject} and {object}."
            )
        if layouts[0] != layouts[1]:
            counts = [len(layout) for layout in layouts if layout]
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
