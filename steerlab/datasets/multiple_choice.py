"""Questions with several answers of which one is right: read from a file, or made from labelled statements.

read_multiple_choice("mmlu.jsonl")           # rows with question, choices, answer
choice_questions(sl.datasets.statements())   # "The city of Lyon is in" with four countries
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerlab.datasets.readers.table import Row, read_table
from steerlab.datasets.readers.truthful_qa import is_truthful_qa, questions_of
from steerlab.datasets.statement_set import Statement, StatementSet
from steerlab.errors import DatasetError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LISTED = re.compile(r"\n\s*Choices:\s*\n", re.IGNORECASE)
_LETTERED = re.compile(r"^\s*\(?([A-Z])[).:]\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question, its answers, and which of them is right.

    Attributes:
        text: the question, or the beginning of a sentence.
        choices: answers, two to twenty-six different ones.
        right: the number of the right one, from 0.
        subject: what it is about: questions about one subject stay together in a split or a bootstrap.

    Raises:
        DatasetError: fewer than two answers or more than letters, two alike, or a right one that is none of them.
    """

    text: str
    choices: tuple[str, ...]
    right: int
    topic: str = "questions"
    subject: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise DatasetError(f"A question has {len(self.choices)} answers; give 2 to {len(LETTERS)}.")
        if len(set(self.choices)) < len(self.choices):
            raise DatasetError("A question has two equal answers; give different ones.")
        if not 0 <= self.right < len(self.choices):
            raise DatasetError(
                f"The right answer is number {self.right}, but there are {len(self.choices)}, counted from 0."
            )


def questions_hash(questions: Sequence[ChoiceQuestion]) -> str:
    """A stable hash of some questions, for manifests."""
    parts = [(question.text, question.choices, question.right, question.topic) for question in questions]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def choice_questions(statements: StatementSet, *, choices: int = 4, seed: int = 0) -> list[ChoiceQuestion]:
    """True affirmed statements that end in their object, as questions among objects of the same topic.

    Wrong answers are objects of other statements of the topic in the same wording, drawn at random, that no true
    statement names for the subject. Subjects with too few objects beside them are left out; each question comes once.
    """
    rng = random.Random(seed)
    simple = [item for item in statements if item.form == "simple" and item.polarity == 1 and _ends(item)]
    truths: dict[tuple[str, str], set[str]] = {}
    objects: dict[tuple[str, str], list[str]] = {}
    for item in simple:
        if item.label:
            truths.setdefault((item.topic, _subject(item)), set()).add(_object(item))
        objects.setdefault((item.topic, _wording(item)), []).append(_object(item))
    questions: dict[str, ChoiceQuestion] = {}
    for item in simple:
        stem = item.text[: item.spans["object"][0]].rstrip()
        known = truths.get((item.topic, _subject(item)), set())
        others = sorted(set(objects[item.topic, _wording(item)]) - known)
        if not item.label or stem in questions or len(others) < choices - 1:
            continue
        answers = [_object(item), *rng.sample(others, choices - 1)]
        rng.shuffle(answers)
        questions[stem] = ChoiceQuestion(
            stem, tuple(answers), answers.index(_object(item)), item.topic, _subject(item)
        )
    return list(questions.values())


def read_multiple_choice(path: Any) -> list[ChoiceQuestion]:
    """Read questions from CSV, JSON Lines or a JSON list.

    Rows hold `question` (or `prompt`) and `answer` (or `correct`, `answerKey`: a number from 0, a letter, a label, or
    the answer's text), and their answers as a list `choices`, as texts with their labels as ARC's (`{"text": [...],
    "label": [...]}`), as columns `A`, `B`, ..., or behind "Choices:" in the question itself, lettered, as contrastive
    activation addition's MMLU. `topic`, `subject` or `category` may name the topic. TruthfulQA's CSV
    gives each question with its first correct and all incorrect answers.

    Raises:
        DatasetError: with file, row and column.
    """
    table = read_table(path)
    if is_truthful_qa(table):
        rng = random.Random(0)  # the file gives right answers first, and a model may prefer the first letter
        return [
            _shuffled(question.text, question.correct[0], question.incorrect, question.category, rng)
            for question in questions_of(table)
        ]
    if not {"question", "prompt"} & set(table.columns):
        raise DatasetError(
            f"{table.file}: its columns ({table.named}) are not those of multiple choice; question, choices "
            "and answer are needed."
        )
    return [_read(row) for row in table.rows]


# -- private, in the order they are called --


def _ends(item: Statement) -> bool:
    spans = item.spans
    return (
        {"subject", "object"} <= set(spans)
        and spans["subject"][1] <= spans["object"][0]
        and not item.text[spans["object"][1] :].strip(" .'\"")
    )


def _subject(item: Statement) -> str:
    return item.text[slice(*item.spans["subject"])]


def _object(item: Statement) -> str:
    return item.text[slice(*item.spans["object"])]


def _wording(item: Statement) -> str:
    """The words between subject and object: an article there must fit the answer."""
    return item.text[item.spans["subject"][1] : item.spans["object"][0]]


def _shuffled(text: str, right: str, wrong: Sequence[str], topic: str, rng: random.Random) -> ChoiceQuestion:
    answers = [right, *wrong]
    rng.shuffle(answers)
    return ChoiceQuestion(text, tuple(answers), answers.index(right), topic, text)


def _read(row: Row) -> ChoiceQuestion:
    text = row.text("question" if row.has("question") else "prompt")
    choices, text = _choices(row, text)
    column = next((name for name in ("answer", "correct", "answerkey") if row.has(name)), "answer")
    topic = next((name for name in ("topic", "category", "subject") if row.has(name)), None)
    named = row.stem if topic is None else row.text(topic)
    right = _right(row, column, choices)
    try:
        return ChoiceQuestion(text, choices, right, named, text)
    except DatasetError as error:
        raise row.fault("choices", str(error)) from error


def _choices(row: Row, text: str) -> tuple[tuple[str, ...], str]:
    """The answers, and the question without them."""
    listed = row.cells.get("choices")
    if isinstance(listed, dict) and isinstance(listed.get("text"), list):
        listed = listed["text"]
    if isinstance(listed, list):
        return tuple(str(choice) for choice in listed), text
    columns = [letter.lower() for letter in LETTERS if row.has(letter.lower())]
    if columns:
        return tuple(str(row.cells[column]) for column in columns), text
    parts = _LISTED.split(text, maxsplit=1)
    if len(parts) == 2:
        return tuple(answer for _, answer in _LETTERED.findall(parts[1])), parts[0].rstrip()
    raise row.fault(
        "choices", "missing; give a list of answers, columns A, B, ..., or 'Choices:' in the question."
    )


def _right(row: Row, column: str, choices: Sequence[str]) -> int:
    value = row.cells.get(column)
    listed = row.cells.get("choices")
    if isinstance(listed, dict) and isinstance(labels := listed.get("label"), list):
        if value not in labels:
            raise row.fault(column, "none of the labels of the choices; say which answer is right.")
        return labels.index(value)  # ARC counts some of its answers from 1
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    word = str(value or "").strip()
    if word in choices:
        place = list(choices).index(word)
        if word.isdigit() and int(word) < len(choices) and int(word) != place:
            raise row.fault(
                column, f"{word!r} is one of the answers and the number of another; give a letter."
            )
        return place
    if word.isdigit():
        return int(word)
    bare = word.strip("().: ").upper()
    if len(bare) == 1 and bare in LETTERS[: len(choices)]:
        return LETTERS.index(bare)
    raise row.fault(
        column, "neither a number, nor a letter, nor one of the answers; say which answer is right."
    )
