"""The analysis of confidence in small real models: part by part, resumed, what a model cannot give as its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_confidence.py"
NAMES = ("confidence_neurons", "calibration", "branching")


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sha256 = local_copy(shared / "models" / "stories260K", tmp_path, monkeypatch)
    (tmp_path / "template.jinja").write_text(
        "{%- for message in messages -%}{{ message['role'] + ': ' + message['content'] }}{%- endfor -%}"
    )
    written = tmp_path / "models.toml"
    written.write_text(
        'name = "tried"\nseed = 0\n'
        "[confidence]\ntexts = 6\nstatements_a_topic = 8\nablation_texts = 3\nrandoms = 1\n"
        "[branching]\nprompts = 3\nsamples = 4\nsteps = 6\n"
        f'[models]\n"someone/stories260K" = {{ sha256 = "{sha256}", everyday = true, '
        f'chat_template = "{tmp_path / "template.jinja"}" }}\n'
    )
    return written


def run(plan: Path, folder: Path, *options: str) -> object:
    return run_analysis(SCRIPT, plan, folder, *options, runs=False)


@pytest.mark.filterwarnings("ignore")
def test_parts_are_written_with_their_controls_and_resumed(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plan, tmp_path, "--dry-run") is None
    said = capsys.readouterr().out
    assert "tokens to read, at most 288 to write" in said
    assert "'branching', 'branching', 'calibration', 'confidence_neurons'" in said
    assert not (tmp_path / "figures").exists()
    assert run(plan, tmp_path) is None
    made = rows_of(tmp_path, *NAMES)
    assert all(len(row["weights_sha256"]) == 64 for rows in made.values() for row in rows)
    for row in made["confidence_neurons"]:
        assert row["reason"] or float(row["value_low"]) <= float(row["value"]) <= float(row["value_high"])
    assert {row["rule"] for row in made["confidence_neurons"]} >= {"lowest LogitVar", "frequency"}
    for row in made["calibration"]:
        assert row["reason"].startswith("not asked") or float(row["error"]) >= 0
    branching = made["branching"]
    assert [(row["prompts"], row["rendering"]) for row in branching] == [
        (prompts, rendering)
        for prompts in ("open prompts", "everyday instructions")
        for rendering in ("plain", "chat")
    ]
    for row in branching:
        assert float(row["itself_low"]) <= float(row["itself"]) <= float(row["itself_high"])
        assert bool(row["over_first"]) == (row["rendering"] == "chat")
        assert abs(float(row["martingale_z"])) < 4
    capsys.readouterr()
    assert run(plan, tmp_path) is None
    assert "rows of" not in capsys.readouterr().out


def test_what_is_absent_is_named(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "stories260k").unlink()
    said = run(plan, tmp_path)
    assert isinstance(said, str)
    assert "model.safetensors of someone/stories260K (SHA-256 " in said
