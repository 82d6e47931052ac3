"""`steerlab card`: from a direction's file to a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import steerlab as sl
from steerlab.card import SteeringCard, making
from steerlab.cli import app
from steerlab.errors import DatasetError, RunError, SteeringError

MODEL = "zoo:small-post"
RUN = CliRunner()


@pytest.fixture(scope="module")
def direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("card") / "refusing.safetensors"
    sl.extract(sl.load(MODEL), "refusing").save(file)
    return file


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    few = making.Amounts(randoms=2, few=1, texts=2, requests=4, new_tokens=8, facts=4)
    monkeypatch.setattr(making, "AMOUNTS", {"quick": few})


def test_a_card_is_written(direction: Path, tmp_path: Path) -> None:
    place = tmp_path / "card"
    asked = [
        *("card", MODEL, "--steer", str(direction), "--task", "refusing", "--out", str(place)),
        *("--no-predictor", "--dose", "0.5", "--json"),
    ]
    done = RUN.invoke(app, asked)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    card = SteeringCard.load(place)
    assert told["verdict"] == card.verdict == card.summary[0]
    assert [gate["name"] for gate in told["gates"]] == ["control", "utility", "robustness"]
    assert [dose.dose for dose in card.effects.doses] == [0.5, 1.0]
    again = RUN.invoke(app, asked)
    assert isinstance(again.exception, RunError)
    assert "--overwrite" in str(again.exception)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--task", "refusing"], SteeringError, "--steer or --ablate"),
        (["--task", "sad", "--ablate", "{file}"], DatasetError, "packaged ones are"),
        (["--task", "refusing", "--steer", "nowhere.safetensors"], RunError, "no such file"),
    ],
)
def test_wrong_input_is_a_sentence(
    words: list[str], error: type[Exception], said: str, direction: Path, tmp_path: Path
) -> None:
    given = [word.replace("{file}", str(direction)) for word in words]
    done = RUN.invoke(app, ["card", MODEL, "--out", str(tmp_path / "card"), *given])
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
    assert not (tmp_path / "card").exists()
