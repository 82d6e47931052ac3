from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from steerlab import plots
from steerlab.plots import Series

FIGURE = plots.curves([Series("BASE", [1, 2, 3])], title="t")


def test_pictures_where_there_is_a_browser(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido (extra `export`) is not installed")
    if plots.find_browser() is None:
        pytest.skip("no Chromium or Chrome on this machine")
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<svg")):
        saved = plots.save(FIGURE, tmp_path / "new" / name)
        assert saved.reason == ""
        assert saved.path.read_bytes().startswith(start)


def test_many_pictures_are_those_of_one_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido (extra `export`) is not installed")
    if plots.find_browser() is None:
        pytest.skip("no Chromium or Chrome on this machine")
    tall = plots.curves([Series("POST", [3, 1])], title="u").update_layout(height=700)
    wanted = {tmp_path / "x" / "a.svg": FIGURE, tmp_path / "x" / "b.svg": tall, tmp_path / "x" / "c.png": tall,
              tmp_path / "x" / "d.html": FIGURE}  # fmt: skip
    saved = plots.save_all(wanted)
    assert [(one.path, one.reason) for one in saved] == [(path, "") for path in wanted]
    for name, figure, title in (("a", FIGURE, ">t<"), ("b", tall, ">u<")):
        alone = plots.save(figure, tmp_path / f"{name}.svg").path.read_text("utf-8")
        together = (tmp_path / "x" / f"{name}.svg").read_text("utf-8")
        assert re.search('viewBox="[^"]*"', alone)[0] == re.search('viewBox="[^"]*"', together)[0]  # type: ignore[index]
        assert title in together
    assert (tmp_path / "x" / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="ending"):
        plots.save_all({tmp_path / "y" / "a.svg": FIGURE, tmp_path / "a": FIGURE})


def test_without_a_browser_an_html_page_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido", reason="kaleido (extra `export`) is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    saved = plots.save(FIGURE, tmp_path / "a.png")
    assert saved.path == tmp_path / "a.html"
    assert "chromium" in saved.reason
    assert not (tmp_path / "a.png").exists()
    assert "Plotly.newPlot" in saved.path.read_text("utf-8")


def test_without_kaleido_the_reason_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert "steerlab[export]" in plots.save(FIGURE, tmp_path / "a.svg").reason


def test_a_broken_browser_still_leaves_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido", reason="kaleido (extra `export`) is not installed")
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    saved = plots.save(FIGURE, tmp_path / "a.png")
    assert saved.path.suffix == ".html"
    assert "could not draw" in saved.reason
    (tmp_path / "b.svg").write_text("of an earlier run")
    (both,) = plots.save_all({tmp_path / "b.svg": FIGURE})
    assert both.path == tmp_path / "b.html"
    assert "could not draw" in both.reason
    assert not (tmp_path / "b.svg").exists()


def test_html_and_unknown_endings(tmp_path: Path) -> None:
    assert plots.save(FIGURE, tmp_path / "a.html").path.exists()
    with pytest.raises(ValueError, match="ending"):
        plots.save(FIGURE, tmp_path / "a")
