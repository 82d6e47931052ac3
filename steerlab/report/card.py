"""A card: one result on one page that can be read from top to bottom, its gates first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from steerlab.report.manifest import sections
from steerlab.report.page import environment, packed_plotly, written
from steerlab.report.questions import question
from steerlab.results import StudyResult


class Gate(Protocol):
    """What a person looks at first: passed or not, the number, what it is held against, and what it is."""

    @property
    def name(self) -> str:
        """One word."""

    @property
    def passed(self) -> bool:
        """Whether it is."""

    @property
    def number(self) -> str:
        """What was found, in words."""

    @property
    def against(self) -> str:
        """What the number is held against; "" for nothing."""

    @property
    def what(self) -> str:
        """What passing means."""


def write_card(
    result: StudyResult,
    gates: Sequence[Gate],
    path: str | Path,
    *,
    title: str,
    lines: Sequence[str],
    facts: Mapping[str, Any],
) -> Path:
    """Write the page of a result to `path`, whole or not at all, and return the path.

    Args:
        result: what the card says and shows.
        gates: what stands on top.
        path: the file.
        title: the heading.
        lines: what stands below it: of what the card is.
        facts: what was run, plain JSON values.

    Raises:
        RunError: the file cannot be written.
    """
    card = question(result)
    page = (
        environment()
        .get_template("card.html.jinja")
        .render(
            title=title,
            lines=lines,
            gates=gates,
            card=card,
            studies=[],
            manifest=sections(facts),
            plotly=packed_plotly(),
        )
    )
    return written(page, Path(path))
