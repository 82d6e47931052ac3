"""Tables of what is registered: `<!-- registered: estimators -->` in a page becomes a table of names and what they are.

Used by mkdocs (`hooks:` in mkdocs.yml); a registry is imported when a page asks for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from steerlab.registry import ordered_studies, registry_of

_MARK = re.compile(r"^<!-- registered: (\w+) -->$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every mark replaced. Raises KeyError for a mark that names no registry."""
    return _MARK.sub(lambda mark: "\n".join(_table(mark[1])), markdown)


def _table(name: str) -> Iterator[str]:
    if name == "studies":
        yield from ("| study | title | question |", "| --- | --- | --- |")
        for study in ordered_studies():
            yield f"| `{study.name}` | {study.title} | {_cell(study.question)} |"
        return
    registry = registry_of(name)
    yield from ("| name | in Python | what it is |", "| --- | --- | --- |")
    for key in sorted(registry):
        thing = registry[key].func if isinstance(registry[key], partial) else registry[key]
        first_line = (inspect.getdoc(thing) or "").partition("\n")[0]
        yield f"| `{key}` | `{thing.__name__}` | {_cell(first_line)} |"


def _cell(text: str) -> str:
    """Text in which nothing ends the cell; reStructuredText roles and double backquotes become Markdown's."""
    plain = re.sub(r":\w+:`", "`", text).replace("``", "`")
    return plain.replace("|", "\\|")
