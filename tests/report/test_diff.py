from __future__ import annotations

from pathlib import Path

import pytest
from report.browser import chromium, url_of
from report.sample import MANIFEST, estimate, results
from scripts import run_command

from steerlab.plots import find_browser
from steerlab.report import Side, write_diff
from steerlab.report.keys import axis_of, marks
from steerlab.results import Headline, KeyFigure, KeyRow
from steerlab.statistics import Estimate

ROOT = Path(__file__).parents[2]
ALL = {result.study: result for result in results()}


def page(folder: Path) -> Path:
    moved = Headline(what="cosine at layer 3", value=estimate(0.5))
    others = {"truthfulness": ALL["truthfulness"].model_copy(update={"headline": moved})}
    sides = Side("one", ALL, MANIFEST), Side("two", others, {**MANIFEST, "created": "later"})
    return write_diff(sides, [("seed", "0", "1")], folder / "diff.html")


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    text = page(tmp_path).read_text("utf-8")
    assert (
        "Cosine at layer 3: A 0.93 [0.88, 0.98]; B 0.50 [0.45, 0.55]. The intervals do not overlap." in text
    )
    assert "This run has no result of the study." in text
    assert "This run has no such figure." in text
    assert "<bdi>seed</bdi>" in text
    for mark in "ab":
        assert f'id="figure-{mark}-truthfulness-cosine"' in text


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine")
def test_the_pages_of_two_runs_fit_their_window(tmp_path: Path) -> None:
    path = page(tmp_path)
    drawn = "document.documentElement.dataset.drawn !== undefined"
    with chromium() as opened:
        for width in (360, 900, 1600):
            for name in ("summary", "study-truthfulness", "run"):
                seen = opened.look(f"{url_of(path)}#{name}", drawn, width=width)
                assert (seen.errors, seen.requests, seen.outside, seen.cut) == ([], [], [], [])
                assert seen.drawn == seen.seen
        assert opened.evaluate("window.scrollY") == 0


def test_the_command_wants_both_runs_and_reads_stored_ones(tmp_path: Path) -> None:
    run = str(ROOT / "tests" / "goldens" / "compare")
    assert run_command(["report", run, "--diff"], tmp_path) == 2
    assert run_command(["report", "--diff", run, run, "--out", "both.html"], tmp_path) == 0
    text = (tmp_path / "both.html").read_text("utf-8")
    assert "Both runs were made with the same models" in text
    assert len(text) < 4_000_000


def test_a_key_figure_has_zero_and_every_interval_on_its_axis() -> None:
    rows = [
        KeyRow(name="a", value=Estimate(value=4.78, low=4.68, high=4.89)),
        KeyRow(name="b", value=Estimate(value=-0.1)),
    ]
    assert axis_of(rows) == pytest.approx((-0.1, 4.9))
    drawn = marks(KeyFigure(what="w", rows=tuple(rows)))
    assert drawn is not None
    assert [row.interval for row in drawn.rows] == ["[4.68, 4.89]", ""]
    assert all(0 <= row.left <= row.at <= row.left + row.width + 0.01 <= 100.02 for row in drawn.rows)
    assert drawn.zero == pytest.approx(2.0)
    assert marks(KeyFigure(what="w", rows=(KeyRow(name="a", value=Estimate(value=float("nan"))),))) is None
    assert marks(None) is None
