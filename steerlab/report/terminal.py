"""The short table at the end of a run: the main number of each study, its interval and its control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from steerlab.results import StudyResult, study_title
from steerlab.showing import visible

_STYLES = {"done": "green", "not identified": "yellow", "skipped": "dim"}


def terminal_table(results: Iterable[StudyResult] | Mapping[str, StudyResult]) -> Table:
    """One row a study, or one for each of its main numbers; for a study without any the reason."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Study", "Status", "What", "Value", "Control"):
        table.add_column(column, overflow="fold")
    for result in results.values() if isinstance(results, Mapping) else results:
        # Text, not str: rich would read [0.79, 0.87] or a model's words as markup
        status = Text(result.status, style=_STYLES[result.status])
        name = Text(visible(study_title(result.study)))
        if not result.headlines():
            table.add_row(name, status, Text(visible(result.summary[0] if result.summary else "")), "", "")
        for headline in result.headlines():
            control = (
                ""
                if headline.control is None
                else f"{headline.said(headline.control)} {headline.control_name}".strip()
            )
            table.add_row(
                name,
                status,
                Text(visible(headline.what)),
                Text(headline.said(headline.value)),
                Text(visible(control)),
            )
            name, status = Text(""), Text("")
    return table
