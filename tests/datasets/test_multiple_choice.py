"""Multiple choice: what is read, what statements make, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlab import datasets
from steerlab.datasets import ChoiceQuestion, choice_questions, questions_hash, read_multiple_choice
from steerlab.errors import DatasetError


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_usual_layouts_are_read_alike(tmp_path: Path) -> None:
    expected = ("What is red?", ("grass", "blood", "snow"), 1)
    layouts: list[dict[str, object]] = [
        {"question": "What is red?", "choices": ["grass", "blood", "snow"], "answer": 1},
        {"question": "What is red?", "choices": ["grass", "blood", "snow"], "answer": "B"},
        {"question": "What is red?", "choices": ["grass", "blood", "snow"], "answer": "blood"},
        {"question": "What is red?", "A": "grass", "B": "blood", "C": "snow", "answer": "(B)"},
        {
            "question": "What is red?",
            "choices": {"text": ["grass", "blood", "snow"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        {"prompt": "What is red?\n\nChoices:\n(A) grass\n(B) blood\n(C) snow", "correct": "(B)"},
    ]
    for row in layouts:
        (one,) = read_multiple_choice(written(tmp_path / "q.jsonl", [row]))
        assert (one.text, one.choices, one.right) == expected, row
        assert one.topic == "q"
    table = tmp_path / "q.csv"
    table.write_text("question,A,B,C,answer,subject\nWhat is red?,grass,blood,snow,B,colours\n")
    (one,) = read_multiple_choice(table)
    assert (one.text, one.choices, one.right) == expected
    assert one.topic == "colours"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "x", "choices": ["a"], "answer": 0},
            "row 1, column 'choices': A question has 1 answers",
        ),
        ({"question": "x", "choices": ["a", "a"], "answer": 0}, "two equal answers"),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, "number 2"),
        ({"question": "x", "choices": ["a", "b"], "answer": "Z"}, "column 'answer': neither a number"),
        ({"question": "x", "choices": ["1", "2", "3"], "answer": "2"}, "the number of another"),
        ({"question": "x", "answer": "A"}, "column 'choices': missing"),
        ({"question": "x", "choices": ["a", "b"]}, "row 1, column 'answer': neither"),
        (
            {"question": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
            "column 'answerkey': none of the labels",
        ),
        ({"text": "x", "label": 1}, "not those of multiple choice"),
    ],
)
def test_faults_are_named(row: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said.replace("(", r"\(")):
        read_multiple_choice(written(tmp_path / "q.jsonl", [row]))


def test_published_files_are_read(shared: Path) -> None:
    found = read_multiple_choice(shared / "data/contrast_pairs/CAA/datasets/test/mmlu/mmlu.json")
    assert len(found) == 570
    assert {len(one.choices) for one in found} == {2}
    assert found[0].choices == ("False, False", "False, True")
    assert found[0].right == 0
    truthful = next((shared / "data/contrast_pairs/TruthfulQA").rglob("*.csv"), None)
    if truthful is not None:
        asked = read_multiple_choice(truthful)
        assert len(asked) > 700
        first = sum(one.right == 0 for one in asked) / len(asked)
        assert first == pytest.approx(sum(1 / len(one.choices) for one in asked) / len(asked), abs=0.06)


def test_statements_make_questions_whose_wrong_answers_are_wrong() -> None:
    statements = datasets.statements()
    made = choice_questions(statements, seed=2)
    assert len(made) > 100
    truths = {
        (item.topic, item.text[slice(*item.spans["subject"])], item.text[slice(*item.spans["object"])])
        for item in statements
        if item.label and item.polarity == 1
    }
    for one in made:
        assert len(one.choices) == 4
        for number, choice in enumerate(one.choices):
            assert ((one.topic, one.subject, choice) in truths) == (number == one.right)
    assert len({one.text for one in made}) == len(made)
    assert questions_hash(made) == questions_hash(choice_questions(statements, seed=2))
    assert questions_hash(made) != questions_hash(choice_questions(statements, seed=3))
    rights = [one.right for one in made]
    assert 0.15 < rights.count(0) / len(rights) < 0.35


def test_wrong_questions_are_refused() -> None:
    for choices, right in ((("a",), 0), (("a", "a"), 0), (("a", "b"), 2), (tuple(map(str, range(27))), 0)):
        with pytest.raises(DatasetError):
            ChoiceQuestion("x", choices, right)
