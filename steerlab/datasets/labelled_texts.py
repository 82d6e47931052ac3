"""A person's own contrast, however it is kept: two lists, pairs, a labelled table, a contrast set or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerlab.datasets.contrast_set import ContrastSet
from steerlab.datasets.frames import row_advice, rows_of, table_advice
from steerlab.datasets.groups import Groups, groups_of
from steerlab.datasets.messages import with_text
from steerlab.datasets.prompt_sets import read_prompts
from steerlab.datasets.readers.source import ending_of, lines_of
from steerlab.datasets.readers.table import ENDINGS, Table, name_of, read_table
from steerlab.datasets.statement_set import StatementSet
from steerlab.errors import DatasetError
from steerlab.showing import cut

_TEXTS = ("text", "statement", "prompt", "instruction")
_GROUPS = ("group", "pair")
_UNDERSTOOD = (
    "give two lists of texts, a list of (positive, negative) pairs, a ContrastSet or StatementSet, or rows (a file, "
    "DataFrame or Dataset) with the columns text and label, or positive and negative"
)
_FIRST = {"1", "true", "positive", "harmful", "yes", "pos"}


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of two classes.

    labels: 1 for the class a direction points to. names: of that class and of the other. groups: what is held out
    together.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, str]
    groups: Groups

    @property
    def hash(self) -> str:
        """A short hash of texts and labels."""
        content = repr((self.texts, self.labels)).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def sentence(self) -> str:
        """Where a direction of these texts points, where the classes have names, and what is held out together."""
        named = self.names != ("positive", "negative")
        points = f"The direction points from {self.names[1]!r} to {self.names[0]!r}. " if named else ""
        return (points + self.groups.sentence).strip()


def labelled_texts(
    given: Any,
    negative: Sequence[str] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    positive: str | None = None,
) -> LabelledTexts:
    """Read a contrast of two classes of texts.

    Args:
        given: the positive texts when `negative` is given; else (positive, negative) pairs, a `ContrastSet`, a
            `StatementSet`, a file, or a table (DataFrame, Dataset, list of rows) with columns text and label, or
            positive and negative, and perhaps group or pair.
        negative: the other texts.
        groups: one name a text, in the order positive, then negative (or of the rows): what is held out together.
        positive: the name of the class that the direction points to: a label of the table, or of a contrast set; by
            default a table's label that reads as yes (1, true, positive, harmful), else its first.

    Raises:
        DatasetError: nothing of these, one class only, other than two labels, or a text that is no text; of a file or
            frame the sentence names it, and the row where one is at fault.
    """
    with naming(given if negative is None else None):
        data = _read(given, negative, groups)
        return data if positive is None else _pointing_to(str(_plain(positive)), data)


@contextmanager
def naming(given: Any) -> Iterator[None]:
    """Errors of data begin with the name of the file, folder or frame that they are of."""
    try:
        yield
    except DatasetError as error:
        of_file = isinstance(given, str | Path) or rows_of(given) is not None
        if not of_file or str(error).startswith(name_of(given)):
            raise
        raise DatasetError(f"{name_of(given)}: {error}") from error


# -- private, in the order they are called --


def _read(given: Any, negative: Any, groups: Sequence[Hashable] | None) -> LabelledTexts:
    if negative is not None:
        return _two_lists(given, negative, groups)
    if isinstance(given, LabelledTexts) and groups is None:
        return given
    if isinstance(given, ContrastSet):
        names = (given.positive_name, given.negative_name)
        known = given.pairs if groups is None else groups
        return _two_lists(given.positive, given.negative, known, names)
    if isinstance(given, StatementSet):
        labels = [int(label) for label in given.labels]
        return _made(given.texts, labels, ("true", "false"), _subjects(given) if groups is None else groups)
    rows = _rows(given)
    if all(isinstance(row, Mapping) and {"positive", "negative"} <= row.keys() for row in rows):
        pairs = [(row["positive"], row["negative"]) for row in rows]
        return _paired(pairs, _group_column(rows) if groups is None else groups)
    if all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        return _paired(rows, groups)
    if all(isinstance(row, Mapping) and "label" in row for row in rows):
        return _labelled(rows, groups)
    raise DatasetError(f"A contrast cannot be read from this; {_UNDERSTOOD}.")


def _pointing_to(name: str, data: LabelledTexts) -> LabelledTexts:
    """The same texts with the named class as the one that the direction points to."""
    same = [known for known in data.names if known == name] or [
        known for known in data.names if known.lower() == name.lower()
    ]
    if not same:
        raise DatasetError(
            f"No text has the label {name!r}; the labels are {data.names[0]!r} and {data.names[1]!r}."
        )
    if same[0] == data.names[0]:
        return data
    flipped = tuple(1 - label for label in data.labels)
    return replace(data, labels=flipped, names=(data.names[1], data.names[0]))


def _subjects(statements: StatementSet) -> list[Hashable] | None:
    """Statements of one subject are held out together, where every one marks its subject."""
    if not all("subject" in item.spans for item in statements):
        return None
    return [(item.topic, item.text[slice(*item.spans["subject"])]) for item in statements]


def _two_lists(
    positive: Any,
    negative: Any,
    groups: Sequence[Hashable] | None,
    names: tuple[str, str] = ("positive", "negative"),
) -> LabelledTexts:
    lists = [_lines(texts) for texts in (positive, negative)]
    texts = [*lists[0], *lists[1]]
    return _made(texts, [1] * len(lists[0]) + [0] * len(lists[1]), names, groups)


def _lines(given: Any) -> list[str]:
    """The texts of a list, or of a file with one a line or a row."""
    if isinstance(given, Path) or (isinstance(given, str) and Path(given).is_file()):
        file = Path(given)
        rows = ending_of(file) in ENDINGS
        lines = list(read_prompts(file)) if rows else [line for _, line in lines_of(file)]
        if not lines:
            raise DatasetError(f"{file}: empty; write the texts of one class, one a line.")
        return lines
    if isinstance(given, str):
        raise DatasetError(
            f"One text is no list of texts, and {given[:40]!r} is no file; give a list or a file."
        )
    if advice := table_advice(given):
        raise DatasetError(f"The texts of a class come {advice}.")
    return list(given)


def _rows(given: Any) -> list[Any]:
    """Rows of a file, a DataFrame (pandas or polars), a Dataset, or a list."""
    if isinstance(given, str | Path) or rows_of(given) is not None:
        return _table_rows(read_table(given))
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        rows = [_said(number, row) for number, row in enumerate(given)]
        if rows:
            return rows
    raise DatasetError(f"A contrast cannot be read from this; {_UNDERSTOOD}.")


def _said(number: int, row: Any) -> Any:
    """A row of a list; of a conversation the user's last message is the text."""
    try:
        return with_text(row) if isinstance(row, Mapping) else row
    except DatasetError as error:
        raise DatasetError(f"Row {number}, column 'messages': {error}") from error


