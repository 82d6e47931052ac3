"""Written tokens as text, and whether each belongs to a thinking block or to the answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from steerlab.models.thinking import behind_thinking

Segment: TypeAlias = Literal["thinking", "answer"]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens, without special ones."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token, its leading space where it has one; special tokens are shown."""

    def shown(some: Sequence[int]) -> str:
        text: str = tokenizer.decode(
            list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    # Behind the one before it, since some tokenizers drop the space of a text's first word.
    return tuple(
        shown(ids[at - 1 : at + 1])[len(shown(ids[at - 1 : at])) :] if at else shown(ids[:1])
        for at in range(len(ids))
    )


def segments(tokenizer: Any, prompt: str, ids: Sequence[int]) -> tuple[Segment, ...]:
    """Of each written token whether it stands in a thinking block, its tags included, or in the answer."""

    def beginning(count: int) -> str:
        text: str = tokenizer.decode(list(ids[:count]), clean_up_tokenization_spaces=False)
        return text

    def told(thought: int) -> tuple[Segment, ...]:
        return tuple("thinking" if at < thought else "answer" for at in range(len(ids)))

    whole = beginning(len(ids))
    answer = behind_thinking(prompt, whole)
    if answer == whole:
        return told(0)
    if answer is None:
        return told(len(ids))
    # The block ends with the first token whose text holds the closing tag to its end.
    ending = len(whole) - len(answer)
    return told(bisect_left(range(len(ids) + 1), ending, key=lambda count: len(beginning(count))))
