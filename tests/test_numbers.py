"""The numbers of README and docs are those of committed files.

A number is marked by a comment before it, which no page shows; marks hold no vertical bar, so they may stand in tables:

    <!-- figures/zoo_small/refusal_rates.csv; model=post; prompts=harmful; direction=none; refuses -->1.00 [0.86, 1.00]
    <!-- ; model=post; prompts=harmless; direction=none; refuses -->0.00        the file of the mark before
    <!-- benchmarks/results/sweep.json; what=steerlab: 12 layers x …; wall ratio/median -->0.09
    <!-- benchmarks/results/compare.json; studies/refusal/seconds -->547
    <!-- figures/gemma_base_safe/summary.json; "a ratio of 4.42 [4.04, 4.85]" -->4.42 [4.04, 4.85]

A CSV file, or the tables of a Markdown file, has exactly one row in which the named columns hold these cells; the last
part is the column. A JSON file has a path of keys and numbers, which begins in one of its `rows` where cells are
named. A quoted part stands in the file word for word and holds the
number. The number behind the mark is the value rounded to its digits, in percent where % follows; an interval is
compared too: `column low` and `column high`, `column_low`, or `low` (in JSON `low` and `high` beside the value).

No page starts a line with a mark (Markdown would end the paragraph there), and the pages of `WHOLE` have no decimal or
percentage without one, but for those of `PLAIN`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WHOLE = [ROOT / "README.md", *(ROOT / "docs" / page for page in ("real_models.md", "speed.md"))]
PLAIN = re.compile(
    r"Python 3\.11|95 %|[A-Z]\w+[\d.]*(-[\w.]+)+"
)  # versions, the level of intervals, names of models
NUMBER = r"[-−]?[\d,]*\.?\d+"
MARK = re.compile(
    rf"<!-- (?P<mark>[^;>]*; (?:(?!-->).)*?) -->(?P<value>{NUMBER})(?P<percent> ?%)?"
    rf"(?: \[(?P<low>[-−]?[\d.]+), (?P<high>[-−]?[\d.]+)\])?",
    re.S,
)
Row = dict[str, Any]


@cache
def rows_of(path: Path) -> list[Row]:
    """The rows of a CSV file, of a JSON file's `rows`, or of a Markdown file's tables."""
    text = path.read_text("utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if path.suffix == ".json":
        return list(json.loads(text)["rows"])
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*", text, re.M)
    ]
    return [dict(zip(cells[0], row, strict=False)) for row in cells]


def spread(row: Row, column: str) -> tuple[float, ...]:
    """A cell, and the ends of its interval where it has one."""
    if column not in row:
        raise KeyError(f"there is no column {column!r}; there are {', '.join(row)}")
    if written := re.fullmatch(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]", str(row[column])):
        return tuple(float(part) for part in written.groups())
    for low, high in ((f"{column}{gap}low", f"{column}{gap}high") for gap in " _"):
        if low in row:
            return tuple(float(row[name] or "nan") for name in (column, low, high))
    ends = [row[name] for name in ("low", "high") if name in row]
    return tuple(map(float, [row[column], *ends]))


def looked_up(file: str, parts: list[str]) -> tuple[float, ...]:
    """What the file has where the parts point to."""
    path, named = ROOT / file, dict(part.split("=", 1) for part in parts[:-1])
    if path.suffix == ".json" and not named:
        found: Any = json.loads(path.read_text("utf-8"))
    else:
        rows = [row for row in rows_of(path) if all(str(row.get(k)) == v for k, v in named.items())]
        assert len(rows) == 1, f"{len(rows)} rows of {file} have {named}"
        found = rows[0]
    *keys, last = parts[-1].split("/") if path.suffix == ".json" else [parts[-1]]
    for key in keys:
        found = found[int(key) if isinstance(found, list) else key]
    return spread(found, last)


def shown(text: str) -> tuple[float, float]:
    """A number as printed, and half of its last digit."""
    plain = text.replace("−", "-").replace(",", "")
    return float(plain), 0.5 * 10.0 ** -len(plain.partition(".")[2])


def marks(page: Path) -> list[tuple[str, list[str], re.Match[str]]]:
    """Every mark of a page: its file, its other parts, and the text that it speaks of."""
    found, file = [], ""
    for match in MARK.finditer(page.read_text("utf-8")):
        first, *parts = [" ".join(part.split()) for part in match["mark"].split(";")]
        file = first or file
        found.append((file, parts, match))
    return found


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