def _table_rows(table: Table) -> list[dict[str, Any]]:
    """Rows of a file or frame: all of them pairs, or all of them a text and a label."""
    columns = {column for row in table.rows for column in row.cells}
    text = next((column for column in _TEXTS if column in columns), None)
    if columns >= {"positive", "negative"}:
        texts = ["positive", "negative"]
    elif text is not None and "label" in columns:
        texts = [text]
    else:
        raise DatasetError(
            f"{table.file}, row 0: the columns are {table.named}; name those of a contrast text and label, or positive "
            "and negative."
        )
    for row in table.rows:
        for column in texts:
            row.text(column)
        if "label" in columns and not row.has("label"):
            raise row.fault("label", "empty; every row needs one.")
    return [dict(row.cells) for row in table.rows]


def _group_column(rows: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """The groups of a table; a row without one is a group by itself."""
    given = _column(rows, _GROUPS)
    if given is None:
        return None
    empty = (None, "")
    return [("row", at) if name in empty or name != name else name for at, name in enumerate(given)]


def _column(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Any] | None:
    name = next((name for name in names if all(name in row for row in rows)), None)
    return None if name is None else [row[name] for row in rows]


def _paired(pairs: Sequence[Any], groups: Sequence[Hashable] | None) -> LabelledTexts:
    """One group a pair, or the pairs' own groups."""
    names = list(range(len(pairs))) if groups is None else list(groups)
    positive, negative = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    twice = [*names, *names] if len(names) == len(pairs) else names
    return _two_lists(positive, negative, twice)


def _labelled(rows: Sequence[Mapping[str, Any]], groups: Sequence[Hashable] | None) -> LabelledTexts:
    texts = _column(rows, _TEXTS)
    if texts is None:
        raise DatasetError(
            f"The rows have labels but no column {', '.join(_TEXTS)}; name the texts' column text."
        )
    labels = [str(_plain(row["label"])).strip() for row in rows]
    kinds = list(dict.fromkeys(labels))
    if len(kinds) != 2:
        raise DatasetError(_labels_sentence(labels, kinds))
    first = next((kind for kind in kinds if kind.lower() in _FIRST), kinds[0])
    other = kinds[1] if kinds[0] == first else kinds[0]
    given = _group_column(rows) if groups is None else groups
    return _made(texts, [int(label == first) for label in labels], (first, other), given)


def _labels_sentence(labels: Sequence[str], kinds: Sequence[str]) -> str:
    """What is wrong with labels that are not two, and what to do."""
    if len(kinds) == 1:
        return f"All {len(labels)} rows have the label {cut(kinds[0], 40)!r}; add rows with a second label."
    more = f" and {len(kinds) - 5} more" if len(kinds) > 5 else ""
    first = ", ".join(f"{cut(kind, 40)!r} (first in row {labels.index(kind) + 1})" for kind in kinds[:5])
    return (
        f"There are {len(kinds)} labels, {first}{more}; a contrast has two, so keep the rows of two of them."
    )


def _plain(label: Any) -> Any:
    """A frame keeps 0 and 1 as 0.0 and 1.0 where a cell was missing once."""
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _made(
    texts: Sequence[Any], labels: Sequence[int], names: tuple[str, str], groups: Sequence[Hashable] | None
) -> LabelledTexts:
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            kind = "empty; every row needs a text" if isinstance(text, str) else row_advice(text)
            raise DatasetError(f"Text {number} of the contrast is {kind}.")
    if len(set(labels)) != 2:
        raise DatasetError("The contrast holds one class only; add texts of the other.")
    both = {text for text, label in zip(texts, labels, strict=True) if label} & {
        text for text, label in zip(texts, labels, strict=True) if not label
    }
    if both:
        raise DatasetError(
            f"Texts stand in both classes ({len(both)} of them); a text has one label, so leave out what has two."
        )
    return LabelledTexts(tuple(texts), tuple(labels), names, groups_of(texts, labels, groups))
