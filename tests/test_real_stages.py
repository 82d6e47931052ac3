"""Stages of a real model: every table with the weights of its stages, an ablated stage made once, its leak measured."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from families import build, tiny_tokenizer
from scripts import run_analysis
from smaller import use_smaller_amounts
from tolerances import close

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_stages.py"


@pytest.mark.filterwarnings("ignore")
def test_stages_are_written_with_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_smaller_amounts(monkeypatch)
    folder = tmp_path / "models" / "tiny"
    build("llama", max_position_embeddings=256).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setenv("STEERLAB_REAL_MODELS", str(folder.parent))
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    plan = tmp_path / "stages.toml"
    plan.write_text(
        f'name = "tried"\nmodel = "someone/tiny"\nsha256 = "{weights}"\nstudies = ["confidence"]\nsize = "quick"\n'
        'seed = 0\n[[stage]]\nlabel = "base"\n[[stage]]\nlabel = "other"\nablated = true\n'
        '[[stage]]\nlabel = "last"\nablated = true\n'
    )
    assert run_analysis(SCRIPT, plan, tmp_path, "--dry-run") is None
    assert "base → other → last" in capsys.readouterr().out
    assert run_analysis(SCRIPT, plan, tmp_path) is None
    made = tmp_path / "figures" / "tried"
    said = json.loads((made / "summary.json").read_text())
    assert said["weights"]["base"] == weights
    assert said["weights"]["other"] == said["weights"]["last"] != weights
    assert set(said["costs"]) == {"stage base", "stage other", "stage last", "stages"}
    with (made / "changes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(row["base_sha256"] == weights for row in rows)
    told = {row["verdict"] for row in rows if row["step"] == "other → last" and row["change"]}
    assert told == {"no change"}
    with (made / "leak.csv").open(newline="") as file:
        leaks = list(csv.DictReader(file))
    assert [row["stage"] for row in leaks] == ["other", "last"]
    assert all(float(row["after"]) < float(row["before"]) for row in leaks)


def test_what_is_removed_is_written_nowhere() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from real_stages import remove
    finally:
        sys.path.remove(str(SCRIPT.parent))
    module = build("llama")
    unit = torch.nn.functional.normalize(torch.arange(1.0, 1 + module.config.hidden_size), dim=0)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    remove(module, unit)
    for name, weight in module.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            close(
                unit @ weight.detach(),
                torch.zeros(weight.shape[1]),
                scale=float(before[name].detach().norm()),
            )
        else:
            assert torch.equal(weight, before[name])
