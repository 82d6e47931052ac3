"""People's own files: what is read, and the sentences for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlab.datasets import (
    Question,
    question_statements,
    read_caa,
    read_requests,
    read_statements,
    read_truthful_qa,
)
from steerlab.errors import DatasetError


def _write(folder: Path, name: str, text: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
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


def test_spans_are_whole_words_and_the_object_comes_after_the_subject(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "s.csv",
        "text,label,subject,object\nPanama City is in Panama.,1,Panama City,Panama\n"
        "In Romania there is no Oman.,1,,Oman\nThe capital of France is Paris.,1,France,Paris\n"
        "Paris is the capital of France.,1,France,Paris\nNice is nice.,0,ice,\n",
    )
    spans = [dict(item.spans) for item in read_statements(file)]
    assert spans == [
        {"subject": (0, 11), "object": (18, 24)},
        {"object": (23, 27)},
        {"subject": (15, 21), "object": (25, 30)},
        {"subject": (24, 30), "object": (0, 5)},
        {"subject": (1, 4)},
    ]


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
        ("j.jsonl", '{"text": "One.", "label": true}\n\n{"text": "Two."}\n', ["row 2", "empty"]),
        ("k.jsonl", '{"text": "One."}\n', ["row 1", "'label'", "missing"]),
        ("l.jsonl", "{text}\n", ["row 1", "not JSON"]),
        ("m.jsonl", "[1, 2]\n", ["row 1", "not an object"]),
        ("n.txt", "One.\n", [".csv, .jsonl or .json"]),
        ("o.csv", "text,label,subject\nOne.,true,Two\n", ["row 1", "'subject'", "'Two'"]),
        ("p.csv", "text,label,polarity\nOne.,true,2\n", ["row 1", "'polarity'", "'2'"]),
        ("q.csv", 'text,label\nOne.,true\n"Two.,false\nThree.,true\n', ["row 2", "never closed"]),
        ("r.csv", "text,label,text\nOne.,true,Two.\n", ["row 0", "'text'", "twice"]),
        ("s.csv", f"text,label\nOne.,true\n{'x' * 140_000},false\n", ["row 2", "field limit"]),
        ("t.csv", "label\ntrue\n", ["row 0", "'text'", "missing"]),
        ("u.csv", "One is one.,true\nTwo is one.,false\n", ["1 that is not a single word", "text,label"]),
        ("v.csv", "goal,target\nDo it.,Sure\n", ["goal, target", "AdvBench", "read_requests"]),
        ("w.jsonl", '{"text": 5, "label": 1}\n', ["row 1", "'text'", "a number"]),
        ("x.jsonl", '{"text": "One.", "label": [1]}\n', ["row 1", "'label'", "what stands there"]),
        ("y.jsonl", '{"text": "\\ud800", "label": 1}\n', ["row 1", "'text'", "surrogate"]),
        ("z.jsonl", "[" * 100_000 + "\n", ["row 1", "too large"]),
        ("aa.json", '[{"text": "One.", "label": true},', ["column", "cut short"]),
        ("ab.json", '{"text": "One.", "label": true}', ["not a list but an object"]),
        ("ac.json", "[]", ["no row"]),
        ("ad.json", "", ["empty"]),
        ("ae.json", '["One."]', ["row 1", "not an object but a text"]),
        ("af.json", '[{"instruction": "Do it."}]', ["instruction", "refusal_direction", "read_requests"]),
        ("ag.jsonl", '{"question": "?", "answer_matching_behavior": "(A)"}\n', ["CAA", "read_caa"]),
        ("ah.csv", "statement,label,label1,label2\nOne.,1,1,0\nTwo.,0,1,0\n", ["'label'", "'and'", "'or'"]),
        ("ai.csv", "Question,Correct Answers,Incorrect Answers\nWhy?,;,No\n", ["row 1", "'correct answers'"]),
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


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere", "no\0where.json", "x" * 300 + ".csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    for read in (read_statements, read_requests, read_caa, read_truthful_qa):
        with pytest.raises(DatasetError, match="cannot be read"):
            read(tmp_path / name)


def test_requests_have_labels_of_their_own(tmp_path: Path) -> None:
    file = _write(tmp_path, "r.csv", "text,label\nOne.,true\n")
    with pytest.raises(DatasetError, match="harmful, 1, harmless, 0"):
        read_requests(file)


def test_geometry_of_truth_gives_spans_topic_and_polarity(tmp_path: Path) -> None:
    rows = "statement,label,city,country,correct_country\n"
    _write(
        tmp_path / "sets",
        "cities.csv",
        rows + "The city of Mexico City is in Mexico.,1,Mexico City,Mexico,Mexico\n"
        "The city of Oslo is in Oman.,0,Oslo,Oman,Norway\n",
    )
    _write(
        tmp_path / "sets", "neg_cities.csv", rows + "The city of Oslo is not in Oman.,1,Oslo,Oman,Norway\n"
    )
    read = read_statements(tmp_path / "sets")
    assert read.topics == ["cities"] * 3
    assert read.polarity == [1, 1, -1]
    assert read.subjects == ["Mexico City", "Oslo", "Oslo"]
    assert read[0].spans == {"subject": (12, 23), "object": (30, 36)}
    assert [item.text[slice(*item.spans["object"])] for item in read] == ["Mexico", "Oman", "Oman"]


def test_joined_statements_are_told_by_their_parts_labels(tmp_path: Path) -> None:
    columns = "statement,label,statement1,label1,city1,country1,statement2,label2,city2,country2\n"
    both = _write(
        tmp_path,
        "cities_cities_conj.csv",
        columns + "Rome is in Italy and Bonn is in Peru.,0,,1,Rome,Italian Republic,,0,Bonn,Peru\n"
        "Rome is in Italy and Lima is in Peru.,1,,1,Rome,Italy,,1,Lima,Peru\n",
    )
    first, second = read_statements(both)
    assert (first.form, first.topic, first.label) == ("conjunction", "cities", False)
    assert set(first.spans) == {"first_subject", "subject", "object"}
    assert {name: second.text[slice(*span)] for name, span in second.spans.items()} == {
        "first_subject": "Rome",
        "first_object": "Italy",
        "subject": "Lima",
        "object": "Peru",
    }
    either = _write(tmp_path, "a.csv", "statement,label,label1,label2\nOne.,1,1,0\nTwo.,0,0,0\n")
    assert read_statements(either)[0].form == "disjunction"


def test_a_folder_without_statements_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no CSV or JSON Lines file"):
        read_statements(tmp_path)


def test_truthful_qa_groups_answers_by_question(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        "qa.csv",
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
        "A,Sky,What falls?,Rain,Rain; Snow; Rain; Both,Cats; Dogs; Both,x\n",
    )
    assert read_truthful_qa(file) == (
        Question("What falls?", ("Rain", "Snow", "Both"), ("Cats", "Dogs", "Both"), "Sky"),
    )
    made = read_statements(file)
    assert made == question_statements(read_truthful_qa(file))
    assert made.texts == [f"Q: What falls? A: {answer}" for answer in ("Rain", "Snow", "Cats", "Dogs")]
    assert made.labels == [True, True, False, False]
    assert set(made.subjects) == {"What falls?"}
    assert made[0].text[slice(*made[0].spans["object"])] == "Rain"
    with pytest.raises(DatasetError, match="at least one correct"):
        Question("Why?", (), ("No",))


def test_pairs_of_lettered_answers(tmp_path: Path) -> None:
    key, other = "answer_matching_behavior", "answer_not_matching_behavior"
    good = f'{{"question": "Which?", "{key}": " (A)", "{other}": "(C)"}}'
    (pair,) = read_caa(_write(tmp_path, "c.json", f"[{good}]"))
    assert (pair.question, pair.letter, pair.other_letter) == ("Which?", "A", "C")
    assert read_caa(_write(tmp_path, "c.jsonl", good)) == (pair,)
    for bad, said in (
        (f'{{"question": "Which?", "{key}": "A", "{other}": "(B)"}}', [f"row 2, column '{key}'", "brackets"]),
        (f'{{"question": "Which?", "{key}": "(A)", "{other}": "(b)"}}', [f"row 2, column '{other}'"]),
        (f'{{"question": "Which?", "{key}": "(A)", "{other}": "(A)"}}', [f"column '{other}'", "the same"]),
        (f'{{"{key}": "(A)", "{other}": "(B)"}}', ["row 2, column 'question'", "missing"]),
        (f'{{"question": "Which?", "{key}": "(A)"}}', [f"row 2, column '{other}'", "missing"]),
    ):
        with pytest.raises(DatasetError) as caught:
            read_caa(_write(tmp_path, "d.json", f"[{good}, {bad}]"))
        assert all(words in str(caught.value) for words in said)


def test_a_folder_of_splits_keeps_them(tmp_path: Path) -> None:
    for kind in ("harmful", "harmless"):
        for split in ("train", "val", "test"):
            rows = [{"instruction": f"{kind} {split} {i}", "category": None} for i in range(3)]
            _write(tmp_path / "r", f"{kind}_{split}.json", json.dumps(rows))
    read = read_requests(tmp_path / "r")
    assert read.split("val").negative == ("harmless val 0", "harmless val 1", "harmless val 2")
    assert len(read) == 18
    (tmp_path / "r" / "harmless_val.json").unlink()
    with pytest.raises(DatasetError, match="harmless_val is missing"):
        read_requests(tmp_path / "r")


def test_requests_of_one_kind_need_the_other(tmp_path: Path) -> None:
    rows = "".join(f"Wreck thing{i} of owner{i},Sure\n" for i in range(12))
    harmful = _write(tmp_path / "r", "harmful_behaviors.csv", "goal,target\n" + rows)
    with pytest.raises(DatasetError, match="of one kind"):
        read_requests(harmful)
    with pytest.raises(DatasetError, match="no file whose name begins with 'harmless'"):
        read_requests(tmp_path / "r")
    kind = [{"instruction": f"Paint wall{i} of house{i}"} for i in range(9)]
    harmless = _write(tmp_path / "r", "harmless.json", json.dumps(kind))
    read = read_requests(tmp_path / "r", seed=3)
    assert read == read_requests(harmful, harmless=harmless, seed=3)
    assert (len(read.positive), len(read.negative)) == (12, 9)
    assert not any("Sure" in text for text in read.positive)
    assert {*read.splits[0]} == {*read.splits[1]} == {"train", "val", "test"}
    balanced = read.balanced()
    for split in ("train", "val", "test"):
        assert len(balanced.split(split).positive) == len(balanced.split(split).negative) > 0
        assert set(balanced.split(split).positive) <= set(read.split(split).positive)
    _write(tmp_path / "r", "harmless_more.json", json.dumps(kind))
    with pytest.raises(DatasetError, match="2 files whose name begins with 'harmless'"):
        read_requests(tmp_path / "r")


SECRET = "Forbidden words that no message repeats"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"{SECRET},harmful\nOther,harmless\n"),
        ("b.csv", f"{SECRET},{SECRET}\n"),
        ("c.csv", f"text,label\nharmful,{SECRET}\n"),
        ("d.csv", f"text,label\n{SECRET},harmful,1\n"),
        ("e.csv", f"text,label\n{SECRET},harmful\n"),
        ("f.csv", f'text,label\n"{SECRET},harmful\n'),
        ("g.jsonl", f'{{"text": "{SECRET}", "label": "{SECRET}"}}\n'),
        ("h.jsonl", f'{{"{SECRET}": 1}}\n'),
        ("i.json", f'[{{"text": "{SECRET}"'),
        ("j.json", f'[{{"instruction": "{SECRET}"}}]'),
        ("k.csv", f"text,label,split\n{SECRET},harmful,train\nOther,harmless,{SECRET}\n"),
        ("l.jsonl", f'{{"text": ["{SECRET}"], "label": 1}}\n'),
    ],
)
def test_no_message_repeats_a_prompt(tmp_path: Path, name: str, content: str) -> None:
    file = _write(tmp_path, name, content)
    for read in (read_requests, read_statements, read_caa, read_truthful_qa):
        with pytest.raises(DatasetError) as caught:
            read(file)
        assert "Forbidden" not in str(caught.value)
        assert name in str(caught.value)
