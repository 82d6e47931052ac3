"""Steering tasks: the packaged ones are sound, and a file that is not gets a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steerlab.datasets import benign_requests, contrast, steering_task, steering_task_names
from steerlab.datasets.steering_tasks import SteeringTask
from steerlab.errors import DatasetError


@pytest.mark.parametrize("name", steering_task_names())
def test_packaged_tasks_share_no_sentence_with_their_contrast(name: str) -> None:
    task = steering_task(name)
    assert task.name == name == task.contrast
    assert len(task.probes) == 24
    assert len(task.other_probes) == 8
    assert len(task.examples) == 3
    texts = {text for texts in (contrast(name).positive, contrast(name).negative) for text in texts}
    assert not texts & {probe.text for probe in (*task.probes, *task.other_probes)}
    assert not texts & {part for example in task.examples for part in example}
    assert not {text for text, _ in task.examples} & {probe.text for probe in task.probes}


def test_there_are_five() -> None:
    assert steering_task_names() == ("concise", "formal", "happy", "refusing", "spanish")


def test_benign_requests_know_their_answers() -> None:
    assert len(benign_requests()) == 24
    first = benign_requests()[0]
    assert first.kept_in("It is PARIS, the capital.")
    assert not first.kept_in("It is Rome.")
    for one in benign_requests():  # what is asked for is not in the question
        assert not one.kept_in(one.request), one.request


def test_a_task_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nwish = "Be kind."\nprobes = [["A", " b", " c"], ["D", " e", " f"]]\n'
        '[other_language]\nwording = "Bitte: {text}"\nprobes = [["G", " h", " i"]]\n'
    )
    task = steering_task(file)
    assert task == steering_task(str(file)) == steering_task(task)
    assert task.probes[1].towards == " e"
    assert task.other_wording == "Bitte: {text}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "no TOML"),
        ('name = "a"\nwish = "b"', "lacks 'probes'"),
        ('name = "a"\nwish = "b"\nprobes = [["x", "y"]]', "row 0: not 3 texts"),
        ('name = "a"\nwish = "b"\nprobes = "x"', "a str"),
        ('name = "a"\nwish = "b"\nprobes = [["x", " y", " z"]]', "has 1 probes"),
        ('name = "a"\nwish = "b"\nprobes = [["x", " y", " y"], ["x", " y", " z"]]', "that differ"),
        ('name = "a"\nwish = ""\nprobes = [["x", " y", " z"], ["x", " y", " z"]]', "no wish"),
        ('name = "a"\nwish = "b"\ncolour = 1\nprobes = [["x", " y", " z"]]', "unknown 'colour'"),
        ('name = "a"\nwish = "b"\nopened = "yes"\nprobes = [["x", " y", " z"]]', "true or false"),
        (
            'name = "a"\nwish = "b"\nwording = "go"\nprobes = [["x", " y", " z"], ["u", " y", " z"]]',
            "{text} once",
        ),
        (
            'name = "a"\nwish = "b"\ncontrast = "odd"\nprobes = [["x", " y", " z"], ["u", " y", " z"]]',
            "packaged ones",
        ),
        ('name = "a"\nwish = "b"\nprobes = [["x", " y", " z"]]\nother_language = 3', "a table with probes"),
    ],
)
def test_a_task_that_is_none_gets_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "task.toml"
    file.write_text(text)
    with pytest.raises(DatasetError, match=said.replace("{", r"\{")):
        steering_task(file)


def test_an_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(DatasetError, match="concise, formal"):
        steering_task("sad")
    with pytest.raises(DatasetError, match="cannot be read"):
        steering_task(Path("nowhere.toml"))
    with pytest.raises(DatasetError, match="probes"):
        SteeringTask("a", "b", ())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wish": 3}, "wish is an int"),
        ({"wording": 3}, "wording is an int"),
        ({"wording": ""}, "once"),
        ({"opened": "yes"}, "true or false"),
        ({"examples": ["ab", "cd"]}, "row 0: not 2 texts"),
    ],
)
def test_a_task_made_in_python_is_checked_as_well(given: dict[str, Any], said: str) -> None:
    probes = [("x", " y", " z"), ("u", " y", " z")]
    with pytest.raises(DatasetError, match=said):
        SteeringTask(**{"name": "a", "wish": "b", "probes": probes, **given})
