"""Runs stored by an earlier version read back and render, and studies of the bundled pair still give what they gave.

`goldens/` holds runs of the commit before studies became packages, each with its tables as CSV (made with the same
code): `compare` of the small pair, `trace` of the large one, `transfer` from large to small, `branching`, all with
seed 0 and quick, and what `neurons` printed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerlab as sl
from steerlab import cli
from steerlab.comparison import rewrite_report, run_study
from steerlab.forecast import measured
from steerlab.models.metering import Spent, metered
from steerlab.report import csv_text, terminal_table
from steerlab.results import StudyResult, result_from_dict
from steerlab.run_data import on_topics, read_data
from steerlab.statistics import Estimate
from steerlab.studies import Pair

GOLDENS = Path(__file__).parent / "goldens"
RUNS = ("compare", "trace", "transfer", "branching")
#: Another machine rounds otherwise, and a token that is chosen otherwise moves a share of a few dozen prompts.
RELATIVE, SHARE_WITHIN = 0.05, 0.97


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_reads_back_renders_and_shows_its_tables(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / name, tmp_path / "run")
    run = rewrite_report(tmp_path / "run")
    assert run.manifest.status == "done"
    assert set(run.results) == {path.stem for path in (GOLDENS / name / "results").glob("*.json")}
    assert terminal_table(run.results).row_count == len(run.results)
    page = run.report.read_text("utf-8")
    for study, result in run.results.items():
        assert result.summary[0].split("'")[0][:40] in page
        stored = {path.stem: path for path in (GOLDENS / name / "results").glob(f"{study}_*.csv")}
        tables = {f"{study}_{table.key}": table for table in result.tables()}
        assert tables.keys() == stored.keys()
        for key, table in tables.items():
            assert csv_text(table).splitlines() == stored[key].read_text("utf-8").splitlines(), key
    for path in (GOLDENS / name / "directions").glob("*.safetensors"):
        assert sl.Direction.load(path).vectors


def estimates(result: StudyResult) -> dict[tuple[str, int, str], Estimate | float]:
    """Every number of every table, by table, row and heading."""
    return {
        (table.key, number, heading): cell
        for table in result.tables()
        for number, row in enumerate(table.rows)
        for heading, cell in zip(table.columns, row, strict=True)
        if isinstance(cell, Estimate | float) and not isinstance(cell, bool)
    }


def knows_truth(result: Any) -> None:
    """Both models tell true from false, along directions that are more alike than random ones."""
    assert all(result.own(model).above_chance for model in ("base", "post"))
    at = {row.layer: row for row in result.agreement}[result.layer("post")]
    assert at.cosine.value > at.random
    labelled = {row.model for row in result.labels if row.statements == "all" and row.above_chance}
    assert labelled == {"base", "post"}


def refuses(result: Any) -> None:
    """Only the post-trained model does."""
    assert result.separates == {"base": False, "post": True}


def is_sure(result: Any) -> None:
    """Both models answer above chance, and their neurons are compared."""
    assert all(row.above_chance for row in result.answers)
    assert len(result.neurons.sets) == 2
    assert result.neurons.agreements


def narrows(result: Any) -> None:
    """The post-trained model goes on in fewer ways."""
    assert result.headline.value.low > 1


def agrees(result: Any) -> None:
    """Both models keep what they know at the same places."""
    assert result.headline.value.low > 0.9


FINDINGS = {"truthfulness": knows_truth, "refusal": refuses, "confidence": is_sure}


@pytest.mark.parametrize("study", FINDINGS)
def test_a_study_of_the_bundled_pair_gives_what_it_gave(study: str) -> None:
    before = result_from_dict(json.loads((GOLDENS / "compare" / "results" / f"{study}.json").read_text()))
    pair = Pair(sl.load("zoo:small-base"), sl.load("zoo:small-post"))
    with metered(pair.by_name) as spent:
        after = run_study(study, pair, on_topics(read_data(), pair.topics))
    costs_no_more(study, spent)
    assert after.status == before.status == "done"
    FINDINGS[study](after)
    assert result_from_dict(after.to_dict()).to_dict() == after.to_dict()
    assert after.figures()
    old, new = estimates(before), estimates(after)
    assert old.keys() == new.keys()
    close = [alike(old[place], new[place]) for place in old]
    assert sum(close) >= SHARE_WITHIN * len(close), [
        place for place, same in zip(old, close, strict=True) if not same
    ]
    assert before.headline is not None
    assert after.headline is not None
    assert alike(before.headline.value, after.headline.value)


@pytest.mark.parametrize(("study", "finds"), [("branching", narrows), ("knowledge", agrees)])
def test_a_study_without_a_stored_run_of_its_amounts_costs_no_more(
    study: str, finds: Callable[[Any], None]
) -> None:
    pair = Pair(sl.load("zoo:small-base"), sl.load("zoo:small-post"))
    with metered(pair.by_name) as spent:
        result = run_study(study, pair, on_topics(read_data(), pair.topics))
    costs_no_more(study, spent)
    assert result.status == "done"
    finds(result)


def costs_no_more(study: str, spent: dict[str, Spent]) -> None:
    """No kind of token is put through the models more often than the committed counts say, and 5 %."""
    known = measured()["amounts"]["quick"][study]
    for kind in ("read", "generated", "patched", "unembedded"):
        found = sum(getattr(own, kind) for own in spent.values())
        assert found <= 1.05 * known[kind], f"{kind}: {found} tokens, {known[kind]:.0f} are committed"
        assert found >= 0.5 * known[kind], f"{kind}: {found} tokens; make steerlab/costs.json anew"


def alike(old: Estimate | float, new: Estimate | float) -> bool:
    """Whether two numbers agree within the tolerance of their scale, or neither is known."""
    first, second = (value.value if isinstance(value, Estimate) else value for value in (old, new))
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    width = old.high - old.low if isinstance(old, Estimate) and old.has_interval else 0.0
    return abs(first - second) <= RELATIVE * max(abs(first), abs(second), 0.1) + 0.2 * width


def test_neurons_are_listed_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr(cli.neurons, "out", Console(width=200))
    monkeypatch.setattr("sys.argv", ["steerlab", "neurons", "zoo:small-post"])
    with pytest.raises(SystemExit):
        cli.main()
    old, new = (GOLDENS / "neurons.txt").read_text().split(), capsys.readouterr().out.split()
    assert len(old) == len(new)
    for before, after in zip(old, new, strict=True):
        try:
            assert float(after) == pytest.approx(float(before), rel=RELATIVE, abs=1e-4)
        except ValueError:
            assert after == before
