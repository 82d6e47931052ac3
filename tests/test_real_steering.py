"""The analysis of steering that a person would ask for: part by part, resumed, next to asking and random directions."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
from scripts import run_script

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_steering.py"
CHAT = "stories260K-chat-local"


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shared / "models" / CHAT
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / CHAT.lower()).symlink_to(folder)
    monkeypatch.setenv("STEERLAB_REAL_MODELS", str(tmp_path / "models"))
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    written = tmp_path / "steering.toml"
    written.write_text(
        'name = "tried"\nseed = 0\nrandoms = 3\ndev = 4\nanswers = 3\nnew_tokens = 6\ntexts = 2\nsamples = 1\n'
        f'[models]\n"someone/{CHAT}" = "{weights}"\n'
        '[contrasts.happy]\npackaged = "happy"\nwish = "Write in a happy mood."\n'
        '[contrasts.refusal]\npackaged = "refusing"\nwish = "Refuse."\n'
    )
    return written


@pytest.mark.filterwarnings("ignore")
def test_parts_stand_beside_asking_and_random_directions(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = ["--figures", str(tmp_path / "figures")]
    assert run_script(SCRIPT, [plan, "--dry-run", *figures], tmp_path) is None
    assert "2 parts are left" in capsys.readouterr().out
    assert run_script(SCRIPT, [plan, *figures], tmp_path) is None
    tables = {}
    for name in ("effects", "samples"):
        with (tmp_path / "figures" / "tried" / f"{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    assert [row["contrast"] for row in tables["effects"]] == ["happy", "refusal"]
    for row in tables["effects"]:
        assert float(row["effect_low"]) <= float(row["effect"]) <= float(row["effect_high"])
        difference = float(row["effect"]) - float(row["asked_effect"])
        assert float(row["steered_less_asked"]) == pytest.approx(difference, abs=1e-6)
        assert float(row["random_least"]) <= float(row["random_greatest"])
        assert row["calibrated"] in ("yes", "no, one class gap")
        assert float(row["target"]) >= 1
    assert [(row["probes"], row["continuations"]) for row in tables["effects"]] == [("20", "20"), ("21", "7")]
    assert [row["way"] for row in tables["samples"]] == ["unsteered", "steered", "asked"] * 2
    capsys.readouterr()
    assert run_script(SCRIPT, [plan, *figures], tmp_path) is None
    assert "0 parts are left" in capsys.readouterr().out
