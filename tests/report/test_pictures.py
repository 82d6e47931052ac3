from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report.sample import results

from steerlab import plots
from steerlab.plots import Series, paper
from steerlab.report import write_figures

LINES = plots.curves([Series("base", [1, 2, 3]), Series("post", [3, 2, 1])], title="t", x_title="Layer")


def test_every_figure_is_written_in_three_forms_at_the_width_of_a_column(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido (extra `export`) is not installed")
    if plots.find_browser() is None:
        pytest.skip("no Chromium or Chrome on this machine")
    assert write_figures(results()[:1], tmp_path, "single") == ""
    keys = results()[0].figures()
    assert {path.name for path in (tmp_path / "truthfulness").iterdir()} == {
        f"{key}.{ending}" for key in keys for ending in ("png", "svg", "pdf")
    }
    (width,) = re.findall(
        rb"MediaBox *\[0 0 ([\d.]+)", (tmp_path / "truthfulness" / "cosine.pdf").read_bytes()
    )
    assert float(width) / 72 == pytest.approx(3.3, abs=0.05)
    assert (tmp_path / "captions.md").read_text("utf-8").count("**truthfulness/") == len(keys)


def test_without_a_browser_a_sentence_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido", reason="kaleido (extra `export`) is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    reason = write_figures(results(), tmp_path / "figures")
    assert reason.startswith("No figure files were written: no Chromium")
    assert not (tmp_path / "figures").exists()


def test_a_column_has_its_width_and_no_title() -> None:
    for column, inches in plots.INCHES.items():
        figure = paper(LINES, column)  # type: ignore[arg-type]
        assert figure.layout.width == round(96 * inches)
        assert figure.layout.title.text is None
    assert LINES.layout.title.text == "t"


def test_lines_are_named_at_their_ends_or_in_a_legend() -> None:
    assert [note.text for note in paper(LINES, "double").layout.annotations] == ["base", "post"]
    narrow = paper(LINES, "single")
    assert len(narrow.layout.annotations) == 0
    assert narrow.layout.showlegend
    equal = plots.curves(
        [Series(name, [1.0, 1.0], role="other") for name in "abc"], title="t", y_range=(0, 1)
    )
    places = sorted(note.y for note in equal.layout.annotations)
    assert min(np.diff(places)) > 0.06
    assert places[-1] <= 1


def test_labels_that_would_touch_stand_upright_and_whole() -> None:
    names = [f"a category with a long name {number}" for number in range(8)]
    figure = paper(plots.bars(names, [Series("base", range(8))], title="t"), "single")
    assert figure.layout.xaxis.tickangle == -90
    assert [label.replace("<br>", " ") for label in figure.layout.xaxis.ticktext] == names


def test_a_bar_beyond_the_frame_carries_its_value() -> None:
    wild = [Series("post", [0.5, -40.0], [0.4, -90.0], [0.6, 10.0])]
    figure = plots.bars("ab", wild, title="t", frame=(-1, 1))
    assert figure.layout.yaxis.range[0] > -2
    assert [note.text for note in figure.layout.annotations] == ["-40"]
    tame = plots.bars("ab", [Series("post", [0.5, -0.4])], title="t", frame=(-1, 1))
    assert tame.layout.yaxis.range is None
