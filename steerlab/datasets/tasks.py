"""Questions with one right answer, asked in a locked and an unlocked wording, and the rules that grade texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from steerlab.datasets.readers.source import lines_of, stem_of
from steerlab.errors import DatasetError

Grading: TypeAlias = Literal["number", "math"]

LOCKED = "{question}\nGive the final answer only."
UNLOCKED = "{question}\nWork step by step, then give the final answer."

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_QUESTION_KEYS, _ANSWER_KEYS = ("question", "problem", "prompt"), ("answer", "solution", "final_answer")


@dataclass(frozen=True)
class Task:
    """Question by question: both wordings and the right answer.

    locked, unlocked: [question] the texts that do not and do ask for the behaviour. answers: [question] right answers.
    grading: "number" compares the last number of the text, "math" asks the math-verify library. behaviour: a regular
    expression that the beginning of an unlocked answer matches; None where that is not known.
    """

    name: str
    locked: tuple[str, ...]
    unlocked: tuple[str, ...]
    answers: tuple[str, ...]
    grading: Grading = "number"
    behaviour: str | None = None
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not len(self.locked) == len(self.unlocked) == len(self.answers):
            raise DatasetError(
                f"The task {self.name!r} has {len(self.locked)} locked and {len(self.unlocked)} unlocked questions for "
                f"{len(self.answers)} answers; give one of each."
            )
        if not self.locked:
            raise DatasetError(f"The task {self.name!r} has no questions.")
        if self.grading not in get_args(Grading):
            raise DatasetError(
                f"There is no grading {self.grading!r}; choose from {', '.join(get_args(Grading))}."
            )

    def __len__(self) -> int:
        return len(self.answers)

    def take(self, rows: Sequence[int]) -> Task:
        """The task with the questions of these rows only."""
        picked = (tuple(texts[row] for row in rows) for texts in (self.locked, self.unlocked, self.answers))
        locked, unlocked, answers = picked
        return replace(self, locked=locked, unlocked=unlocked, answers=answers)

    def split(self, fit: int, dev: int, test: int, seed: int) -> tuple[Task, Task, Task]:
        """Disjoint parts of these sizes, drawn by the seed.

        Raises:
            DatasetError: fewer questions than the three sizes together.
        """
        if fit + dev + test > len(self):
            raise DatasetError(
                f"The task {self.name!r} has {len(self)} questions, but {fit} to fit, {dev} to choose and "
                f"{test} to test were asked for."
            )
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return (
            self.take(order[:fit]),
            self.take(order[fit : fit + dev]),
            self.take(order[fit + dev : fit + dev + test]),
        )

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text gives its question's answer."""
        rule = is_number if self.grading == "number" else is_math
        return [rule(text, answer) for text, answer in zip(texts, self.answers, strict=True)]

    def behaves(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text begins as an unlocked answer does. Raises `DatasetError` where that is not known."""
        if self.behaviour is None:
            raise DatasetError(f"The task {self.name!r} does not say how an unlocked answer begins.")
        return [re.match(self.behaviour, text) is not None for text in texts]


def is_number(text: str, answer: str) -> bool:
    """The last number of the text is the answer; thousands separators do not count."""
    numbers = _NUMBER.findall(text)
    return bool(numbers) and _value(numbers[-1]) == _value(answer)


def is_math(text: str, answer: str) -> bool:
    """The math-verify library finds the answer in the text.

    Raises:
        DatasetError: the library is not installed.
    """
    try:
        from math_verify import parse, verify  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise DatasetError(
            "Grading mathematics needs the library math-verify; install steerlab[math], or use grading='number'."
        ) from error
    gold = answer if "\\" in answer or "$" in answer else f"${answer}$"
    # its time limits use signals, which only the main thread may set
    return bool(
        verify(parse(gold, parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None)
    )


def read_task(
    path: str | Path,
    *,
    locked: str = LOCKED,
    unlocked: str = UNLOCKED,
    grading: Grading | None = None,
    behaviour: str | None = None,
    max_new_tokens: int = 512,
) -> Task:
    r"""A JSONL file in the manner of GSM8K or MATH: one object a line with a question and an answer.

    An answer behind `####` or in `\boxed{}` is taken out of its solution. `locked` and `unlocked` are templates with
    `{question}`. grading: "math" where an answer is no plain number, unless said.

    Raises:
        DatasetError: the file cannot be read, a line lacks a key, or a template lacks its field.
    """
    place = Path(path)
    for name, template in (("locked", locked), ("unlocked", unlocked)):
        if "{question}" not in template:
            raise DatasetError(f"The {name} template {template!r} has no field {{question}}.")
    rows = [_row(place, number, line) for number, line in lines_of(place)]
    if not rows:
        raise DatasetError(f"{place} holds no questions.")
    plain = all(_value(answer) is not None for _, answer in rows)
    return Task(
        name=stem_of(place),
        locked=tuple(locked.replace("{question}", question) for question, _ in rows),
        unlocked=tuple(unlocked.replace("{question}", question) for question, _ in rows),
        answers=tuple(answer for _, answer in rows),
        grading=grading or ("number" if plain else "math"),
        behaviour=behaviour,
        max_new_tokens=max_new_tokens,
    )


# -- private, in the order they are called --


def _row(place: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{place}, line {number}: no JSON ({error}).") from error
    if not isinstance(row, dict):
        raise DatasetError(f"{place}, line {number}: expected an object with a question and an answer.")
    question, answer = (
        next((row[key] for key in keys if key in row), None) for keys in (_QUESTION_KEYS, _ANSWER_KEYS)
    )
    for value, keys in ((question, _QUESTION_KEYS), (answer, _ANSWER_KEYS)):
        if value is None or not str(value).strip():
            raise DatasetError(f"{place}, line {number}: none of the columns {', '.join(keys)} has a value.")
    return str(question), _final(str(answer))


def _final(answer: str) -> str:
    if "####" in answer:
        return answer.rsplit("####", 1)[1].strip()
    at = answer.rfind("\\boxed{")
    if at < 0:
        return answer.strip()
    depth, start = 0, at + len("\\boxed")
    for place in range(start, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[place], 0)
        if depth == 0:
            return answer[start + 1 : place].strip()
    return answer[start + 1 :].strip()


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", "").strip().rstrip("."))
    except ValueError:
        return None
