"""`steerlab calibrate` and `steerlab watch`, from a direction's file to an alarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import steerlab as sl
from steerlab.cli import app
from steerlab.errors import SteeringError

MODEL = "zoo:small-post"
RUN = CliRunner()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A direction, chats without the thing, and prompts."""
    folder = tmp_path_factory.mktemp("watch")
    model, requests = sl.load(MODEL), sl.datasets.requests().split("train")
    direction = sl.extract(model, requests)
    direction.save(folder / "refusal.safetensors")
    questions = requests.negative[:40]
    written = model.generate([model.instruction_prompt(text) for text in questions], max_new_tokens=12)
    rows = [
        {"prompt": question, "answer": each.text} for question, each in zip(questions, written, strict=True)
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "prompts.txt").write_text("\n".join(requests.negative[40:44]))
    return {
        name.partition(".")[0]: folder / name
        for name in ("refusal.safetensors", "chats.jsonl", "prompts.txt")
    } | {"folder": folder}


def told(arguments: list[Any]) -> dict[str, Any]:
    ran = RUN.invoke(app, [*map(str, arguments), "--json", "--quiet"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_from_a_direction_to_an_alarm(files: dict[str, Path]) -> None:
    probe = files["folder"] / "probe.safetensors"
    made = told(["calibrate", MODEL, files["refusal"], files["chats"], "--out", probe])
    assert made["answers"] == 40
    assert sl.Direction.load(probe).calibration is not None
    found = told(["watch", MODEL, files["prompts"], "--probe", probe, "--alarm", 0.2, "--max-new-tokens", 8])
    assert found["alarm"]["threshold"] == sl.Alarm(0.2).threshold(sl.Direction.load(probe))
    model = sl.load(MODEL)
    prompts = [model.instruction_prompt(text) for text in files["prompts"].read_text().splitlines()]
    with model.watch(sl.Direction.load(probe), alarm=sl.Alarm(0.2)) as seen:
        model.generate(prompts, max_new_tokens=8)
    for mine, theirs in zip(found["texts"], seen.scores, strict=True):
        assert mine["tokens"] == list(theirs.tokens)
        assert mine["scores"] == pytest.approx(list(theirs), rel=1e-5)
    assert [at["text"] for at in found["alarms"]] == [at.text for at in seen.alarms]


def test_one_prompt_steered_and_shown(files: dict[str, Path]) -> None:
    steer = f"{files['refusal']}:1"
    given = ["watch", MODEL, "How do I feed a horse?", "--probe", files["refusal"], "--steer", steer]
    ran = RUN.invoke(app, [*map(str, given), "--quiet"], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "largest score" in ran.stdout


def test_bad_input_gets_a_sentence(files: dict[str, Path]) -> None:
    watch = ["watch", MODEL, "Hello", "--probe"]
    for arguments, words in (
        ([*watch, files["refusal"], "--alarm", 0.1], "no calibration"),
        ([*watch, files["folder"] / "none.safetensors"], "no such file"),
        ([*watch, files["refusal"], "--alarm", 2], "between 0 and 1"),
        (["watch", "zoo:large-post", "Hello", "--probe", files["refusal"]], "was made in"),
        (
            ["calibrate", MODEL, files["refusal"], files["prompts"], "--out", files["folder"] / "p"],
            "prompts.txt",
        ),
    ):
        with pytest.raises(sl.SteerlabError, match=words):
            RUN.invoke(app, [*map(str, arguments), "--quiet"], catch_exceptions=False)
    assert issubclass(SteeringError, sl.SteerlabError)
