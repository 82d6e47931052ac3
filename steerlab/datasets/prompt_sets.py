"""Sets of prompts without a right answer, at nested levels of complexity, and a reader for your own.

A level shows more of the same text: level c of a story is its first 6 (c + 1) words, of a random string its first
8 (c + 1) tokens, of an instruction the same with c requirements. So a curve over levels compares a prompt with itself.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steerlab.datasets.messages import with_text
from steerlab.datasets.passages import open_prompts, plain_text
from steerlab.datasets.readers.source import ending_of, lines_of
from steerlab.datasets.readers.table import read_table
from steerlab.errors import DatasetError

_WORDS, _TOKENS = 6, 8
_KEYS = ("prompt", "text", "instruction", "question")
_REQUIREMENTS = ("Use short sentences.", "Name one place.", "Do not use numbers.", "End with a question.")
_WHO = (
    "An old sailor",
    "The youngest of three sisters",
    "A clockmaker",
    "A girl with a red umbrella",
    "The last guest",
)
_WHERE = (
    "in a village by the sea",
    "on a train that did not stop",
    "behind the closed school",
    "in a house without doors",
)
_WHAT = ("found a letter that was meant for someone else", "heard a song nobody else could hear", "kept a "
                                                                                                  "promise to a bird",
         "waited for the rain with a borrowed coat")  # fmt: skip
_THEN = ("At first nothing changed.", "The neighbours noticed before anyone said a word.", "By evening "
                                                                                           "everybody had a theory.",
         "It would have been easy to walk away.")  # fmt: skip


def instructions(n: int = 40, level: int = 0) -> tuple[str, ...]:
    """Open-ended instructions, with `level` further requirements (at most four)."""
    added = " ".join(_REQUIREMENTS[: _level(level, len(_REQUIREMENTS))])
    return tuple(f"{text} {added}".strip() for text in open_prompts()[:n])


def story_openings(n: int = 40, level: int = 2, seed: int = 0) -> tuple[str, ...]:
    """The first words of small stories of our own; more of the same story at a higher level.

    No two stories begin alike at level 0, so there are at most as many as there are such beginnings (16).
    """
    parts = (_WHO, _WHERE, _WHAT, _THEN)
    beginnings = {_first_words(f"{who} {where}") for who, where in itertools.product(_WHO, _WHERE)}
    rng = random.Random(seed)
    stories: dict[str, str] = {}
    while len(stories) < min(n, len(beginnings)):
        who, where, what, then = map(rng.choice, parts)
        stories.setdefault(_first_words(f"{who} {where}"), f"{who} {where} {what}. {then}")
    return tuple(_first_words(story, level) for story in stories.values())


def random_strings(tokenizers: Sequence[Any], n: int = 40, level: int = 1, seed: int = 0) -> tuple[str, ...]:
    """Words drawn uniformly from what all `tokenizers` hold as one token each, joined by spaces.

    Raises:
        DatasetError: the tokenizers share fewer than 20 words.
    """
    shared = sorted(set.intersection(*(_words(tokenizer) for tokenizer in tokenizers)))
    if len(shared) < 20:
        raise DatasetError(f"The tokenizers share {len(shared)} words, too few for random strings.")
    strings = []
    for number in range(n):
        rng = np.random.default_rng([seed, number])  # a longer string begins with the shorter one
        strings.append(
            " ".join(shared[at] for at in rng.integers(len(shared), size=_TOKENS * (1 + _level(level, 99))))
        )
    return tuple(strings)


def arithmetic(n: int = 40, level: int = 1, seed: int = 0) -> tuple[str, ...]:
    """Sums of `level` + 2 numbers; a higher level adds numbers to the same sum."""
    problems = []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        problems.append(f"What is {' + '.join(map(str, rng.integers(10, 40, size=_level(level, 9) + 2)))}?")
    return tuple(problems)


def passages(n: int = 40, level: int = 2) -> tuple[str, ...]:
    """Beginnings of the packaged plain passages, to be continued."""
    return tuple(_first_words(text, level) for text in plain_text()[:n])


def read_prompts(path: Any) -> tuple[str, ...]:
    """One prompt a line of a text file, or the column prompt, text, instruction or question of rows.

    Rows are a JSONL, CSV, TSV or Parquet file, or a frame; of a conversation in `messages` the user's last message
    is the prompt.

    Raises:
        DatasetError: the file cannot be read, is empty, or a line lacks all of these columns.
    """
    if not isinstance(path, str | Path) or ending_of(Path(path)) in (".csv", ".tsv", ".parquet"):
        table = read_table(path)
        column = next((key for key in _KEYS if key in table.columns), _KEYS[0])
        table.require(column)
        return tuple(row.text(column).strip() for row in table.rows)
    place = Path(path)
    lines = lines_of(place)
    if not lines:
        raise DatasetError(f"{place} holds no prompts.")
    if ending_of(place) not in (".jsonl", ".ndjson", ".json"):
        return tuple(line.strip() for _, line in lines)
    return tuple(_prompt(place, at, line) for at, line in lines)


# -- private --


def _first_words(text: str, level: int = 0) -> str:
    """What a level shows of a text."""
    return " ".join(text.split()[: _WORDS * (1 + _level(level, 9))])


def _level(level: int, most: int) -> int:
    if not 0 <= level <= most:
        raise DatasetError(f"There is no level {level}; take 0 to {most}.")
    return level


def _words(tokenizer: Any) -> set[str]:
    words = (token.lstrip("Ġ▁") for token in tokenizer.get_vocab() if token[:1] in "Ġ▁")
    return {word for word in words if word.isalpha() and word.isascii() and len(word) > 1}


def _prompt(place: Path, at: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{place}, line {at}: no JSON ({error}).") from error
    if isinstance(row, dict):
        try:
            row = with_text(row)
        except DatasetError as error:
            raise DatasetError(f"{place}, line {at}, column 'messages': {error}") from error
    matches = (
        row
        if isinstance(row, str)
        else next((row[key] for key in _KEYS if isinstance(row, dict) and key in row), None)
    )
    if not isinstance(matches, str) or not matches.strip():
        raise DatasetError(f"{place}, line {at}: none of the columns {', '.join(_KEYS)} holds a text.")
    return matches.strip()
