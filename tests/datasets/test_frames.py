"""Tables in memory: never a list of texts, always rows for a contrast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from steerlab.datasets.labelled_texts import labelled_texts
from steerlab.errors import DatasetError
from steerlab.models import PromptError, as_prompts

TEXTS = ["a cat", "two dogs", "a horse", "three cats"]
COLUMNS: dict[str, list[Any]] = {"text": TEXTS, "label": ["pet", "pet", "farm", "farm"]}


class Dataset:
    """What Hugging Face's `datasets.Dataset` offers: names, columns by name, rows in turn."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self._columns = columns
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({name: values[row] for name, values in self._columns.items()} for row in range(len(self)))


class Named(Dataset):
    """A Dataset of before, over which one gets the names of its columns."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.column_names)


class Polars:
    """What polars' DataFrame offers: names, rows as dictionaries, columns in turn."""

    columns = tuple(COLUMNS)

    def to_dicts(self) -> list[dict[str, Any]]:
        return list(Dataset(COLUMNS))

    def __iter__(self) -> Iterator[Any]:
        return iter(COLUMNS.values())


TABLES = [pd.DataFrame(COLUMNS), Dataset(COLUMNS), Polars(), pa.table(COLUMNS)]


@pytest.mark.parametrize("table", [*TABLES, Named(COLUMNS), COLUMNS])
def test_a_table_is_no_list_of_prompts(table: Any) -> None:
    with pytest.raises(PromptError, match=r"not as a table \('text', 'label'\); give one column of it"):
        as_prompts(table)
    with pytest.raises(DatasetError, match=r"not as a table \('text', 'label'\); give one column of it"):
        labelled_texts(table, table)


@pytest.mark.parametrize(
    "column", [pd.Series(TEXTS, index=[9, 7, 5, 3]), Dataset(COLUMNS)["text"], tuple(TEXTS)]
)
def test_a_column_of_a_table_is_one(column: Any) -> None:
    assert as_prompts(column) == TEXTS


@pytest.mark.parametrize("table", TABLES)
def test_the_rows_of_a_table_are_a_contrast(table: Any) -> None:
    data = labelled_texts(table, positive="farm")
    assert data.texts == tuple(TEXTS)
    assert data.labels == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ([{"role": "user", "content": "Hello"}], r"a chat message.*model\.instruction_prompt"),
        ([[{"role": "user", "content": "Hello"}]], r"a chat message.*model\.conversation_prompt"),
        (["Hello", {"text": "a cat", "n": 1}], r"is a row of a table \('text', 'n'\); give the texts of one"),
        (["Hello", 3.5], "is a float; give a text"),
    ],
)
def test_messages_and_rows_are_no_prompts(given: list[Any], advice: str) -> None:
    with pytest.raises(PromptError, match=advice):
        as_prompts(given)
    with pytest.raises(DatasetError, match=advice):
        labelled_texts(given, ["A cow"])
