"""Lines where no terminal is, a bar in a notebook, nothing where silence is asked for, and what comes next."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from steerlab import progress
from steerlab.progress import counting, lines, silent, steps, track
from steerlab.progress.loops import Loops


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock.monotonic)
    return clock


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINES", lines.Lines())
    monkeypatch.delenv("STEERLAB_PROGRESS", raising=False)


@pytest.mark.usefixtures("no_choice")
def test_where_no_terminal_is_lines_come_ever_rarer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(400), "Reading states"):
        clock.now += 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "Reading states: 10 of 400, about 6 minutes left"
    done = [int(line.split()[2]) for line in shown]
    assert done[:6] == [10, 20, 40, 80, 140, 200]
    assert shown[-1].endswith("left")


@pytest.mark.usefixtures("no_choice")
def test_many_short_loops_are_not_silent_and_a_pause_starts_anew(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        for _ in track(range(1), f"loop {number}"):
            clock.now += 4
    assert capsys.readouterr().err.splitlines() == ["loop 3: 0 of 1", "loop 6: 0 of 1"]
    clock.now += 1000
    for _ in track(range(1), "after lunch"):
        clock.now += 4
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("no_choice")
def test_a_short_loop_writes_nothing(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(9), "adding"):
        clock.now += 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_choice")
def test_a_line_names_the_loop_inside_and_the_time_left_of_all(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track("abcd", "steering"):
        with counting("reading", 10) as done:
            for _ in range(5):
                clock.now += 4
                done(2)
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == "steering: 0 of 4, about 68 seconds left; reading: 6 of 10"  # 12 s are 3 twentieths


def test_silence_beats_every_choice(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    for choice in ("1", "lines"):
        monkeypatch.setenv("STEERLAB_PROGRESS", choice)
        with silent():
            for _ in track(range(3), "adding"):
                clock.now += 100
    assert capfd.readouterr() == ("", "")
    assert progress.way() == "lines"
    with silent(False):
        assert progress.way() == "lines"


@pytest.mark.usefixtures("no_choice")
def test_a_notebook_shows_a_bar_and_keeps_one_line(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    shown: list[Any] = []
    kernel = SimpleNamespace(kernel=object())
    place = SimpleNamespace(update=lambda data, raw: shown.append(data))

    def display(data: Any, **options: Any) -> SimpleNamespace:
        shown.append(data)
        return place

    fakes = {
        "IPython": SimpleNamespace(get_ipython=lambda: kernel),
        "IPython.display": SimpleNamespace(display=display),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    assert progress.way() == "notebook"
    list(track(range(3), "short"))
    assert shown == []
    for _ in track(range(4), "a <b>"):
        clock.now += 1
    assert "<progress max='1' value='0.2500'>" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "a <b>: 1 of 4, about 3 seconds left"
    assert "a &lt;b&gt;" in shown[0]["text/html"]
    assert shown[-1] == {
        "text/plain": "a <b>: 4 of 4, 4 seconds",
        "text/html": "<small>a &lt;b&gt;: 4 of 4, 4 seconds</small>",
    }


def test_steps_say_their_number_the_time_left_and_what_comes_next(clock: Clock) -> None:
    said: list[str] = []
    for name in steps(
        ["refusal", "confidence", "branching"],
        said.append,
        dict.fromkeys(["refusal", "confidence", "branching"], 10.0),
    ):
        clock.now += 20 if name == "refusal" else 10
    assert (
        said
        == [
            "refusal: running, 1 of 3, about 30 seconds left, confidence comes next",
            "confidence: running, 2 of 3, about 40 seconds left, branching comes next",  # twice as slow as foreseen
            "branching: running, 3 of 3, about 15 seconds left",
        ]
    )
    said.clear()
    assert list(steps(["one", "two"], said.append, {"one": 5.0, "two": None})) == ["one", "two"]
    assert said == ["one: running, 1 of 2, two comes next", "two: running, 2 of 2"]


def test_a_loop_of_unknown_length_is_counted_without_a_time() -> None:
    loops = Loops()
    number = loops.begin("drawing", None)
    loops.advance(number, 7)
    assert loops.sentence == "drawing: 7"
    assert loops.left is None


def test_a_loop_that_is_over_has_no_time_left(clock: Clock) -> None:
    loops = Loops()
    number = loops.begin("pricing", 2)
    clock.now = 5.0
    loops.advance(number, 1)
    assert loops.left == 5.0
    loops.advance(number, 1)
    assert loops.sentence == "pricing: 2 of 2"
