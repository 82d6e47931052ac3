"""Position selectors: rules that pick tokens of a prompt, in place of index arithmetic.

A selector answers with token indices in the unpadded prompt (0 is the first token, BOS included where there is one).
Spans are character spans of the prompt, found through the tokenizer's offsets. A token that overlaps a span belongs to
it, so a token that merges the span's end with what follows is selected. `a | b` selects both, `a - b` the tokens of `a`
that `b` does not pick; what is excluded stays excluded, whatever is added behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerlab.errors import PromptError

if TYPE_CHECKING:
    from steerlab.models.prompts import Tokens


class Selector(ABC):
    """A rule that picks tokens of a prompt, and says whether generated tokens are meant as well."""

    #: Whether tokens written by the model after the prompt are selected too.
    generated: bool = False
    #: Whether tokens of the prompt may be selected.
    in_prompt: bool = True
    #: Whether the selector must know the prompt's text or length; the others also work on raw model calls.
    needs_prompt: bool = True
    #: Whether the answer for a generated token depends on the prompt's length.
    by_length: bool = False

    @abstractmethod
    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Ascending token indices in the unpadded prompt `row`.

        Raises:
            PromptError: the rule matches nothing in this prompt.
        """

    def selects(self, step: int, length: int) -> bool:
        """Whether generated token `step` (0 is the first) after a prompt of `length` tokens is selected."""
        return self.generated

    def __or__(self, other: Selector) -> Selector:
        # (a - b) | c is (a | c) - b: excluding wins over including, in whatever order they are written.
        if isinstance(self, Except):
            return Except(self.first | other, self.second)
        if isinstance(other, Except):
            return Except(self | other.first, other.second)
        return Either(self, other)

    def __sub__(self, other: Selector) -> Selector:
        return Except(self, other)


def require_selector(given: Any, what: str = "positions") -> None:
    """Raise `PromptError`, which says what to type, unless `given` is a selector."""
    if isinstance(given, Selector):
        return
    hint = "a selector like sl.Last(), sl.Index(-1) or sl.All()"
    if isinstance(given, type) and issubclass(given, Selector):
        raise PromptError(f"The {what} are the class {given.__name__}; make one of it: {given.__name__}().")
    if isinstance(given, int):
        hint = f"sl.Index({given})"
    if isinstance(given, str):
        found = [
            kind.__name__ for kind in Selector.__subclasses__() if kind.__name__.lower() == given.lower()
        ]
        hint = f"sl.{found[0]}()" if found else hint
    raise PromptError(f"The {what} cannot be {given!r}; give {hint}.")


def _require_whole(selector: Selector, *numbers: object) -> None:
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise PromptError(f"{type(selector).__name__} counts tokens in whole numbers, not {number!r}.")


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

    def __post_init__(self) -> None:
        _require_whole(self, self.index)

    @property
    def needs_prompt(self) -> bool:  # type: ignore[override]
        """True for a negative index: it is counted from the prompt's end."""
        return self.index < 0

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
    in_prompt = False
    needs_prompt = False

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Nothing: a prompt has no generated tokens."""
        return []


@dataclass(frozen=True)
class FirstGenerated(Selector):
    """The first `count` tokens the model wrote, as inputs of later steps; see `Generated`."""

    count: int

    generated = True
    in_prompt = False
    needs_prompt = False

    def __post_init__(self) -> None:
        _require_whole(self, self.count)
        if self.count < 1:
            raise PromptError(
                f"The first {self.count} generated tokens are none; give a count of at least one."
            )

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Nothing: a prompt has no generated tokens."""
        return []

    def selects(self, step: int, length: int) -> bool:
        """Whether the step is one of the first."""
        return step < self.count


