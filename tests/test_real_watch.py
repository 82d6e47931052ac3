"""The analysis of alarms, on the bundled model: part by part, and no answer to a harmful request is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

from steerlab import datasets, zoo

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_watch.py"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled post-trained model, and the packaged requests in the files of the refusal paper."""
    folder = tmp_path / "data" / "instructions"
    folder.mkdir(parents=True)
    requests = datasets.requests()
    for name, part in (("train", requests.split("train")), ("test", requests.split("test"))):
        for kind, texts in (("harmful", part.positive), ("harmless", part.negative)):
            rows = [{"instruction": text} for text in texts]
            (folder / f"{kind}_{name}.json").write_text(json.dumps(rows))
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("harmful_test.json", "harmful_train.json", "harmless_train.json")
    }
    model = zoo.path("small-post")
    weights = local_copy(model, tmp_path, monkeypatch)
    monkeypatch.setenv("STEERLAB_DATA", str(tmp_path / "data"))
    written = tmp_path / "watch.toml"
    written.write_text(
        'name = "tried"\nseed = 0\nrate = 0.1\nsplits = 4\nanswers = 40\nshifted = 12\nhaving = 12\nfitted = 12\n'
        "new_tokens = 8\ndepths = [0.3, 0.7]\n"
        '[data]\nrepository = "ours"\nfolder = "instructions"\n[data.files]\n'
        + "".join(f'"{name}" = "{total}"\n' for name, total in sums.items())
        + f'[models."someone/{model.name}"]\nsha256 = "{weights}"\n'
    )
    return written


def test_alarms_beside_shifted_chats_words_and_shuffled_labels(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run")
    assert "6 parts are left" in capsys.readouterr().out
    assert run_analysis(SCRIPT, plan, tmp_path) is None
    tables = rows_of(tmp_path, "alarms", "shifted")
    assert len(tables["alarms"]) == 2 * 3 * 2  # probes, kinds, per answer and per token
    for row in tables["alarms"]:
        assert 0 <= float(row["false_alarms"]) <= 0.5
        assert float(row["false_alarms_low"]) <= float(row["false_alarms"]) <= float(row["false_alarms_high"])
        assert 0 <= float(row["auroc"]) <= 1
    harmful = [
        row for row in tables["shifted"] if row["probe"] == "harmful requests" and row["per"] == "answer"
    ]
    assert {row["shift"] for row in harmful} >= {"another template", "another language", "word problems"}
    kept = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert kept
    assert not [file for file in kept if "harmful" in file.name]
    texts = datasets.requests().split("test").positive
    assert not [file for file in kept if any(text in file.read_text("utf-8") for text in texts)]
    capsys.readouterr()
    run_analysis(SCRIPT, plan, tmp_path)
    assert "0 parts are left" in capsys.readouterr().out
