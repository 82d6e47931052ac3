"""The analysis of steering that a person would ask for: part by part, resumed, next to asking and random directions."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_steering.py"
CHAT = "stories260K-chat-local"


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weights = local_copy(shared / "models" / CHAT, tmp_path, monkeypatch)
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
    assert run_analysis(SCRIPT, plan, tmp_path, "--dry-run", runs=False) is None
    assert "2 parts are left" in capsys.readouterr().out
    assert run_analysis(SCRIPT, plan, tmp_path, runs=False) is None
    tables = rows_of(tmp_path, "effects", "samples")
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
    assert run_analysis(SCRIPT, plan, tmp_path, runs=False) is None
    assert "0 parts are left" in capsys.readouterr().out