@dataclass(frozen=True)
class WholePrompt(Selector):
    """Every token of the prompt, none that is generated."""

    needs_prompt = False

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Every index of the prompt."""
        return list(range(tokens.lengths[row]))


@dataclass(frozen=True)
class Window(Selector):
    """Tokens `start` to `stop` (not included) of prompt and generated text together, which is one sequence.

    Negative bounds count from the prompt's end, `stop=None` has no end: `Window(-3, None)` is the prompt's last three
    tokens and all that follows, `Window(0, 8)` the first eight tokens of the text, prompt or generated. Bounds beyond
    the text are cut, as in a slice.
    """

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        _require_whole(self, self.start, *(() if self.stop is None else (self.stop,)))
        same_end = self.stop is not None and (self.start < 0) == (self.stop < 0)
        if same_end and self.start >= (self.stop or 0):
            raise PromptError(f"{self} holds no token; its stop must lie behind its start.")

    @property
    def generated(self) -> bool:  # type: ignore[override]
        """Whether the window may reach beyond the prompt."""
        return self.stop is None or self.stop > 0

    @property
    def needs_prompt(self) -> bool:  # type: ignore[override]
        """True where a bound is negative: it is counted from the prompt's end."""
        return self.start < 0 or (self.stop is not None and self.stop < 0)

    @property
    def by_length(self) -> bool:  # type: ignore[override]
        """Whether a bound counts from the start of the text."""
        return self.start > 0 or (self.stop is not None and self.stop > 0)

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The part of the window inside the prompt."""
        length = tokens.lengths[row]
        low, high = self._bounds(length)
        return list(range(max(0, low), length if high is None else min(length, high)))

    def selects(self, step: int, length: int) -> bool:
        """Whether the token's index in the whole text lies in the window."""
        low, high = self._bounds(length)
        return low <= length + step and (high is None or length + step < high)

    def _bounds(self, length: int) -> tuple[int, int | None]:
        low = self.start if self.start >= 0 else length + self.start
        return low, self.stop if self.stop is None or self.stop >= 0 else length + self.stop


@dataclass(frozen=True)
class Span(Selector):
    """Every token that overlaps the character span `name` of the prompt."""

    name: str

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The overlapping tokens."""
        indices = overlapping(tokens, row, self.name)
        if not indices:
            raise PromptError(
                f"No token of prompt {row} overlaps its span {self.name!r}; check the span's characters."
            )
        return indices


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


class _Pair(Selector):
    """Two selectors; the pair needs what either of them needs."""

    first: Selector
    second: Selector

    @property
    def needs_prompt(self) -> bool:  # type: ignore[override]
        """Whether either side must know the prompt."""
        return self.first.needs_prompt or self.second.needs_prompt

    @property
    def by_length(self) -> bool:  # type: ignore[override]
        """Whether either side's answer depends on the prompt's length."""
        return self.first.by_length or self.second.by_length


@dataclass(frozen=True)
class Either(_Pair):
    """Tokens that one selector or the other picks: `first | second`."""

    first: Selector
    second: Selector

    @property
    def generated(self) -> bool:  # type: ignore[override]
        """Whether either side selects generated tokens."""
        return self.first.generated or self.second.generated

    @property
    def in_prompt(self) -> bool:  # type: ignore[override]
        """Whether either side selects tokens of the prompt."""
        return self.first.in_prompt or self.second.in_prompt

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """Both sides' indices, each once, ascending."""
        return sorted({*self.first.resolve(tokens, row), *self.second.resolve(tokens, row)})

    def selects(self, step: int, length: int) -> bool:
        """Whether either side selects the generated token."""
        return self.first.selects(step, length) or self.second.selects(step, length)


@dataclass(frozen=True)
class Except(_Pair):
    """Tokens that `first` picks and `second` does not: `first - second`.

    Excluding wins: `(a - b) | c` is `(a | c) - b`.
    """

    first: Selector
    second: Selector

    @property
    def generated(self) -> bool:  # type: ignore[override]
        """Whether generated tokens may be left."""
        return self.first.generated and not isinstance(self.second, All | Generated)

    @property
    def in_prompt(self) -> bool:  # type: ignore[override]
        """Whether tokens of the prompt may be left."""
        return self.first.in_prompt

    def resolve(self, tokens: Tokens, row: int) -> list[int]:
        """The first side's indices without the second's."""
        excluded = set(self.second.resolve(tokens, row))
        return [index for index in self.first.resolve(tokens, row) if index not in excluded]

    def selects(self, step: int, length: int) -> bool:
        """Whether the generated token is picked and not excluded."""
        return self.first.selects(step, length) and not self.second.selects(step, length)


def overlapping(tokens: Tokens, row: int, span: str) -> list[int]:
    """Indices of the tokens of prompt `row` that overlap its character span called `span`.

    Raises:
        PromptError: the prompt has no such span, or the tokenizer gives no character offsets.
    """
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
