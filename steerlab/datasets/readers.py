"""People's own files: statements and requests as CSV or JSON Lines, a prompt and its label in each row.

CSV needs a header with `text` and `label`; JSON Lines one object a line with the same keys. Every fault is a
`DatasetError` that names file, row and column, with rows counted as the lines of data from 1 (the header is row 0).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from steerlab.datasets.contrast import SPLITS, ContrastSet
from steerlab.datasets.statements import Statement, StatementSet
from steerlab.errors import DatasetError

_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_HARM = {"harmful": True, "1": True, "harmless": False, "0": False}
_POLARITY = {"1": 1, "+1": 1, "-1": -1}

Row = Mapping[str, str]
_T = TypeVar("_T")


def read_statements(path: str | Path) -> StatementSet:
    """Read statements with labels true/false (or 1/0).

    Optional columns: `topic` (else the file's name), `polarity` (1 or -1, else 1), `subject` and `object` (words of
    the text, from which the spans are found). Raises `DatasetError`.
    """
    file = Path(path)
    rows = _read(file)
    items = [_statement(file, number, row) for number, row in rows]
    _need_two_classes(file, {item.label for item in items}, "true and false")
    return StatementSet(items)


def read_requests(path: str | Path, *, seed: int = 0) -> ContrastSet:
    """Read requests with labels harmful/harmless (or 1/0).

    With a column `split` (train, val or test in every row) the file's own splits hold; without it they are drawn by
    the seed, near-duplicates together. Raises `DatasetError`.
    """
    file = Path(path)
    rows = _read(file)
    labels = [_choice(file, number, row, "label", _HARM) for number, row in rows]
    _need_two_classes(file, set(labels), "harmful and harmless")
    texts = [row["text"] for _, row in rows]
    harmful = [i for i, label in enumerate(labels) if label]
    harmless = [i for i, label in enumerate(labels) if not label]
    positive, negative = ([texts[i] for i in part] for part in (harmful, harmless))
    if "split" not in rows[0][1]:
        return ContrastSet.from_texts(positive, negative, seed=seed)
    names = [_choice(file, number, row, "split", {name: name for name in SPLITS}) for number, row in rows]
    splits = (tuple(names[i] for i in harmful), tuple(names[i] for i in harmless))
    return ContrastSet(tuple(positive), tuple(negative), splits=splits)


def _statement(file: Path, number: int, row: Row) -> Statement:
    text = row["text"]
    label = _choice(file, number, row, "label", _TRUTH)
    polarity = _choice(file, number, row, "polarity", _POLARITY) if row.get("polarity") else 1
    spans = {}
    for name in ("subject", "object"):
        words = row.get(name) or ""
        if words:
            start = text.find(words)
            if start < 0:
                raise DatasetError(
                    f"{file}, row {number}, column {name!r}: {words!r} does not occur in the text; "
                    f"give the words as they stand there, or leave the cell empty."
                )
            spans[name] = (start, start + len(words))
    return Statement(text, label, row.get("topic") or file.stem, polarity, spans)


def _choice(file: Path, number: int, row: Row, column: str, known: Mapping[str, _T]) -> _T:
    value = row.get(column, "").strip().lower()
    if value not in known:
        raise DatasetError(
            f"{file}, row {number}, column {column!r}: {row.get(column, '')!r} is not known; "
            f"use one of {', '.join(known)}."
        )
    return known[value]


def _need_two_classes(file: Path, labels: set[bool], names: str) -> None:
    if len(labels) < 2:
        raise DatasetError(f"{file}, column 'label': only one class occurs; both {names} prompts are needed.")


def _read(file: Path) -> list[tuple[int, Row]]:
    """The rows of a file with their numbers, every one with a non-empty `text` and a `label`."""
    text = _decode(file)
    if file.suffix.lower() == ".csv":
        rows = _csv_rows(file, text)
    elif file.suffix.lower() in {".jsonl", ".ndjson"}:
        rows = _json_rows(file, text)
    else:
        raise DatasetError(f"{file}: the format is told by the ending; name the file .csv or .jsonl.")
    if not rows:
        raise DatasetError(f"{file}: there is no row; at least one prompt of each class is needed.")
    for number, row in rows:
        for column in ("text", "label"):
            if column not in row:
                raise DatasetError(
                    f"{file}, row {number}, column {column!r}: missing; every row needs text and label."
                )
        if not row["text"].strip():
            raise DatasetError(
                f"{file}, row {number}, column 'text': empty; write a prompt or delete the row."
            )
    return rows


def _decode(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{file}: cannot be read ({error.strerror}); name an existing CSV or JSONL file."
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{file}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8."
        ) from error


def _csv_rows(file: Path, text: str) -> list[tuple[int, Row]]:
    lines = list(csv.reader(io.StringIO(text)))
    if not lines or not any(cell.strip() for cell in lines[0]):
        raise DatasetError(f"{file}: empty; a header with the columns text and label is needed.")
    header = [name.strip().lower() for name in lines[0]]
    for column in ("text", "label"):
        if column not in header:
            raise DatasetError(
                f"{file}, row 0, column {column!r}: missing in the header ({', '.join(header)}); "
                "name the columns text and label."
            )
    rows: list[tuple[int, Row]] = []
    for number, cells in enumerate(lines[1:], 1):
        if not any(cell.strip() for cell in cells):
            raise DatasetError(
                f"{file}, row {number}, column 'text': empty line; write a prompt or delete the line."
            )
        if len(cells) != len(header):
            raise DatasetError(
                f"{file}, row {number}: {len(cells)} cells where the header has {len(header)}; "
                f"put a text with commas in double quotes."
            )
        rows.append((number, dict(zip(header, cells, strict=True))))
    return rows


def _json_rows(file: Path, text: str) -> list[tuple[int, Row]]:
    rows: list[tuple[int, Row]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            raise DatasetError(
                f"{file}, row {number}, column 'text': empty line; write a prompt or delete the line."
            )
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{file}, row {number}, column {error.colno}: not JSON ({error.msg}); write one object a line."
            ) from error
        if not isinstance(row, dict):
            raise DatasetError(f'{file}, row {number}: not an object; write {{"text": ..., "label": ...}}.')
        rows.append((number, {str(key).lower(): _cell(value) for key, value in row.items()}))
    return rows


def _cell(value: object) -> str:
    return "" if value is None else str(value)
