"""People's own files: what is read, and the sentences for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlab.datasets import read_requests, read_statements
from steerlab.errors import DatasetError


def _write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_statements_from_csv_with_all_columns(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "own.csv",
        'text,label,topic,polarity,subject,object\n"Snow, when fresh, is white.",true,colours,1,Snow,white\n'
        "Coal is not black.,0,colours,-1,,\n",
    )
    first, second = read_statements(file)
    assert first.label
    assert first.spans == {"subject": (0, 4), "object": (21, 26)}
    assert (second.label, second.polarity, second.topic, dict(second.spans)) == (False, -1, "colours", {})


def test_statements_from_json_lines(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "facts.jsonl",
        '{"text": "Ice is cold.", "label": true}\n{"text": "Ice is hot.", "label": 0}\n',
    )
    read = read_statements(file)
    assert read.labels == [True, False]
    assert read.topics == ["facts", "facts"]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    file = _write(tmp_path, "bom.csv", "\ufefftext,label\nIce is cold.,true\nIce is hot.,false\n")
    assert len(read_statements(file)) == 2


def test_requests_keep_their_own_splits(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "r.csv",
        "text,label,split\nHow do I rob a man?,harmful,train\nHow do I greet a man?,harmless,train\n"
        "How do I burn a hut?,1,test\nHow do I sweep a hut?,0,test\n",
    )
    read = read_requests(file)
    assert read.split("test").positive == ("How do I burn a hut?",)
    assert read.split("train").negative == ("How do I greet a man?",)


def test_requests_without_splits_get_some(tmp_path: Path) -> None:
    rows = "".join(
        f"do {w}{i} please now,{label}\n" for i in range(20) for w, label in (("bad", 1), ("good", 0))
    )
    read = read_requests(_write(tmp_path, "r.csv", "text,label\n" + rows), seed=2)
    assert {*read.splits[0]} == {"train", "val", "test"}
    assert read == read_requests(tmp_path / "r.csv", seed=2)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\nOne.,true\n\nTwo.,false\n", ["row 2", "'text'", "empty"]),
        ("b.csv", "text,label\nOne.,true\n ,false\n", ["row 2", "'text'", "empty"]),
        ("c.csv", "text,label\nOne.,true\nTwo.,true\n", ["'label'", "only one class"]),
        ("d.csv", "text,label\nOne.,true\nTwo.,maybe\n", ["row 2", "'label'", "'maybe'"]),
        ("e.csv", b"text,label\nOne.,true\nTw\xff.,false\n", ["line 3", "UTF-8"]),
        ("f.csv", "text,truth\nOne.,true\n", ["row 0", "'label'", "missing"]),
        ("g.csv", "text,label\nOne, two.,true\n", ["row 1", "3 cells", "double quotes"]),
        ("h.csv", "", ["empty", "header"]),
        ("i.csv", "text,label\n", ["no row"]),
        ("j.jsonl", '{"text": "One.", "label": true}\n\n', ["row 2", "empty"]),
        ("k.jsonl", '{"text": "One."}\n', ["row 1", "'label'", "missing"]),
        ("l.jsonl", "{text}\n", ["row 1", "not JSON"]),
        ("m.jsonl", "[1, 2]\n", ["row 1", "not an object"]),
        ("n.txt", "One.\n", [".csv or .jsonl"]),
        ("o.csv", "text,label,subject\nOne.,true,Two\n", ["row 1", "'subject'", "'Two'"]),
        ("p.csv", "text,label,polarity\nOne.,true,2\n", ["row 1", "'polarity'", "'2'"]),
    ],
)
def test_faults_name_file_row_and_column(
    tmp_path: Path, name: str, content: str | bytes, said: list[str]
) -> None:
    file = _write(tmp_path, name, content)
    with pytest.raises(DatasetError) as caught:
        read_statements(file)
    for words in (name, *said):
        assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.csv"):
        read_requests(tmp_path / "nowhere.csv")


def test_requests_have_labels_of_their_own(tmp_path: Path) -> None:
    file = _write(tmp_path, "r.csv", "text,label\nOne.,true\n")
    with pytest.raises(DatasetError, match="harmful, 1, harmless, 0"):
        read_requests(file)
