"""Rows, whatever they are kept in: CSV with a header, JSON Lines, a JSON list of objects, Parquet, or a frame.

CSV may be divided by commas, semicolons or tabs; every file may be packed (.gz).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any, TypeVar

from steerlab.datasets.frames import columns_of, rows_of
from steerlab.datasets.messages import with_text
from steerlab.datasets.readers.parquet import parquet_rows
from steerlab.datasets.readers.source import ending_of, stem_of, text_of
from steerlab.errors import DatasetError, kind_of

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# No line of a file is this one: it stands after the last, and is swallowed where a quoted cell is still open there.
_END = "\ue000end\ue000"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of data; its number counts from 1."""

    file: Path
    number: int
    cells: Mapping[str, object]

    @property
    def stem(self) -> str:
        """The file's name without its endings."""
        return stem_of(self.file)

    def fault(self, column: str, reason: str) -> DatasetError:
        """The error that something is wrong in a column of this row; `reason` must not repeat a prompt."""
        return DatasetError(f"{self.file}, row {self.number}, column {column!r}: {reason}")

    def text(self, column: str) -> str:
        """The text of a cell. Raises `DatasetError` where it is missing, empty or no text."""
        if column not in self.cells:
            raise self.fault(column, "missing; every row needs one.")
        value = self.cells[column]
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.fault(column, "empty; write a text or delete the row.")
        if not isinstance(value, str):
            raise self.fault(column, f"not a text but {_kind(value)}; put it in double quotes.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.fault(column, "half a character (a lone surrogate); correct the text.") from error
        return value

    def has(self, column: str) -> bool:
        """Whether there is anything in a column that need not be filled."""
        return self.cells.get(column) not in (None, "")

    def choice(self, column: str, known: Mapping[str, _T]) -> _T:
        """What a cell's word stands for. Raises `DatasetError` for a word that is not `known`."""
        if column not in self.cells:
            raise self.fault(column, f"missing; every row needs one of {', '.join(known)}.")
        value = self.cells[column]
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a frame keeps 0 and 1 as 0.0 and 1.0 where a cell was missing once
        word = str(value).strip().lower() if isinstance(value, str | int) else _kind(value)
        if word not in known:
            # A single word is a label misspelt; anything longer may be a prompt in the wrong column.
            reason = (
                f"{value!r}" if isinstance(value, str | int) and _is_word(str(value)) else "what stands there"
            )
            raise self.fault(column, f"{reason} is not known; use one of {', '.join(known)}.")
        return known[word]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a file (at least one), and the names of its columns in lower case.

    has_header: every row has these columns (rows of JSON may have others).
    """

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    has_header: bool

    @property
    def named(self) -> str:
        """The names of the columns as an error may show them: a file without a header has a prompt there."""
        words = [name for name in self.columns if _is_word(name)]
        hidden = len(self.columns) - len(words)
        more = [f"{hidden} that {'is' if hidden == 1 else 'are'} not a single word"] if hidden else []
        return ", ".join([*words, *more])

    def require(self, *columns: str) -> None:
        """Raise `DatasetError` for a column that the header lacks (rows of JSON are asked one by one)."""
        for column in columns:
            if self.has_header and column not in self.columns:
                raise DatasetError(
                    f"{self.file}, row 0, column {column!r}: missing in the header ({self.named}); "
                    f"name the columns {' and '.join(columns)}."
                )


def read_table(given: Any) -> Table:
    """The table in a file, or a table in memory: a pandas or polars frame, an Arrow table, a `datasets.Dataset`.

    A conversation in the column `messages` is the row's text where no other column is: the user's last message. Empty
    rows at the end are none. Raises `DatasetError` for a file that is not to be read, not UTF-8, damaged or empty.
    """
    if (rows := rows_of(given)) is not None:
        return _table(Path(name_of(given)), rows, tuple(columns_of(given) or ()))
    if not isinstance(given, str | Path):
        raise DatasetError(
            f"Data are read from a file, a folder or a frame, not from {kind_of(given)}; name a file."
        )
    file = Path(given)
    ending = ending_of(file)
    if ending == ".parquet":
        columns, rows = parquet_rows(file)
        return _table(file, rows, columns)
    text = text_of(file)
    if ending in (".csv", ".tsv"):
        return _csv_table(file, text)
    if ending not in ENDINGS:
        raise DatasetError(
            f"{file}: the format is told by the ending; name the file .tsv, .parquet, .csv, .jsonl or .json."
        )
    return _table(file, _json_list(file, text) if ending == ".json" else _json_lines(file, text))


def folder_of(given: Any) -> Path | None:
    """The folder that a path names; None for a file or a table in memory."""
    return Path(given) if isinstance(given, str | Path) and isdir(given) else None


def name_of(given: Any) -> str:
    """What an error calls a file, a folder, or a table in memory."""
    return str(given) if isinstance(given, str | Path) else type(given).__name__


def files_in(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files of a folder with one of some endings, sorted by name. Raises `DatasetError` for a closed folder."""
    try:
        return sorted(file for file in folder.iterdir() if ending_of(file) in endings)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be read ({error.strerror}); open the folder to yourself."
        ) from error


