"""How objects show themselves: small HTML tables and figures in a notebook, and texts that reach a terminal.

Every text is escaped, and what would act on a terminal or turn a line round is shown instead of sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_LONGEST = 160  # characters of a text in a cell
#: Control characters but newline and tab, marks that override the direction of what follows, and half characters.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
#: Words written from right to left, with what stands between two of them.
_FROM_THE_RIGHT = re.compile(f"[{_RTL}]+(?:[\\W\\d_]*[{_RTL}]+)*")
_drawn = False  # whether this process has put plotly's library into a page


def visible(text: str) -> str:
    """A text of a model, a prompt or a file as it may be printed: what would act on a terminal is shown by a sign.

    >>> visible("\\x1b[2J gone\\n")
    '␛[2J gone\\n'
    """
    return _ACTING.sub(lambda found: _sign(ord(found[0])), text)


def isolated(text: str) -> str:
    """The same for a page: words written from right to left turn themselves round and not the numbers beside them."""
    return _FROM_THE_RIGHT.sub("\u2068\\g<0>\u2069", visible(text))


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption; cells are texts, numbers or anything with a text of its own."""
    head = "".join(f"<th>{_escaped(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{_escaped(text_of(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><caption>{_escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_text(text: str) -> str:
    """A paragraph."""
    return f"<p>{_escaped(text)}</p>"


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


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 seconds", "14 minutes", "3 hours"."""
    for unit, length in (("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}s"
    return f"{max(1, round(seconds))} second{'s' if seconds >= 1.5 else ''}"


def _escaped(text: str) -> str:
    return escape(isolated(text))


def _sign(code: int) -> str:
    """The picture that Unicode has for a control character, or its number; "?" for half a character."""
    if 0xD800 <= code <= 0xDFFF:
        return "?"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
