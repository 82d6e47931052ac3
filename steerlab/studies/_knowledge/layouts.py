"""Which token of a statement stands for what: prompts of statements, and the role of every token in each model.

A role ("last subject", "between", "question") is found by the character spans of subject and object, whatever the
tokenizer, so statements of different lengths can be averaged over.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steerlab.datasets import Statement, StatementPair
from steerlab.errors import PromptError
from steerlab.models import LanguageModel, Prompt
from steerlab.readouts.questions import QUESTION, question

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


class Layouts:
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
        layouts = {roles_of(model, self.prompt(item, 0)) for model in self._models}
        layout = layouts.pop()
        return None if layouts or layout is None else layout[1]


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
    roles = list(names)
    for part in ("subject", "object"):
        places = [place for place, name in enumerate(names) if name == part]
        for place in places:
            roles[place] = f"middle {part}"
        if places:
            roles[places[0]], roles[places[-1]] = f"first {part}", f"last {part}"
    return roles
