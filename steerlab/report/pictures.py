"""Every figure of a run as PNG, SVG and PDF, for papers and slides, with a list of captions."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path

from steerlab.files import whole, write_text
from steerlab.plots import Column, draws_something, paper, save_all, why_no_picture
from steerlab.report.questions import caption_of
from steerlab.results import StudyResult

ENDINGS = ("png", "svg", "pdf")


def write_figures(
    results: Iterable[StudyResult] | Mapping[str, StudyResult], folder: Path, column: Column = "double"
) -> str:
    """Write `folder`/STUDY/FIGURE.png, .svg and .pdf, and captions.md; return the reason where nothing can be drawn.

    column: the width, one column of a paper (3.3 in) or two (7 in).
    """
    if reason := why_no_picture():
        return f"No figure files were written: {reason}."
    drawn = [
        (f"{result.study}/{key}", figure, result.captions().get(key) or caption_of(figure))
        for result in (results.values() if isinstance(results, Mapping) else results)
        for key, figure in result.figures().items()
        if draws_something(figure)
    ]
    pictures = {name: paper(figure, column) for name, figure, _ in drawn}
    saved = save_all(
        {folder / f"{name}.{ending}": figure for name, figure in pictures.items() for ending in ENDINGS},
        width=None,
    )
    lines = [
        f"**{name}**: {html.unescape(figure.layout.title.text or '')}. {caption}\n"
        for name, figure, caption in drawn
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "captions.md") as partial:
        write_text(partial, "\n".join(lines))
    failed = [one for one in saved if one.reason]
    return f"{len(failed)} of {len(saved)} figure files were not drawn: {failed[0].reason}." if failed else ""
