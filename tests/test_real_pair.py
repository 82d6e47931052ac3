"""The studies on a pair of real models: study by study, resumed by the weights; the null adapter is as large."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import run_analysis
from smaller import use_smaller_amounts
from tolerances import close

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_pair.py"
SAFE = SCRIPT.parent / "post_training" / "safe" / "adapter_model.safetensors"


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weights = shared / "models" / "stories260K" / "model.safetensors"
    monkeypatch.setenv("STEERLAB_REAL_MODELS", str(tmp_path / "models"))
    use_smaller_amounts(monkeypatch)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "stories260k").symlink_to(weights.parent)
    written = tmp_path / "pair.toml"
    written.write_text(
        'name = "tried"\nmodel = "someone/stories260K"\nbase = ""\npost = ""\nstudies = ["truthfulness"]\n'
        f'sha256 = "{hashlib.sha256(weights.read_bytes()).hexdigest()}"\n'
    )
    return written


def run(plan: Path, folder: Path, *options: str) -> object:
    return run_analysis(SCRIPT, plan, folder, *options)


@pytest.mark.filterwarnings("ignore")
def test_studies_are_written_with_their_weights_and_not_run_again(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plan, tmp_path, "--dry-run") is None
    assert "left are truthfulness" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()
    assert run(plan, tmp_path) is None
    folder = tmp_path / "figures" / "tried"
    said = json.loads((folder / "summary.json").read_text())["truthfulness"]
    assert said["says"]
    assert said["costs"]["base read"] > 0
    tables = list(folder.glob("truthfulness_*.csv"))
    assert tables
    for path in tables:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(row["base_sha256"] == row["post_sha256"] == said["weights"]["base"] for row in rows)
    capsys.readouterr()
    assert run(plan, tmp_path) is None
    assert "left are none" in capsys.readouterr().out


def test_absent_or_other_weights_get_a_sentence(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = plan.read_text()
    plan.write_text(text.replace('sha256 = "', 'sha256 = "0'))
    assert "has SHA-256" in str(run(plan, tmp_path))
    plan.write_text(text)
    monkeypatch.delenv("STEERLAB_REAL_MODELS")
    assert "set STEERLAB_REAL_MODELS to its folder" in str(run(plan, tmp_path))


def test_a_random_adapter_is_as_large_in_every_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from real_pair import random_weights  # type: ignore[import-not-found]

    given = load_file(SAFE)
    made = random_weights(given, 0)
    assert made.keys() == given.keys()
    for name in given:
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            real, random = (weights[other].float() @ weights[name].float() for weights in (given, made))
            close(float(random.norm()), float(real.norm()), rtol=0.01)  # bfloat16
            assert torch.cosine_similarity(real.flatten(), random.flatten(), dim=0).abs() < 0.1
    again = random_weights(given, 0)
    assert all(torch.equal(made[name], again[name]) for name in made)
