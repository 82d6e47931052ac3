"""The key figure of a study as marks on one axis: places in percent, so that the page draws it at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steerlab.results import KeyFigure, KeyRow
from steerlab.statistics import percent


@dataclass(frozen=True)
class Mark:
    """One row: its name, text and role; where its point lies, and its interval from `left` over `width`, in percent."""

    name: str
    text: str
    interval: str
    role: str
    at: float
    left: float
    width: float


@dataclass(frozen=True)
class Marks:
    """The rows of a key figure, the texts of the axis ends, and where zero lies (None outside the axis)."""

    what: str
    rows: list[Mark]
    ends: tuple[str, str]
    zero: float | None


def marks(figure: KeyFigure | None) -> Marks | None:
    """The figure as the page draws it; None without a finite number."""
    rows = [row for row in (figure.rows if figure else ()) if math.isfinite(row.value.value)]
    if figure is None or not rows:
        return None
    low, high = figure.limits or axis_of(rows)
    span = high - low

    def place(value: float) -> float:
        return round(100 * min(max((value - low) / span, 0.0), 1.0), 2)

    def mark(row: KeyRow) -> Mark:
        text, _, interval = (f"{row.value:%}" if figure.share else str(row.value)).partition(" [")
        interval = f"[{interval}" if row.value.has_interval else ""
        left, right = (place(end) for end in _ends(row))
        return Mark(row.name, text, interval, row.role, place(row.value.value), left, round(right - left, 2))

    return Marks(
        what=figure.what,
        rows=[mark(row) for row in rows],
        ends=(percent(low), percent(high)) if figure.share else (f"{low:.3g}", f"{high:.3g}"),
        zero=place(0.0) if low < 0 < high else None,
    )


def on_one_axis(figures: Sequence[KeyFigure]) -> list[KeyFigure]:
    """The same figures with one pair of limits, so that they can be compared by eye."""
    rows = [row for figure in figures for row in figure.rows if math.isfinite(row.value.value)]
    ends = [end for figure in figures for end in figure.limits or axis_of(rows)]
    return [figure.model_copy(update={"limits": (min(ends), max(ends))}) for figure in figures]


def axis_of(rows: list[KeyRow]) -> tuple[float, float]:
    """Ends of an axis that holds zero and every interval; a little wider than they are, rounded to two digits."""
    values = [0.0, *(end for row in rows for end in (*_ends(row), row.value.value))]
    low, high = min(values), max(values)
    return (_outward(low, -1), _outward(high, 1)) if high > low else (-1.0, 1.0)


def _ends(row: KeyRow) -> tuple[float, float]:
    value = row.value
    return (value.low, value.high) if value.has_interval else (value.value, value.value)


def _outward(end: float, sign: int) -> float:
    """The next number away from zero with two digits: 4.89 becomes 4.9."""
    if end == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(end))) - 1)
    return float(sign * math.ceil(round(sign * end / step, 6)) * step)
