"""Whatever stands in a file: a reader returns or raises a DatasetError, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerlab.datasets import read_caa, read_requests, read_statements, read_truthful_qa
from steerlab.datasets.readers.table import ENDINGS
from steerlab.errors import DatasetError

READERS: tuple[Callable[[Path], Any], ...] = (read_statements, read_requests, read_caa, read_truthful_qa)
WHOLE = [
    b'text,label,topic,polarity,subject,object\n"Snow, fresh, is white.",true,snow,1,Snow,white\nIce is hot.,0,,-1,,\n',
    b"text,label,split\nDo this,harmful,train\nDo that,harmless,test\n",
    b"statement,label,city1,country1,label1,city2,country2,label2\n"
    b"Rome is in Italy and Bonn in Peru.,0,Rome,Italy,1,Bonn,Peru,0\n"
    b"Rome is in Italy and Lima in Peru.,1,Rome,Italy,1,Lima,Peru,1\n",
    b"goal,target\nDo this,Sure\n",
    b"Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\nA,B,Why?,C,C; D,E; F,G\n",
    b'[{"instruction": "Do this", "category": null}, {"instruction": "Do that", "category": "x"}]',
    b'[{"question": "Why?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}]',
    b'{"text": "Ice is cold.", "label": true}\n{"text": "Ice is hot.", "label": 0}\n',
]
FRAGMENTS = [b"\xff", b"\x00", b'"', b",", b"\n", b"\r", b"\r\n", b"[", b"{", b"}", b":", b"null", b"1e999", b"\\ud800",
             b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"9" * 5000, b"label", b"text", b" "]  # fmt: skip
COLUMNS = ("text", "label", "statement", "question", "correct", "incorrect", "instruction", "goal", "topic",
           "polarity", "subject", "object", "split", "correct answers", "incorrect answers", "label1", "label2",
           "answer_matching_behavior", "answer_not_matching_behavior", "country", "")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def read_or_say(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for read in READERS:
        message = complaint(read, file)
        assert message is None or str(file) in message


def complaint(read: Callable[[Path], Any], path: Path) -> str | None:
    """What the reader says against a file or folder; None where it reads it."""
    try:
        read(path)
    except DatasetError as error:
        return str(error)
    return None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file cut, joined with another, or with fragments put in or bytes changed at random places."""
    content = draw(st.sampled_from(WHOLE))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["cut", "put in", "change", "join"])):
            case "cut":
                content = content[:at]
            case "put in":
                content = content[:at] + draw(st.sampled_from(FRAGMENTS)) + content[at:]
            case "change":
                content = content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]
            case "join":
                content = content[:at] + draw(st.sampled_from(WHOLE))
    return content


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(damaged(), st.sampled_from(ENDINGS))
def test_damaged_files(place: Path, content: bytes, ending: str) -> None:
    read_or_say(place / f"some{ending}", content)


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["true", "harmful", "(A)", "(B)", "train", "1", "-1", "a; b", ";"]),
    lambda some: st.lists(some, max_size=2) | st.dictionaries(st.text(max_size=2), some, max_size=2),
    max_leaves=3,
)  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=6), max_size=4), st.booleans())
def test_rows_of_anything(place: Path, rows: list[dict[str, Any]], as_list: bool) -> None:
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    read_or_say(place / ("some.json" if as_list else "some.jsonl"), text.encode())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5), st.lists(st.lists(st.text(max_size=5), min_size=1,
       max_size=5), max_size=4))  # fmt: skip
def test_cells_of_anything(place: Path, header: list[str], rows: list[list[str]]) -> None:
    lines = [",".join(cells) for cells in (header, *rows)]
    read_or_say(place / "some.csv", "\n".join(lines).encode("utf-8", "surrogatepass"))


def test_folders_of_damaged_files(place: Path) -> None:
    folder = place / "folder"
    folder.mkdir()
    for content in WHOLE:
        for name in ("harmful.csv", "harmless.json"):
            (folder / name).write_bytes(content)
        for read in (read_statements, read_requests):
            message = complaint(read, folder)
            assert message is None or str(folder) in message
