"""How a table's cells look on the page, on the terminal and in a CSV; and the table that a figure already holds."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlab.results import Cell, Table
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Shown:
    """One cell on the page: the text, its interval ("" without one), how it was made, and whether it is a number."""

    text: str
    interval: str = ""
    hint: str = ""
    number: bool = False


def shown(cell: Cell) -> Shown:
    """A cell as it is read by people."""
    if isinstance(cell, Estimate):
        value, _, interval = str(cell).partition(" [")
        hint = "; ".join(part for part in (f"n = {cell.n}" if cell.n else "", cell.method) if part)
        return Shown(value, f"[{interval}" if interval else "", hint, number=True)
    if cell is None:
        return Shown("–")
    if isinstance(cell, bool):
        return Shown("yes" if cell else "no")
    if isinstance(cell, int):
        return Shown(f"{cell:,}", number=True)
    if isinstance(cell, float):
        return Shown(_float(cell), number=True)
    return Shown(cell)


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers only (empty cells aside): they are set flush right."""
    return [
        any(row[column] is not None for row in table.rows)
        and all(row[column] is None or shown(row[column]).number for row in table.rows)
        for column in range(len(table.columns))
    ]


def csv_text(table: Table) -> str:
    """The table as CSV at full precision; a column with estimates becomes value, low, high and n."""
    spread = [
        any(isinstance(row[column], Estimate) for row in table.rows) for column in range(len(table.columns))
    ]
    out = io.StringIO()
    writer = csv.writer(out)
    header = [
        [name, f"{name} low", f"{name} high", f"{name} n"] if wide else [name]
        for name, wide in zip(table.columns, spread, strict=True)
    ]
    writer.writerow(chain.from_iterable(header))
    for row in table.rows:
        cells = [_csv_cells(cell, wide) for cell, wide in zip(row, spread, strict=True)]
        writer.writerow(chain.from_iterable(cells))
    return out.getvalue()


def table_of_figure(key: str, title: str, figure: Figure) -> Table:
    """The numbers a figure draws, with their intervals, for a figure whose study gives no table."""
    rows: list[list[Cell]] = []
    for trace in figure.data:
        if trace.type == "heatmap":
            return _heatmap_table(key, title, figure)
        if trace.hoverinfo == "skip" or trace.yaxis == "y2" or trace.y is None:
            continue
        values = _with_intervals(trace.y, trace.meta)
        name = html.unescape(trace.name or "")
        rows += [[name, at, value] for at, value in zip(_labels(figure, "x", trace.x), values, strict=True)]
    x_title, y_title = axis_titles(figure)
    return Table(key=key, title=title, columns=["Series", x_title, y_title or "Value"], rows=rows)


def axis_titles(figure: Figure) -> tuple[str, str]:
    """What stands along x and y, as plain text in one line."""
    axes = (figure.layout.xaxis, figure.layout.yaxis)
    across, down = (html.unescape((axis.title.text or "").replace("<br>", " ")) for axis in axes)
    return across, down


def _heatmap_table(key: str, title: str, figure: Figure) -> Table:
    """The cells of every map, those of several side by side below one another."""
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    rows: list[list[Cell]] = []
    for trace in maps:
        cells = np.asarray(trace.z, dtype=np.float64)
        across, down = (
            _labels(figure, axis, range(size)) for axis, size in zip("xy", cells.shape[::-1], strict=True)
        )
        low, high = _meta_ends(trace.meta)
        name: list[Cell] = [html.unescape(trace.name or "")] if len(maps) > 1 else []
        rows += [
            [*name, down[i], *_with_intervals(row, {"low": low[i], "high": high[i]} if low else None)]
            for i, row in enumerate(cells)
        ]
    named = ["map"] if len(maps) > 1 else []
    return Table(key=key, title=title, columns=[*named, "", *map(str, across)], rows=rows)


def _labels(figure: Figure, axis: str, positions: Sequence[Any]) -> list[Cell]:
    """The full label at each position where the axis has names, else the position itself."""
    names = (figure.layout.meta or {}).get(axis)
    return [float(at) if names is None else html.unescape(names[int(at)]) for at in positions]


def _with_intervals(values: Sequence[Any], meta: Any) -> list[Cell]:
    low, high = _meta_ends(meta)
    if not low:
        return [float(value) for value in values]
    ends = zip(values, low, high, strict=True)
    return [Estimate(value=value, low=below, high=above) for value, below, above in ends]


def _meta_ends(meta: Any) -> tuple[list[Any], list[Any]]:
    return (list(meta["low"]), list(meta["high"])) if isinstance(meta, dict) and "low" in meta else ([], [])


def _csv_cells(cell: Cell, wide: bool) -> list[object]:
    if isinstance(cell, Estimate):
        ends = [cell.value, cell.low, cell.high]
        return [*("" if math.isnan(end) else repr(end) for end in ends), cell.n]
    plain: object = "" if cell is None else cell
    return [plain, "", "", ""] if wide else [plain]


def _float(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-3 <= size < 1e5:
        return f"{value:.2e}"
    decimals = 3 if size < 1 else 2 if size < 10 else 1
    return f"{value:,.{decimals}f}"
