"""The analysis of refusal in small real models: both rules, part by part, and no answer in any file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

from steerlab import datasets, zoo

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_refusal.py"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled post-trained model, and the packaged requests in the files of the refusal paper."""
    folder = tmp_path / "data" / "instructions"
    folder.mkdir(parents=True)
    requests = datasets.requests()
    for name in ("train", "val", "test"):
        part = requests.split(name)
        for kind, texts in (("harmful", part.positive), ("harmless", part.negative)):
            rows = [{"instruction": text} for text in texts]
            (folder / f"{kind}_{name}.json").write_text(json.dumps(rows))
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    model = zoo.path("small-post")
    weights = local_copy(model, tmp_path, monkeypatch)
    monkeypatch.setenv("STEERLAB_DATA", str(tmp_path / "data"))
    written = tmp_path / "refusal.toml"
    written.write_text(
        'name = "tried"\nseed = 0\nrandoms = 4\ntexts = 2\ntask = 8\nstrengths = [1.0, 2.0]\n'
        '[data]\nrepository = "ours"\nfolder = "instructions"\n[data.files]\n'
        + "".join(f'"{name}" = "{total}"\n' for name, total in sums.items())
        + f'[models."someone/{model.name}"]\nsha256 = "{weights}"\n'
        "requests = { train = 16, val = 8, test = 12 }\n"
    )
    return written


def test_both_rules_are_written_beside_random_directions(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run", runs=False)
    assert "tokens to read" in capsys.readouterr().out
    run_analysis(SCRIPT, plan, tmp_path, runs=False)
    tables = rows_of(tmp_path, "choices", "rates", "prices", "judges")
    assert [row["rule"] for row in tables["choices"]] == ["corrected", "published"]
    corrected = [row for row in tables["rates"] if row["rule"] == "corrected"]
    by_way = {(row["prompts"], row["intervention"], row["direction"]): row for row in corrected}
    unsteered = by_way["harmful", "none", "none"]
    ablated = by_way["harmful", "ablation", "model"]
    random = by_way["harmful", "ablation", "random"]
    assert float(unsteered["refused"]) > 0.8 > float(ablated["refused"])
    assert float(random["refused"]) > float(ablated["refused"])
    assert random["draws"] == "4"
    assert {row["direction"] for row in tables["prices"]} >= {"own", "random"}
    assert all(0 <= float(row["same"]) <= 1 for row in tables["judges"])
    capsys.readouterr()
    run_analysis(SCRIPT, plan, tmp_path, runs=False)
    assert "0 parts are left" in capsys.readouterr().out


def test_a_choice_among_ways_leaves_no_more_than_the_published_way(plan: Path, tmp_path: Path) -> None:
    written = plan.read_text("utf-8").replace("requests = { train = 16, val = 8, test = 12 }\n", "")
    model, weights = written.split("[models.")[1].split("]\nsha256 = ")
    chosen = tmp_path / "selection.toml"
    chosen.write_text(
        "requests = { train = 16, val = 8 }\n"
        + written.split("[models.")[0]
        + f"[models]\n{model} = {weights}"
    )
    script = SCRIPT.with_name("real_selection.py")
    assert run_analysis(script, chosen, tmp_path, runs=False) is None
    rows = rows_of(tmp_path, "tried")["tried"]
    by_role = {role: row for row in rows for role in row["as"].split("; ") if role}
    made = by_role["the choice"]
    for other in ("the choice of the published way", "the chosen direction in the published way"):
        assert (by_role[other]["toward"], by_role[other]["window"]) == ("0", "everywhere")
        assert float(made["unanswered"]) <= float(by_role[other]["unanswered"])
