"""Selectors against sets: every one is a rule over the places of one sequence, prompt and generated text together."""

from __future__ import annotations

import pytest
from families import tiny
from hypothesis import given
from hypothesis import strategies as st

from steerlab.models import (
    All,
    Except,
    FirstGenerated,
    Generated,
    Index,
    Last,
    PromptError,
    Selector,
    WholePrompt,
    Window,
)

TEXTS = ["Rome", "How do I bake bread?", "A cat is an animal."]
STEPS = 6


def places(selector: Selector, row: int, length: int) -> set[int]:
    tokens = TOKENS
    return {
        *selector.resolve(tokens, row),
        *(length + j for j in range(STEPS) if selector.selects(j, length)),
    }


TOKENS = tiny("llama").tokenize(TEXTS)

simple = st.one_of(
    st.sampled_from([All(), Last(), Generated(), WholePrompt(), Index(0), Index(-1)]),
    st.builds(FirstGenerated, st.integers(1, 4)),
    st.builds(Window, st.integers(-4, 4)),
    st.builds(lambda start, size: Window(start, start + size), st.integers(0, 9), st.integers(1, 9)),
    st.builds(lambda start, size: Window(-start - size, -start), st.integers(1, 4), st.integers(1, 4)),
)


@given(a=simple, b=simple, row=st.integers(0, 2))
def test_union_and_exception_are_those_of_sets(a: Selector, b: Selector, row: int) -> None:
    length = TOKENS.lengths[row]
    assert places(a | b, row, length) == places(a, row, length) | places(b, row, length)
    assert places(a - b, row, length) == places(a, row, length) - places(b, row, length)


@given(a=simple, b=simple, c=simple, row=st.integers(0, 2))
def test_excluding_wins_in_every_order(a: Selector, b: Selector, c: Selector, row: int) -> None:
    length = TOKENS.lengths[row]
    expected = (places(a, row, length) | places(c, row, length)) - places(b, row, length)
    assert places((a - b) | c, row, length) == expected
    assert places(c | (a - b), row, length) == expected


@given(start=st.integers(-12, 12), stop=st.none() | st.integers(-12, 12), row=st.integers(0, 2))
def test_a_window_is_a_half_open_range_over_the_whole_sequence(
    start: int, stop: int | None, row: int
) -> None:
    length = TOKENS.lengths[row]
    try:
        window = Window(start, stop)
    except PromptError:
        assert stop is not None and (start < 0) == (stop < 0) and start >= stop  # noqa: PT018
        return
    low = start if start >= 0 else length + start
    high = length + STEPS if stop is None else stop if stop >= 0 else length + stop
    assert places(window, row, length) == set(range(max(low, 0), min(high, length + STEPS)))
    assert window.generated or max(places(window, row, length), default=0) < length


@given(a=simple, row=st.integers(0, 2))
def test_what_a_selector_says_about_itself_is_true(a: Selector, row: int) -> None:
    length = TOKENS.lengths[row]
    if not a.generated:
        assert not any(a.selects(j, length) for j in range(STEPS))
    if not a.in_prompt:
        assert a.resolve(TOKENS, row) == []
    if not a.by_length:
        assert {a.selects(2, n) for n in range(1, 20)} == {a.selects(2, length)}


def test_empty_rules_are_refused() -> None:
    with pytest.raises(PromptError, match="hold"):
        Window(4, 4)
    with pytest.raises(PromptError, match="at least one"):
        FirstGenerated(0)
    assert isinstance((All() - Index(0)) | Last(), Except)
