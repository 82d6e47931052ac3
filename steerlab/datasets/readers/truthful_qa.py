"""TruthfulQA's CSV: one question a row, its correct and its incorrect answers divided by semicolons."""

from __future__ import annotations

from typing import Any

from steerlab.datasets.questions import Question
from steerlab.datasets.readers.table import Row, Table, read_table
from steerlab.errors import DatasetError

_COLUMNS = ("question", "correct answers", "incorrect answers")


def read_truthful_qa(path: Any) -> tuple[Question, ...]:
    """Read TruthfulQA's questions; an answer listed twice counts once. Raises `DatasetError`."""
    table = read_table(path)
    if not is_truthful_qa(table):
        raise DatasetError(
            f"{table.file}: its columns ({table.named}) are not TruthfulQA's; {', '.join(_COLUMNS)} are needed."
        )
    return questions_of(table)


def is_truthful_qa(table: Table) -> bool:
    """Whether a table has the columns of TruthfulQA's answers."""
    return set(_COLUMNS[1:]) <= set(table.columns)


def questions_of(table: Table) -> tuple[Question, ...]:
    """The questions of a table. Raises `DatasetError` where a column is missing or a row lacks an answer."""
    table.require(*_COLUMNS)
    return tuple(_question(row) for row in table.rows)


def _question(row: Row) -> Question:
    category = row.text("category") if row.has("category") else row.stem
    question, correct, incorrect = _COLUMNS
    return Question(row.text(question), _answers(row, correct), _answers(row, incorrect), category)


def _answers(row: Row, column: str) -> tuple[str, ...]:
    answers = (answer.strip() for answer in row.text(column).split(";"))
    different = tuple(dict.fromkeys(answer for answer in answers if answer))
    if not different:
        raise row.fault(column, "no answer between the semicolons; write one.")
    return different
