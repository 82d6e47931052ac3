from __future__ import annotations

import base64
import itertools
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
    """The truthfulness page on screen, read again only where another page has taken its place."""
    address = f"{url_of(report)}#study-truthfulness"
    if page.evaluate("location.href") != address:
        page.look(address, DRAWN)
    page.call("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    return page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 900, 1600])
def test_every_page_fits_its_window(page: Page, report: Path, width: int, dark: bool) -> None:
    drawn = 0
    for name in ("summary", *(f"study-{result.study}" for result in results()), "run"):
        seen = page.look(f"{url_of(report)}#{name}", DRAWN, width=width, dark=dark)
        assert page.evaluate("document.querySelectorAll('.page.shown').length") == 1
        assert page.evaluate("document.querySelector('.page.shown').id") == name
        assert seen.drawn == seen.seen
        assert (seen.errors, seen.requests, seen.outside, seen.cut) == ([], [], [], []), name
        assert (seen.wider, seen.overflowing) == (0, 0)
        drawn += seen.drawn
    assert drawn == 7
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (not dark)


def test_the_first_screen_answers(page: Page, report: Path) -> None:
    page.look(url_of(report), DRAWN, width=1600, height=900)
    cards = page.evaluate(
        "Array.from(document.querySelectorAll('.card')).map(c => c.getBoundingClientRect()).map(b => [b.top, b.bottom])"
    )
    assert len(cards) == 4
    assert len({top for top, _ in cards}) == 1
    assert all(bottom < 900 for _, bottom in cards)
    page.look(url_of(report), DRAWN, width=360)
    lefts = page.evaluate(
        "Array.from(document.querySelectorAll('.card')).map(c => c.getBoundingClientRect().left)"
    )
    assert len(set(lefts)) == 1


def test_hostile_text_is_text(page: Page, report: Path) -> None:
    page.look(f"{url_of(report)}#study-confidence", DRAWN)
    assert NASTY in page.evaluate("document.body.textContent")
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.images.length") == 0
    # in the drawing too: a tick label, letter by letter
    ticks = page.evaluate(
        "Array.from(document.querySelectorAll('.xtick text')).map(t => t.textContent).join('|')"
    )
    assert "</script><" in ticks
    # and on hovering over a point that carries it
    page.look(f"{url_of(report)}#study-truthfulness", DRAWN)
    box = "document.getElementById('figure-truthfulness-separation-plot')"
    page.evaluate(f"Plotly.Fx.hover({box}, [{{curveNumber: 1, pointNumber: 0}}])")
    page.until(f"{box}.querySelector('.hoverlayer').textContent.includes('<script>')")
    assert page.evaluate("window.broken") is None


def test_figures_follow_the_window(opened: Page) -> None:
    page = opened
    width = "document.querySelector('.page.shown .plot svg.main-svg').getBoundingClientRect().width"
    page.until(f"{width} > 700")
    page.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
    page.until(f"{width} < 400")


def test_a_link_to_a_figure_or_a_table_opens_what_holds_it(page: Page, report: Path) -> None:
    page.look(f"{url_of(report)}#figure-truthfulness-cosine", DRAWN, height=500)
    assert page.evaluate("document.querySelector('.page.shown').id") == "study-truthfulness"
    at = "document.getElementById('figure-truthfulness-cosine').getBoundingClientRect().top"
    page.until(f"Math.abs({at}) < 100")
    page.evaluate("location.hash = 'table-confidence-neurons'")
    page.until("document.querySelector('.page.shown').id === 'study-confidence'")
    assert page.evaluate("document.getElementById('study-confidence-tables').open")
    assert page.evaluate("document.getElementById('table-confidence-neurons').open")


def test_search_finds_rows_and_leads_there(opened: Page) -> None:
    page = opened
    page.evaluate(
        "var f = document.getElementById('search'); f.value = 'Neuron 31'; f.dispatchEvent(new Event('input'))"
    )
    hits = page.evaluate("Array.from(document.querySelectorAll('#hits a')).map(a => [a.textContent, a.hash])")
    assert [address for _, address in hits] == ["#table-confidence-neurons"]
    assert hits[0][0].startswith("Confidence: neuron 31")
    page.evaluate("f.value = 'nowhere at all'; f.dispatchEvent(new Event('input'))")
    assert "Nothing holds" in page.evaluate("document.getElementById('hits').textContent")
    page.evaluate("f.value = ''; f.dispatchEvent(new Event('input'))")
    assert page.evaluate("document.getElementById('hits').hidden")


_LEVELS = """Array.from(document.querySelectorAll('h1,h2,h3,h4')).filter(
  h => h.offsetParent || h.className === 'unseen').map(h => Number(h.tagName[1]))"""
_NAMELESS = """Array.from(document.querySelectorAll('a,input,summary,[role=group],[role=region]')).filter(e =>
  !(e.getAttribute('aria-label') || e.textContent).trim()).length"""
_CONTRASTS = """(function () {
  function parts(colour) { return colour.match(/[\\d.]+/g).map(Number); }
  function light(colour) {
    var c = parts(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4));
    return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  }
  function behind(e) {
    for (; e; e = e.parentElement) {
      var c = getComputedStyle(e).backgroundColor;
      if (parts(c).length < 4 || parts(c)[3] > 0) { return c; }
    }
  }
  return Array.from(document.querySelectorAll('body *')).filter(e =>
    e.offsetParent && !e.closest('svg, .modebar') &&
    Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim())
  ).map(e => {
    var a = light(getComputedStyle(e).color), b = light(behind(e));
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className + ': ' + e.textContent.slice(0, 40)];
  }).filter(one => one[0] < 4.5);
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["summary", "study-truthfulness", "run"])
def test_everybody_can_read_it(page: Page, report: Path, name: str, dark: bool) -> None:
    """Landmarks, the order of headings, names of all that acts or is a picture, and contrast."""
    page.look(f"{url_of(report)}#{name}", DRAWN, dark=dark)
    levels = page.evaluate(_LEVELS)
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert (
        page.evaluate("['nav','main','header','search'].map(n => document.querySelectorAll(n).length)")
        == [1] * 4
    )
    assert page.evaluate(_NAMELESS) == 0
    assert page.evaluate(_CONTRASTS) == []
    assert page.evaluate(
        "new Set(Array.from(document.querySelectorAll('[id]'), e => e.id)).size"
    ) == page.evaluate("document.querySelectorAll('[id]').length")


@pytest.mark.parametrize("name", ["summary", "study-truthfulness", "study-confidence", "run"])
def test_axe_finds_no_violation(page: Page, report: Path, name: str) -> None:
    """Deque's axe-core, out of the Python package that holds it, with everything unfolded."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    source = (Path(next(iter(axe.__path__))) / "axe.min.js").read_text("utf-8")
    page.look(f"{url_of(report)}#{name}", DRAWN)
    page.evaluate("document.querySelectorAll('.page.shown details').forEach(one => { one.open = true; })")
    page.evaluate(f"{source};0")
    found = page.evaluate("axe.run().then(all => all.violations.map(one => [one.id, one.nodes[0].html]))")
    assert found == []


def test_keyboard_reaches_the_contents_and_tables(opened: Page) -> None:
    page = opened
    assert page.evaluate(
        "Array.from(document.querySelectorAll('nav a')).every(a => document.querySelector(a.hash))"
    )
    assert page.evaluate("document.querySelectorAll('.scroll:not([tabindex=\"0\"])').length") == 0
    page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '/', bubbles: true}))")
    assert page.evaluate("document.activeElement.id") == "search"


def test_printing_draws_every_page_on_white_and_comes_back(opened: Page) -> None:
    page = opened
    pdf = page.call("Page.printToPDF")["data"]
    assert len(base64.b64decode(pdf)) > 50_000
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0


def test_nothing_leaves_the_paper(page: Page, report: Path) -> None:
    """A window as wide as the printed area of A4 and its sheet, with all that printing unfolds."""
    page.look(url_of(report), DRAWN, width=688, height=1000)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.until("document.querySelectorAll('.plot svg.main-svg').length >= 7")
    cut = page.evaluate(
        """Array.from(document.querySelectorAll('table, .plot, p, figure, .card')).filter(e =>
        e.getBoundingClientRect().right > 689).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 60))"""
    )
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.call("Emulation.setEmulatedMedia", media="")
    assert cut == []


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
