"""Questions with two lettered answers, as of contrastive activation addition and of Anthropic's evaluations."""

from __future__ import annotations

from typing import Any

from steerlab.datasets.choices import ChoicePair
from steerlab.datasets.readers.table import Row, read_table
from steerlab.errors import DatasetError

_COLUMNS = (
    ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
    ("prompt", "correct", "incorrect"),
)


def read_caa(path: Any) -> tuple[ChoicePair, ...]:
    """Read the pairs of a behaviour's file: JSON or JSON Lines (or CSV) with a question and two answers like "(A)".

    The columns are `question`, `answer_matching_behavior` and `answer_not_matching_behavior`; or `prompt`, `correct`
    and `incorrect`, as in the benchmarks beside them. Raises `DatasetError`.
    """
    table = read_table(path)
    columns = next((names for names in _COLUMNS if set(names[1:]) & set(table.columns)), None)
    if columns is None:
        raise DatasetError(
            f"{table.file}: its columns ({table.named}) are not those of questions with two answers; "
            f"{', '.join(_COLUMNS[0])} are needed."
        )
    table.require(*columns)
    return tuple(_pair(row, *columns) for row in table.rows)


def _pair(row: Row, question: str, matching: str, not_matching: str) -> ChoicePair:
    text, answer, other = (row.text(column) for column in (question, matching, not_matching))
    for column, given in ((matching, answer), (not_matching, other)):
        try:
            # Paired with an answer that it can not be: what is wrong then is wrong with this one.
            ChoicePair(text, given, "(B)" if given.strip() == "(A)" else "(A)")
        except DatasetError as error:
            raise row.fault(column, "not a letter in brackets; write it like '(A)'.") from error
    if answer.strip() == other.strip():
        raise row.fault(not_matching, "the same as the matching answer; a pair needs two letters.")
    return ChoicePair(text, answer, other)