# -- private, in the order they are called --


def _table(file: Path, rows: Sequence[object], columns: tuple[str, ...] = ()) -> Table:
    """Rows of objects; `columns` are those that every row has, where the format says so."""
    named = tuple(_named(file, number, row) for number, row in enumerate(rows, 1))
    if not named:
        raise _empty(file)
    found = tuple(dict.fromkeys([*(name.strip().lower() for name in columns), *named[0].cells]))
    return Table(file, found, named, bool(columns))


def _csv_table(file: Path, text: str) -> Table:
    delimiter = _delimiter(text)
    lines = list(_csv_lines(file, text, delimiter))
    if not lines or not any(cell.strip() for cell in lines[0]):
        raise DatasetError(f"{file}: empty; a header with the columns' names is needed.")
    while not any(cell.strip() for cell in lines[-1]):
        lines.pop()
    header = tuple(name.strip().lower() for name in lines[0])
    for name in header:
        if header.count(name) > 1:
            shown = repr(name) if _is_word(name) or not name else "one of them"
            raise DatasetError(f"{file}, row 0, column {shown}: named twice in the header; name each once.")
    rows = []
    for number, cells in enumerate(lines[1:], 1):
        if not any(cell.strip() for cell in cells):
            raise DatasetError(
                f"{file}, row {number}, column {header[0]!r}: empty line; write a text or delete the line."
                if _is_word(header[0])
                else f"{file}, row {number}: empty line; write a text or delete the line."
            )
        if len(cells) != len(header):
            raise DatasetError(
                f"{file}, row {number}: {len(cells)} cells where the header has {len(header)}; "
                f"put a text with {_DELIMITERS[delimiter]} in double quotes."
            )
        rows.append(Row(file, number, dict(zip(header, cells, strict=True))))
    if not rows:
        raise _empty(file)
    return Table(file, header, tuple(rows), True)


def _delimiter(text: str) -> str:
    """What divides the cells, told by the header alone: what divides it most often, the comma where none does."""
    header = io.StringIO(text, newline="").readline()

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=cells)


def _csv_lines(file: Path, text: str, delimiter: str) -> Iterator[list[str]]:
    end = "" if text.endswith(("\n", "\r")) or not text else "\n"
    number, last = 0, [""]
    try:
        for last in csv.reader(io.StringIO(f"{text}{end}{_END}\n", newline=""), delimiter=delimiter):
            if last != [_END]:
                yield last
                number += 1
    except csv.Error as error:
        raise DatasetError(f"{file}, row {number}: not CSV ({error}); save the file as CSV again.") from error
    if last != [_END]:
        raise DatasetError(
            f"{file}, row {number - 1}: a double quote is opened and never closed; "
            "the file may be cut short, or a quote inside a text must be doubled."
        )


def _json_lines(file: Path, text: str) -> list[object]:
    lines = text.rstrip(" \t\r\n").split("\n") if text.strip() else []
    rows: list[object] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DatasetError(
                f"{file}, row {number}, column 'text': empty line; write a prompt or delete the line."
            )
        rows.append(_json(line, f"{file}, row {number}", "write one object a line"))
    return rows


def _json_list(file: Path, text: str) -> list[object]:
    if not text.strip():
        raise DatasetError(f"{file}: empty; a list of objects is needed.")
    parsed = _json(text, f"{file}", "the file may be cut short")
    if not isinstance(parsed, list):
        raise DatasetError(f"{file}: not a list but {_kind(parsed)}; write a list of objects.")
    return parsed


def _json(text: str, where: str, advice: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DatasetError(
            f"{where}, {line}column {error.colno}: not JSON ({error.msg}); {advice}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: a number or a nest of lists too large to be read; {advice}.") from error


def _named(file: Path, number: int, row: object) -> Row:
    if not isinstance(row, dict):
        raise DatasetError(f'{file}, row {number}: not an object but {_kind(row)}; write {{"text": ...}}.')
    cells = {str(key).strip().lower(): value for key, value in row.items()}
    try:
        return Row(file, number, with_text(cells))
    except DatasetError as error:
        raise Row(file, number, cells).fault("messages", str(error)) from error


def _empty(file: Path) -> DatasetError:
    return DatasetError(f"{file}: there is no row; at least one prompt is needed.")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value)) or ("a number" if isinstance(value, int | float) else kind_of(value))


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[\w+.-]{1,32}", text.strip()) is not None
