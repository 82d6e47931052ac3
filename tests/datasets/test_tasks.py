"""Tasks: files as GSM8K and MATH write them, grading, splits, and what is wrong with a file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab import zoo
from steerlab.datasets import Task, read_task
from steerlab.datasets.tasks import is_math, is_number
from steerlab.errors import DatasetError


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_answers_are_taken_out_of_their_solutions(tmp_path: Path) -> None:
    gsm = read_task(
        write(tmp_path / "gsm.jsonl", {"question": "2+2?", "answer": "It is 2+2=<<2+2=4>>4\n#### 1,234"})
    )
    assert gsm.answers == ("1,234",)
    assert gsm.grading == "number"
    assert gsm.locked[0].startswith("2+2?")
    assert gsm.right(["so it is 1234."]) == [True]
    math = read_task(
        write(tmp_path / "math.jsonl", {"problem": "x?", "solution": r"so \boxed{\frac{1}{2}} it is"})
    )
    assert math.answers == (r"\frac{1}{2}",)
    assert math.grading == "math"


@given(st.integers(-(10**6), 10**6), st.integers(0, 99))
def test_the_last_number_counts_whatever_stands_before(answer: int, other: int) -> None:
    assert is_number(f"{other} + 1 = 5. So the answer is {answer:,}.", str(answer))
    assert not is_number(f"{answer}. No: {answer + 1}", str(answer))
    assert not is_number("I do not know", str(answer))


def test_mathematics_is_graded_by_its_library() -> None:
    if importlib.util.find_spec("math_verify") is None:
        with pytest.raises(DatasetError, match=r"install steerlab\[math\]"):
            is_math("1/2", "0.5")
        pytest.skip("math-verify is not installed")
    assert is_math(r"Hence the answer is $\frac{1}{2}$.", "0.5")
    assert not is_math(r"Hence the answer is $\frac{1}{3}$.", "0.5")


def test_parts_are_disjoint_and_keep_questions_with_their_answers() -> None:
    task = zoo.sums_task(60, count=3)
    parts = task.split(20, 15, 25, seed=1)
    assert [len(part) for part in parts] == [20, 15, 25]
    assert sorted(text for part in parts for text in part.locked) == sorted(task.locked)
    for part in parts:
        for text, answer in zip(part.locked, part.answers, strict=True):
            assert sum(int(word) for word in text.strip("What is?").split(" + ")) == int(answer)
    with pytest.raises(DatasetError, match="has 60 questions, but 40 to fit"):
        task.split(40, 20, 20, seed=0)


def test_the_unlocked_manner_is_told_by_its_beginning() -> None:
    task = zoo.sums_task(2)
    assert task.behaves([" Step by step: 1 + 1 = 2.", " The answer is 2. Step by step:"]) == [True, False]
    with pytest.raises(DatasetError, match="does not say how"):
        Task("a", ("q",), ("q",), ("1",)).behaves(["x"])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (["{not json"], "line 1: no JSON"),
        ([{"question": "a"}], "line 1: none of the columns answer"),
        ([{"answer": "a"}], "none of the columns question"),
        ([[1]], "expected an object"),
        ([], "holds no questions"),
    ],
)
def test_bad_files_name_their_line(rows: list[object], match: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=match):
        read_task(write(tmp_path / "bad.jsonl", *rows))


def test_bad_tasks_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_task(tmp_path / "none.jsonl")
    with pytest.raises(DatasetError, match="has no field"):
        read_task(tmp_path / "none.jsonl", locked="no field")
    with pytest.raises(DatasetError, match="give one of each"):
        Task("a", ("q",), (), ("1",))
    with pytest.raises(DatasetError, match="no questions"):
        Task("a", (), (), ())
    with pytest.raises(DatasetError, match="no grading"):
        Task("a", ("q",), ("q",), ("1",), grading="taste")  # type: ignore[arg-type]
