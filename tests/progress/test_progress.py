"""Progress bars: nothing unless somebody watches, one display when bars run inside one another."""

from __future__ import annotations

import pytest

from steerlab.progress import track


def test_nobody_watching_sees_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERLAB_PROGRESS", "0")
    assert list(track([1, 2], "adding")) == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_bars_inside_one_another_share_a_display(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERLAB_PROGRESS", "1")
    pairs = [(outer, inner) for outer in track("ab", "outer [x]") for inner in track(range(2), "inner")]
    assert pairs == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert list(track([3], "after")) == [3]
    shown = capfd.readouterr().err
    assert shown.count("outer [x]") == 1
    assert "2/2" in shown
    assert "inner" not in shown


def test_a_loop_left_early_frees_the_display(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERLAB_PROGRESS", "1")
    bar = track([1, 2], "left")
    next(bar)
    bar.close()
    assert list(track([1], "next")) == [1]
    assert "next" in capfd.readouterr().err
