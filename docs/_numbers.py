"""The numbers of README and docs, each behind a mark that names where it stands in a committed file.

    python docs/_numbers.py docs/real_models.md ...     # put the numbers of the files behind the marks of these pages

A mark is a comment, which no page shows; it holds no vertical bar, so it may stand in a table:

    <!-- figures/zoo_small/refusal_rates.csv; model=post; prompts=harmful; direction=none; refuses -->1.00 [0.86, 1.00]
    <!-- ; model=post; prompts=harmless; direction=none; refuses -->0.00        the file of the mark before
    <!-- benchmarks/results/sweep.json; what=steerlab: 12 layers x …; wall ratio/median -->0.09
    <!-- benchmarks/results/compare.json; studies/refusal/seconds -->547
    <!-- figures/gemma_base_safe/summary.json; "a ratio of 4.42 [4.04, 4.85]" -->4.42 [4.04, 4.85]

A CSV file, or the tables of a Markdown file, has exactly one row in which the named columns hold these cells; the last
part is the column. A JSON file has a path of keys and numbers, which begins in one of its `rows` where cells are
named. A quoted part stands in the file word for word and holds the number. The number behind the mark is the value
rounded to its digits, in percent where % follows; an interval is the file's, too: `column low` and `column high`,
`column_low`, or `low` (in JSON `low` and `high` beside the value).
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
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


def shown_as(match: re.Match[str], values: tuple[float, ...]) -> str:
    """A mark and the values of its file, printed as the number behind it is."""
    digits, percent = len(match["value"].partition(".")[2]), match["percent"] or ""
    times = 100 if percent else 1
    comma = "," if "," in match["value"] else ""
    texts = [
        f"{times * value:{comma}.{digits}f}".replace("-", "−") for value in values[: 3 if match["low"] else 1]
    ]
    texts = [text.lstrip("−") if not text.strip("−0.") else text for text in texts]
    interval = f" [{', '.join(texts[1:])}]" if match["low"] else ""
    return f"<!-- {match['mark']} -->{texts[0]}{percent}{interval}"


def refreshed(page: Path) -> str:
    """A page with the numbers of its files behind its marks; quoted ones stay."""
    text = page.read_text("utf-8")
    for file, parts, match in reversed(marks(page)):
        if not parts[-1].startswith('"'):
            text = text[: match.start()] + shown_as(match, looked_up(file, parts)) + text[match.end() :]
    return text


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(refreshed(Path(name)), encoding="utf-8")
