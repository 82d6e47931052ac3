"""Labelled statements: plain rows, Geometry of Truth's columns, TruthfulQA, or a folder of such files.

Geometry of Truth's files are known by their columns: `city,country` or `subject,target` give spans, `label1,label2`
make a statement a joined one, and a file called `neg_NAME` holds the negations of the topic `NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerlab.datasets.questions import question_statements
from steerlab.datasets.readers.table import Row, Table, files_in, folder_of, name_of, read_table
from steerlab.datasets.readers.truthful_qa import is_truthful_qa, questions_of
from steerlab.datasets.statement_set import Form, Statement, StatementSet
from steerlab.errors import DatasetError

_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_POLARITY = {"1": 1, "+1": 1, "-1": -1}
# Columns whose words must stand in the text, and Geometry of Truth's, which may use another name than the text does.
_OWN = {"subject": "subject", "object": "object"}
_PUBLISHED = {
    "city": "subject",
    "country": "object",
    "target": "object",
    "city1": "first_subject",
    "country1": "first_object",
    "city2": "subject",
    "country2": "object",
}
_UNDERSTOOD = (
    "statements are read from rows with text,label (or statement,label, as in Geometry of Truth), "
    "from TruthfulQA's CSV, or from a folder of such files"
)
_OTHERS = {
    "instruction": "These are requests (refusal_direction); read them with read_requests.",
    "goal": "These are requests (AdvBench); read them with read_requests.",
    "answer_matching_behavior": "These are questions with two answers (CAA); read them with read_caa.",
}


def read_statements(path: Any) -> StatementSet:
    """Read labelled statements from a file or a frame, or from all CSV, Parquet and JSON Lines files of a folder.

    Rows hold `text` (or `statement`) and `label` (true/false or 1/0), and may hold `topic` (else the file's name),
    `polarity` (1 or -1, else 1), `subject` and `object` (words of the text, from which the spans are found).
    TruthfulQA's questions give a statement "Q: ... A: ..." for every answer. Raises `DatasetError`.
    """
    folder = folder_of(path)
    items = _file(path) if folder is None else _folder(folder)
    if len({item.label for item in items}) < 2:
        raise DatasetError(
            f"{name_of(path)}, column 'label': only one class occurs; both true and false statements are needed."
        )
    return StatementSet(items)


# -- private, in the order they are called --


def _folder(folder: Path) -> list[Statement]:
    files = files_in(folder, (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
    if not files:
        raise DatasetError(f"{folder}: no CSV or JSON Lines file lies in this folder; {_UNDERSTOOD}.")
    return [item for file in files for item in _file(file)]


def _file(given: Any) -> list[Statement]:
    table = read_table(given)
    if is_truthful_qa(table):
        return list(question_statements(questions_of(table)))
    if not {"text", "statement", "label"} & set(table.columns):
        hint = next((advice for column, advice in _OTHERS.items() if column in table.columns), "")
        raise DatasetError(
            f"{table.file}: its columns ({table.named}) are not those of labelled statements. "
            + (hint or f"{_UNDERSTOOD[0].upper()}{_UNDERSTOOD[1:]}.")
        )
    column = "statement" if "statement" in table.columns and "text" not in table.columns else "text"
    table.require(column, "label")
    form = _form(table)
    return [_statement(row, column, form) for row in table.rows]


def _form(table: Table) -> Form:
    """Whether a file joins two statements: told by how its label follows from the two parts' labels."""
    if not {"label1", "label2"} <= set(table.columns):
        return "simple"
    labels = [[row.choice(name, _TRUTH) for name in ("label", "label1", "label2")] for row in table.rows]
    fitting: list[Form] = []
    if all(whole == (first and second) for whole, first, second in labels):
        fitting.append("conjunction")
    if all(whole == (first or second) for whole, first, second in labels):
        fitting.append("disjunction")
    if len(fitting) != 1:
        raise DatasetError(
            f"{table.file}, column 'label': follows from label1 and label2 neither by 'and' nor by 'or' alone; "
            "correct the labels, or leave the two columns out."
        )
    return fitting[0]


def _statement(row: Row, column: str, form: Form) -> Statement:
    text = row.text(column)
    topic, negated = _topic(row.stem)
    polarity = row.choice("polarity", _POLARITY) if row.has("polarity") else -1 if negated else 1
    return Statement(
        text,
        row.choice("label", _TRUTH),
        row.text("topic") if row.has("topic") else topic,
        polarity,
        _spans(row, text),
        form,
    )


def _topic(stem: str) -> tuple[str, bool]:
    """The topic in a file's name, and whether it holds negations: "cities" of neg_cities and cities_cities_conj."""
    name = stem.removeprefix("neg_").removesuffix("_true_false")
    pair = re.fullmatch(r"(.+)_\1_(?:conj|disj)", name)
    return (pair[1] if pair else name), stem.startswith("neg_")


def _spans(row: Row, text: str) -> Mapping[str, tuple[int, int]]:
    spans: dict[str, tuple[int, int]] = {}
    # Subjects first: "Mexico" of "The city of Mexico City is in Mexico." is looked for after the subject.
    wanted = sorted(
        (_OWN | _PUBLISHED).items(), key=lambda item: ("first" not in item[1], item[1].endswith("object"))
    )
    for column, name in wanted:
        if not row.has(column):
            continue
        words = row.text(column)
        span = _find(text, words, after=max((end for _, end in spans.values()), default=0))
        if span:
            spans[name] = span
        elif column in _OWN:
            raise row.fault(
                column,
                f"{words!r} does not occur in the text; give the words as they stand there, or leave the cell empty.",
            )
    return spans


def _find(text: str, words: str, after: int) -> tuple[int, int] | None:
    """The first occurrence as whole words after a place, else the first as whole words, else the first."""
    places = [at for at in range(len(text)) if text.startswith(words, at)]
    whole = [at for at in places if not _continues(text, at) and not _continues(text, at + len(words))]
    start = next((at for at in (*(at for at in whole if at >= after), *whole, *places)), None)
    return None if start is None else (start, start + len(words))


def _continues(text: str, at: int) -> bool:
    """Whether a word goes on across a place."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()
