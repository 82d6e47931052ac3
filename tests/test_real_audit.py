"""The analysis of audits on real weights: every change of a bundled model, part by part, and what leaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

from steerlab import zoo

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_audit.py"
CHANGES = (
    *("cast to bfloat16", "ablated, columns kept", "ablated, rows kept", "added"),
    *("adapter of rank 8", "merged by 0.5", "another seed"),
)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled post-trained model."""
    model = zoo.path("small-post")
    weights = local_copy(model, tmp_path, monkeypatch)
    written = tmp_path / "audit.toml"
    written.write_text(
        'name = "tried"\nseed = 0\ncontrast = "formal"\npairs = 12\ntexts = 2\n[tune]\nsteps = 2\nrate = 0.02\n'
        f'[models."someone/{model.name}"]\nsha256 = "{weights}"\ntype = "float32"\n'
        f"changes = {list(CHANGES)}\n"
    )
    return written


def test_every_change_is_named_and_what_leaks_is_measured(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run", runs=False)
    assert f"{len(CHANGES)} of {len(CHANGES)} changes to make" in capsys.readouterr().out
    run_analysis(SCRIPT, plan, tmp_path, runs=False)
    tables = rows_of(tmp_path, "verdicts", "leaks")
    assert [(row["change"], row["found"]) for row in tables["verdicts"]] == [
        (row["change"], row["right"]) for row in tables["verdicts"]
    ]
    found = {row["change"]: row for row in tables["verdicts"]}
    for change in ("ablated, columns kept", "ablated, rows kept", "added"):
        assert float(found[change]["cosine"]) > 0.95
    assert found["adapter of rank 8"]["rank"] == "8"
    assert float(found["merged by 0.5"]["share"]) == pytest.approx(0.5, abs=1e-3)
    after = {(row["change"], row["site"]): float(row["after"]) for row in tables["leaks"]}
    assert after["ablated, columns kept", "mlp_out"] < 1e-4 < after["ablated, rows kept", "mlp_out"]
    capsys.readouterr()
    run_analysis(SCRIPT, plan, tmp_path, runs=False)
    assert f"0 of {len(CHANGES)} changes to make" in capsys.readouterr().out
