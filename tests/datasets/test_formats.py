"""Data as people keep it: one set of rows in every format, and what is refused before it is read."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from steerlab.datasets import (
    read_caa,
    read_multiple_choice,
    read_pairs,
    read_prompts,
    read_requests,
    read_statements,
    read_task,
    read_truthful_qa,
)
from steerlab.datasets.labelled_texts import labelled_texts
from steerlab.datasets.readers import source
from steerlab.errors import DatasetError

ROWS: list[dict[str, Any]] = [
    {"text": "Snow, fresh; cold, is white.", "label": 1, "topic": "snow"},
    {"text": "Coal is white.", "label": 0, "topic": "coal"},
]
FORMATS = ["csv", "semicolons", "tsv", "tabs", "gz", "jsonl", "jsonl.gz", "json", "parquet", "messages", "frame",
           "arrow", "blank end"]  # fmt: skip


def kept(folder: Path, form: str, rows: list[dict[str, Any]]) -> Any:
    """The rows in a file of some format, or in memory."""
    frame = pd.DataFrame(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    messages = [
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": row["text"]},
                      {"role": "assistant", "content": "So it is."}],
         **{name: value for name, value in row.items() if name != "text"}}
        for row in rows
    ]  # fmt: skip
    contents: dict[str, tuple[str, Any]] = {
        "csv": ("rows.csv", frame.to_csv(index=False)),
        "semicolons": ("rows.csv", frame.to_csv(index=False, sep=";")),
        "tsv": ("rows.tsv", frame.to_csv(index=False, sep="\t")),
        "tabs": ("rows.csv", frame.to_csv(index=False, sep="\t")),
        "gz": ("rows.csv.gz", gzip.compress(frame.to_csv(index=False).encode())),
        "jsonl": ("rows.jsonl", lines),
        "jsonl.gz": ("rows.jsonl.gz", gzip.compress(lines.encode())),
        "json": ("rows.json", json.dumps(rows)),
        "messages": ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in messages)),
        "blank end": ("rows.csv", frame.to_csv(index=False) + ",,\n\n"),
    }
    if form == "frame":
        return frame
    if form == "arrow":
        return pa.table(frame)
    file = folder / contents.get(form, ("rows.parquet", ""))[0]
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
        return file
    content = contents[form][1]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    given = kept(tmp_path, form, ROWS)
    read = read_statements(given)
    assert read.texts == [row["text"] for row in ROWS]
    assert read.labels == [True, False]
    assert read.topics == ["snow", "coal"]
    data = labelled_texts(given)
    assert (data.texts, data.labels) == (tuple(read.texts), (1, 0))
    assert form == "json" or read_prompts(given) == tuple(read.texts)


def test_endings_are_no_part_of_a_topic(tmp_path: Path) -> None:
    file = tmp_path / "neg_cities.csv.gz"
    file.write_bytes(gzip.compress(b"statement,label\nOslo is not in Oman.,1\nOslo is not in Norway.,0\n"))
    assert read_statements(file).topics == ["cities", "cities"]
    assert read_statements(tmp_path).polarity == [-1, -1]
    for kind in ("harmful", "harmless"):
        for split in ("train", "val", "test"):
            packed = gzip.compress(json.dumps([{"instruction": f"{kind} {split}"}]).encode())
            (tmp_path / f"{kind}_{split}.json.gz").write_bytes(packed)
    assert read_requests(tmp_path).split("val").positive == ("harmful val",)


def test_a_class_of_texts_in_a_table_is_no_list_of_lines(tmp_path: Path) -> None:
    (tmp_path / "happy.csv").write_text("text\nI am glad.\n")
    (tmp_path / "sad.txt").write_bytes("I am sorry.\u2028Very.\r\n\r\n".encode())
    assert labelled_texts(tmp_path / "happy.csv", tmp_path / "sad.txt").texts == (
        "I am glad.",
        "I am sorry.\u2028Very.",
    )


@pytest.mark.parametrize("form", ["csv", "semicolons", "tsv", "gz", "jsonl", "parquet", "frame"])
@pytest.mark.parametrize("read", [read_statements, labelled_texts, read_requests])
def test_a_bad_row_is_named(form: str, read: Callable[[Any], Any], tmp_path: Path) -> None:
    given = kept(tmp_path, form, [*ROWS, {"text": None, "label": 1, "topic": "x"}])
    name = "DataFrame" if form == "frame" else given.name
    with pytest.raises(DatasetError, match=rf"{name}, row 3, column 'text': "):
        read(given)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hello", "column 'messages': not a list of"),
        ([{"role": "user"}], "column 'messages': not a list of"),
        ([{"role": "assistant", "content": "Hi"}], "column 'messages': the user's last message is no text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the user's last message is no text"),
    ],
)  # fmt: skip
def test_conversations_without_a_users_text(messages: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages, "label": 1}))
    for read in (read_statements, labelled_texts):
        with pytest.raises(DatasetError, match=f"rows.jsonl, row 1, {said}" if "col" in said else said):
            read(file)
    with pytest.raises(DatasetError, match=f"line 1, {said}" if "col" in said else said):
        read_prompts(file)


READERS: list[Callable[[Any], Any]] = [read_statements, read_requests, read_caa, read_truthful_qa, read_prompts,
                                       read_multiple_choice, read_pairs, read_task]  # fmt: skip


@pytest.mark.parametrize("read", [*READERS, lambda path: labelled_texts(path, ["a"])])
def test_only_regular_files_are_read(read: Callable[[Any], Any], tmp_path: Path) -> None:
    """A device never ends, and to open a pipe without a writer waits for ever."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv", "pipe.csv"):
        with pytest.raises(DatasetError, match=rf"{name}: cannot be read \(a device or a pipe\)"):
            read(tmp_path / name)
    with pytest.raises(DatasetError, match="cannot be read"):
        read(Path("/dev/zero"))


def test_a_file_is_bounded_packed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        kept(tmp_path, form, [{"text": "a" * 2_000, "label": 1}] * 2) for form in ("csv", "gz", "parquet")
    ]
    monkeypatch.setattr(source, "LIMIT", 1_000)
    for file in files:
        with pytest.raises(DatasetError, match=rf"{file.name}: holds more than 0 MiB; split the file"):
            read_statements(file)


def test_damaged_packed_files(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\nOne.,1\nTwo.,0\n" * 50)
    for content in (b"text,label\n", whole[:-9], whole[:40], b""):
        (tmp_path / "a.csv.gz").write_bytes(content)
        with pytest.raises(DatasetError, match=r"a\.csv\.gz"):
            read_statements(tmp_path / "a.csv.gz")


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kept(tmp_path, "parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DatasetError, match="need the library pyarrow; install steerlab"):
        read_statements(file)


def test_what_is_no_data_at_all() -> None:
    for read in READERS[:-1]:
        with pytest.raises(DatasetError, match="from a file, a folder or a frame, not from an int"):
            read(5)
