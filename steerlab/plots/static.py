"""A figure as a file: PNG, SVG or PDF where a browser is at hand, otherwise an HTML page and the reason.

Plotly draws in a browser, so static pictures need one (through kaleido); nothing is downloaded here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
import plotly.io

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# plotly's tool bar offers to upload the chart: nothing of ours leaves the machine
_CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["sendChartToCloud"], "plotlyServerURL": ""}
_SCALE = 3  # of pixels in a PNG: 288 dots an inch
_PICTURES = (".png", ".svg", ".pdf", ".jpg", ".webp")


class Saved(NamedTuple):
    """Where a figure was written, and why it is not the picture asked for ("" when it is)."""

    path: Path
    reason: str


def find_browser() -> str | None:
    """The Chromium or Chrome on this machine (`BROWSER_PATH` first), or None."""
    named = os.environ.get("BROWSER_PATH")
    if named and Path(named).exists():
        return named
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def save(figure: go.Figure, path: str | Path, *, width: int | None = 900, height: int | None = None) -> Saved:
    """Write `figure` to `path` (.png, .svg, .pdf, .html); without a browser as .html beside it, saying why.

    width, height: in pixels. Raises ValueError for another ending.
    """
    target = _prepared(path)
    if target.suffix == ".html":
        figure.write_html(target, include_plotlyjs=True, config=_CONFIG)
        return Saved(target, "")
    reason = why_no_picture()
    if not reason:
        try:
            figure.write_image(
                target,
                width=width or figure.layout.width,
                height=height or _height(figure),
                scale=_scale(target),
            )
            return Saved(target, "")
        except Exception as error:  # the browser's failure, whatever its type: the figure is still wanted
            message = (str(error).splitlines() or [""])[0][:200]
            reason = f"the browser could not draw it ({type(error).__name__}: {message})"
    page = target.with_suffix(".html")
    figure.write_html(page, include_plotlyjs=True, config=_CONFIG)
    return Saved(page, reason)


def save_all(figures: Mapping[Path, go.Figure], *, width: int | None = 900) -> list[Saved]:
    """`save` for many pictures: the browser, which takes seconds to start, draws them all.

    width: in pixels; None for each figure's own.

    What it cannot draw together is tried one by one. Raises ValueError for another ending, before anything is written.
    """
    targets = {_prepared(path): figure for path, figure in figures.items()}
    pictures = {path: figure for path, figure in targets.items() if path.suffix != ".html"}
    if pictures and not why_no_picture():
        for path in pictures:
            path.unlink(missing_ok=True)  # one of an earlier run must not pass for drawn
        # The browser's failure, whatever its type; what is missing is tried again and its reason said.
        with contextlib.suppress(Exception):
            plotly.io.write_images(
                list(pictures.values()),
                list(pictures),
                width=[width or figure.layout.width for figure in pictures.values()],
                height=[_height(figure) for figure in pictures.values()],
                scale=[_scale(path) for path in pictures],
            )
    return [
        Saved(path, "")
        if path in pictures and path.exists() and path.stat().st_size
        else save(figure, path, width=width)
        for path, figure in targets.items()
    ]


def _prepared(path: str | Path) -> Path:
    target = Path(path)
    if target.suffix not in (*_PICTURES, ".html"):
        ending = target.suffix or "a file without ending"
        raise ValueError(f"cannot write a figure as {ending}: use .png, .svg or .html")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _scale(path: Path) -> int:
    """A picture of dots has three for each pixel; drawings of lines keep their size in inches."""
    return 1 if path.suffix in (".svg", ".pdf") else _SCALE


def _height(figure: go.Figure) -> int:
    return int(figure.layout.height or 450)


def why_no_picture() -> str:
    """Why no static picture can be made on this machine ("" where it can)."""
    try:
        import kaleido  # noqa: F401
    except ImportError:
        return "kaleido is not installed: pip install 'steerlab[export]'"
    browser = find_browser()
    if browser is None:
        return "no Chromium or Chrome was found for static pictures: apt-get install chromium"
    os.environ.setdefault("BROWSER_PATH", browser)
    return ""
