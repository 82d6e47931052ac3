"""How objects show themselves in a notebook: small HTML tables and figures, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_LONGEST = 160  # characters of a text in a cell
_drawn = False  # whether this process has put plotly's library into a page


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption; cells are texts, numbers or anything with a text of its own."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text_of(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_text(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def html_figure(figure: Any) -> str:
    """A plotly figure in plotly's own HTML; the first one of a process brings the library, the others use it."""
    global _drawn
    written: str = figure.to_html(full_html=False, include_plotlyjs=not _drawn)
    _drawn = True
    return written


def text_of(cell: object) -> str:
    """A cell as people read it: three significant digits, "–" for nothing, long texts cut."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return cut(str(cell))


def cut(text: str, longest: int = _LONGEST) -> str:
    """The beginning of a long text."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def counted(number: int, one: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{number} {one}{'' if number == 1 else 's'}"
