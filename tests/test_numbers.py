"""The numbers of README and docs are those of committed files (`docs/_numbers.py` says how they are marked).

No page starts a line with a mark (Markdown would end the paragraph there), and the pages of `WHOLE` have no decimal or
percentage without one, but for those of `PLAIN`.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WHOLE = [ROOT / "README.md", *(ROOT / "docs" / page for page in ("real_models.md", "speed.md"))]
PLAIN = re.compile(
    r"Python 3\.11|95 %|[A-Z]\w+[\d.]*(-[\w.]+)+"
)  # versions, the level of intervals, names of models
_numbers = runpy.run_path(str(ROOT / "docs" / "_numbers.py"))
MARK, looked_up, marks, shown = (_numbers[name] for name in ("MARK", "looked_up", "marks", "shown"))
CASES = [(page, *mark) for page in PAGES for mark in marks(page)]


@pytest.mark.parametrize(
    ("page", "file", "parts", "match"), CASES, ids=[f"{case[0].stem}-{n}" for n, case in enumerate(CASES)]
)
def test_a_number_is_that_of_its_file(page: Path, file: str, parts: list[str], match: re.Match[str]) -> None:
    if parts[-1].startswith('"'):
        quote, number = parts[-1].strip('"'), match[0].partition("-->")[2]
        assert quote in (ROOT / file).read_text("utf-8")
        assert number.replace("−", "-").replace(" %", "%") in quote.replace(" %", "%")
        return
    values = looked_up(file, parts)
    texts = [match[name] for name in ("value", "low", "high") if match[name]]
    assert len(values) >= len(texts), "the file has no interval"
    times = 100 if match["percent"] else 1
    for text, value in zip(texts, values, strict=False):
        printed, half = shown(text)
        assert abs(printed - times * value) <= half * (1 + 1e-9), (
            f"{page.name}: {file} has {value}, not {text}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_mark_is_read(page: Path) -> None:
    text = page.read_text("utf-8")
    assert len(re.findall(r"<!-- [^:>]*;", text)) == len(marks(page)), "a mark without a number behind it"
    assert not re.search(r"^ *<!-- [^:>]*;", text, re.M), "a mark at the start of a line ends the paragraph"


@pytest.mark.parametrize("page", [page for page in WHOLE if page.exists()], ids=lambda page: page.stem)
def test_no_measurement_is_without_a_mark(page: Path) -> None:
    text = re.sub(
        r"```.*?```|`[^`]*`|\]\([^)]*\)|^ {4}[^\n]*$", "", page.read_text("utf-8"), flags=re.S | re.M
    )
    left = PLAIN.sub("", MARK.sub("", text))
    assert re.findall(r".{0,40}\d\.\d.{0,10}|.{0,40}\d ?%.{0,10}", left) == []


@pytest.mark.parametrize("page", [page for page in WHOLE if page.exists()], ids=lambda page: page.stem)
def test_numbers_put_in_again_are_the_same_page(page: Path) -> None:
    refreshed = _numbers["refreshed"](page).replace("−", "-")
    assert refreshed == page.read_text("utf-8").replace("−", "-")
