"""Prompt sets of growing length and prompt files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab.datasets import prompt_sets
from steerlab.errors import DatasetError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, 50))
def test_levels_are_nested(level: int, seed: int) -> None:
    tokenizer = tiny("llama").tokenizer
    makers: tuple[Any, ...] = (
        lambda c: prompt_sets.arithmetic(6, c, seed),
        lambda c: prompt_sets.passages(6, c),
        lambda c: prompt_sets.instructions(6, c),
        lambda c: prompt_sets.story_openings(40, c, seed),
    )
    for make in makers:
        for shorter, longer in zip(make(level), make(level + 1), strict=True):
            assert longer.startswith(shorter.rstrip("?"))
    assert len(tokenizer.get_vocab()) > 0


def test_stories_and_random_strings_are_distinct_and_seeded() -> None:
    for level in (0, 3):  # as many as begin in different words, however many are asked for
        assert (
            len(set(prompt_sets.story_openings(40, level)))
            == len(prompt_sets.story_openings(40, level))
            == 16
        )
    assert prompt_sets.story_openings(5, 3, seed=1) == prompt_sets.story_openings(5, 3, seed=1)
    from steerlab import zoo

    tokenizers = [zoo.load_bundled(name).tokenizer for name in ("small-base", "large-base")]
    strings = prompt_sets.random_strings(tokenizers, 4, 2)
    assert len(set(strings)) == 4
    for one in tokenizers:
        for text in strings:
            assert len(text.split()) == 24
            assert len(one(" " + text, add_special_tokens=False)["input_ids"]) == 24
    assert prompt_sets.random_strings(tokenizers, 1, 3)[0].startswith(
        prompt_sets.random_strings(tokenizers, 1, 1)[0]
    )


def test_prompt_files_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    plain, rows, bad = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    plain.write_text("one\n\n two \n")
    rows.write_text('{"prompt": "one"}\n"two"\n')
    bad.write_text('{"prompt": "one"}\n{"other": 1}\n')
    assert prompt_sets.read_prompts(plain) == prompt_sets.read_prompts(rows) == ("one", "two")
    with pytest.raises(DatasetError, match="line 2: none of the columns"):
        prompt_sets.read_prompts(bad)
    with pytest.raises(DatasetError, match="cannot be read"):
        prompt_sets.read_prompts(tmp_path / "none.txt")
    with pytest.raises(DatasetError, match="no level 9"):
        prompt_sets.instructions(2, 9)
