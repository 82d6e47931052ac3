from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from report.browser import Page, chromium, url_of
from report.sample import MANIFEST, NASTY, results

from steerlab.plots import find_browser
from steerlab.report import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine")
DRAWN = "document.documentElement.dataset.drawn !== undefined"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results(), MANIFEST, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def opened(page: Page, report: Path) -> Page:
    """The report on screen, read again only where another page has taken its place."""
    if page.evaluate("location.href") != url_of(report):
        page.look(url_of(report), DRAWN)
    page.call("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    return page


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_every_figure_is_drawn_without_error_request_or_overflow(
    page: Page, report: Path, width: int, dark: bool
) -> None:
    seen = page.look(url_of(report), DRAWN, width=width, dark=dark)
    assert seen.boxes == seen.drawn == 7
    assert seen.errors == []
    assert seen.requests == []
    assert (seen.wider, seen.overflowing) == (0, 0)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (not dark)


def test_hostile_text_is_text(opened: Page) -> None:
    page = opened
    assert NASTY in page.evaluate("document.body.innerText")
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.images.length") == 0
    # in the drawing too: a tick label, letter by letter
    ticks = page.evaluate(
        "Array.from(document.querySelectorAll('.xtick text')).map(t => t.textContent).join('|')"
    )
    assert "</script><" in ticks
    # and on hovering over a point that carries it
    box = "document.getElementById('figure-truthfulness-separation')"
    page.evaluate(f"Plotly.Fx.hover({box}, [{{curveNumber: 1, pointNumber: 0}}])")
    page.until(f"{box}.querySelector('.hoverlayer').textContent.includes('<script>')")
    assert page.evaluate("window.broken") is None


def test_figures_follow_the_window(opened: Page) -> None:
    page = opened
    width = "document.querySelector('.plot svg.main-svg').getBoundingClientRect().width"
    page.until(f"{width} > 700")
    page.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    page.until(f"{width} < 400")


def test_keyboard_reaches_the_contents_and_tables(opened: Page) -> None:
    page = opened
    assert page.evaluate(
        "Array.from(document.querySelectorAll('nav a')).every(a => document.querySelector(a.hash))"
    )
    assert page.evaluate("document.querySelectorAll('.scroll:not([tabindex=\"0\"])').length") == 0
    levels = page.evaluate("Array.from(document.querySelectorAll('h1,h2,h3')).map(h => h.tagName).join('')")
    assert levels.startswith("H1H2H3")
    assert levels.count("H1") == 1


def test_printing_draws_on_white_and_comes_back(opened: Page) -> None:
    page = opened
    pdf = page.call("Page.printToPDF")["data"]
    assert len(base64.b64decode(pdf)) > 50_000
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0


def test_the_share_button_of_the_tool_bar_is_gone(opened: Page) -> None:
    page = opened
    titles = page.evaluate(
        "Array.from(document.querySelectorAll('.modebar-btn')).map(b => b.dataset.title).join('|')"
    )
    assert "Zoom" in titles
    assert "Share" not in titles


def test_a_run_without_results_is_a_page(page: Page, tmp_path: Path) -> None:
    empty = write_report([], {}, tmp_path / "report.html")
    seen = page.look(url_of(empty), "document.readyState === 'complete'")
    assert "No study has finished" in seen.text
    assert (seen.errors, seen.requests) == ([], [])


def test_the_checks_can_fail(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<div class='plot'></div><p style='width:3000px'>x</p><img src='http://127.0.0.1:9/x'>"
        "<script>console.error('no'); undefinedName()</script>"
    )
    seen = page.look(url_of(bad), "document.readyState === 'complete'")
    assert (seen.boxes, seen.drawn) == (1, 0)
    assert seen.requests == ["http://127.0.0.1:9/x"]
    assert len(seen.errors) >= 2
    assert seen.wider > 1000
