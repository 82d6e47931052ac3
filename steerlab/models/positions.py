"""Position selectors: which tokens of a prompt are meant, said in words instead of arithmetic.

A selector answers with token indices in the unpadded prompt (0 is the first token, BOS included where
there is one). Spans are character spans of the prompt, found through the tokenizer's offsets; a token
that overlaps a span belongs to it, so merged tokens do not get lost. `a | b` selects both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerlab.errors import PromptError

if TYPE_CHECKING:
    from steerlab.models.prompts import Tokens


class Selector(ABC):
    """A rule that picks tokens of a prompt, and says whether generated tokens are meant as well."""

    #: Whether tokens written by the model after the prompt are selected too.
    generated: bool = False
    #: Whether the selector must know the prompt's text or length; the others also work on raw model calls.
    needs_prompt: bool = True

    @abstractmethod
    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Ascending token indices in the unpadded prompt `row`.

        Raises:
            PromptError: the rule matches nothing in this prompt.
        """

    def __or__(self, other: Selector) -> Selector:
        return Either(self, other)


@dataclass(frozen=True)
class Last(Selector):
    """The last token of the prompt: its state decides the first generated token."""

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The last index."""
        return [tokens.lengths[row] - 1]


@dataclass(frozen=True)
class Index(Selector):
    """Token `index` of the prompt, counted from the start, or from the end when negative."""

    index: int

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The index, counted from the start."""
        length = tokens.lengths[row]
        if not -length <= self.index < length:
            raise PromptError(
                f"Prompt {row} has {length} tokens and so no token {self.index}; choose a nearer one."
            )
        return [self.index % length]


@dataclass(frozen=True)
class All(Selector):
    """Every token, of the prompt and of what is generated."""

    generated = True
    needs_prompt = False

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Every index of the prompt."""
        return list(range(tokens.lengths[row]))


@dataclass(frozen=True)
class Generated(Selector):
    """The tokens the model wrote (as inputs of later steps), none of the prompt's.

    The last prompt token, whose state decides the first generated token, is not among them:
    `Last() | Generated()` selects every state that decides a generated token.
    """

    generated = True
    needs_prompt = False

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Nothing: a prompt has no generated tokens."""
        return []


@dataclass(frozen=True)
class Span(Selector):
    """Every token that overlaps the character span `name` of the prompt."""

    name: str

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The overlapping tokens."""
        found = overlapping(tokens, row, self.name)
        if not found:
            raise PromptError(
                f"No token of prompt {row} overlaps its span {self.name!r}; check the span's characters."
            )
        return found


@dataclass(frozen=True)
class AfterInstruction(Selector):
    """Every token the template puts after the user's text, a given response's tokens excluded."""

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The tokens behind the last one that overlaps the span `instruction`."""
        instruction = overlapping(tokens, row, "instruction")
        first = instruction[-1] + 1 if instruction else 0
        end = tokens.lengths[row]
        if "response" in tokens.prompts[row].spans:
            response = overlapping(tokens, row, "response")
            end = response[0] if response else end
        if first >= end:
            raise PromptError(
                f"Prompt {row} has no token after its instruction; render it with a template or use Last()."
            )
        return list(range(first, end))


@dataclass(frozen=True)
class Either(Selector):
    """Tokens that one selector or the other picks."""

    first: Selector
    second: Selector

    @property
    def generated(self) -> bool:  # type: ignore[override]
        """Whether either side selects generated tokens."""
        return self.first.generated or self.second.generated

    @property
    def needs_prompt(self) -> bool:  # type: ignore[override]
        """Whether either side must know the prompt."""
        return self.first.needs_prompt or self.second.needs_prompt

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Both sides' indices, each once, ascending."""
        return sorted({*self.first.resolve(tokens, row), *self.second.resolve(tokens, row)})


def overlapping(tokens: Tokens, row: int, span: str) -> list[int]:
    """Indices of the tokens of prompt `row` that overlap its character span called `span`."""
    spans = tokens.prompts[row].spans
    if span not in spans:
        known = ", ".join(sorted(spans)) or "none"
        raise PromptError(
            f"Prompt {row} has no span called {span!r} (it has: {known}); add it to Prompt(spans=...)."
        )
    if tokens.offsets is None:
        raise PromptError(
            f"The tokenizer gives no character offsets, so span {span!r} cannot be found; use a fast one."
        )
    start, end = spans[span]
    return [index for index, (low, high) in enumerate(tokens.offsets[row]) if low < end and high > start]
