"""The analysis of truth across topics: part by part, resumed, every accuracy beside its control, absent files named."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
from scripts import run_analysis

SCRIPT = Path(__file__).parents[1] / "analyses" / "truth_topics.py"
COUNTRIES = ("France", "Spain", "Italy", "Japan")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made_sets(folder: Path) -> list[Path]:
    """Three topics of twelve statements with their negations, and one of found statements."""
    folder.mkdir(parents=True)
    paths = []
    for name, negated in ((f"{neg}{topic}", bool(neg)) for topic in "abc" for neg in ("", "neg_")):
        rows = [
            (f"{name[-1]} {n} is {'not ' * negated}in {place}.", int((n % 2 == 0) != negated))
            for n in range(12)
            for place in COUNTRIES[n % 4 : n % 4 + 1]
        ]
        paths.append(folder / f"{name}.csv")
        with paths[-1].open("w", newline="") as file:
            csv.writer(file).writerows([("statement", "label"), *rows])
    paths.append(folder / "found.csv")
    rows = [(f"River {n} is {'not ' * (n % 3 == 0)}long.", n % 2) for n in range(12)]
    with paths[-1].open("w", newline="") as file:
        csv.writer(file).writerows([("statement", "label"), *rows])
    return paths


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weights = shared / "models" / "stories260K" / "model.safetensors"
    monkeypatch.setenv("STEERLAB_REAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("STEERLAB_DATA", str(tmp_path / "data"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "stories260k").symlink_to(weights.parent)
    files = "\n".join(f'"{path.name}" = "{sha256(path)}"' for path in made_sets(tmp_path / "data" / "sets"))
    written = tmp_path / "topics.toml"
    written.write_text(
        'name = "tried"\nseed = 0\nper_set = 12\nper_mixed_set = 8\nshuffles = 1\nchosen_shuffles = 3\n'
        f'[models]\n"someone/stories260K" = {{ layer_step = 2, sha256 = "{sha256(weights)}" }}\n'
        '[topics]\na = ["a", "neg_a"]\nb = ["b", "neg_b"]\nc = ["c", "neg_c"]\nd = ["found"]\n'
        f'[data]\nrepository = "someone/sets"\nfolder = "sets"\n[data.files]\n{files}\n'
    )
    return written


def run(plan: Path, folder: Path, *options: str) -> object:
    return run_analysis(SCRIPT, plan, folder, *options)


@pytest.mark.filterwarnings("ignore")
def test_parts_are_written_with_their_controls_and_resumed(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plan, tmp_path, "--dry-run") is None
    assert (
        "tokens to read, parts left: ['affirmed', 'affirmed and negated', 'all']" in capsys.readouterr().out
    )
    assert not (tmp_path / "figures").exists()
    assert run(plan, tmp_path) is None
    tables = {}
    for name in ("by_layer", "within_topics", "chosen"):
        with (tmp_path / "figures" / "tried" / f"{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
        for row in tables[name]:
            assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
            assert float(row["control_low"]) <= float(row["control"]) <= float(row["control_high"])
            assert len(row["weights_sha256"]) == 64
    by_layer = tables["by_layer"]
    assert {row["statements"] for row in by_layer} == {"affirmed", "affirmed and negated", "all"}
    assert {row["layer"] for row in by_layer if row["statements"] == "affirmed"} == {"0", "2", "4"}
    assert {row["judged_on"] for row in by_layer if row["statements"] == "all"} == {
        "all",
        "affirmed",
        "negated",
    }
    assert {row["estimator"] for row in by_layer if row["centring"] == "topics apart"} >= {"CCS", "TTPD"}
    assert {row["held_out"] for row in tables["chosen"]} >= {"a", "b", "c", "all topics"}
    capsys.readouterr()
    assert run(plan, tmp_path) is None
    assert "rows of" not in capsys.readouterr().out


def test_what_is_absent_is_named(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "stories260k").unlink()
    said = run(plan, tmp_path)
    assert isinstance(said, str)
    assert "model.safetensors of someone/stories260K (SHA-256 " in said
    assert "set STEERLAB_REAL_MODELS to its folder" in said
    (tmp_path / "data" / "sets" / "neg_b.csv").write_text("statement,label\n")
    assert "neg_b.csv has SHA-256 " in str(run(plan, tmp_path))
    monkeypatch.delenv("STEERLAB_DATA")
    assert "a local copy is not named: set STEERLAB_DATA" in str(run(plan, tmp_path))
