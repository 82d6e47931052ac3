"""Pages that list themselves.

`<!-- registered: estimators -->` in a page becomes a table of names and what they are, and `<!-- public: steering -->`
the reference of all that a room offers. Used by mkdocs (`hooks:` in mkdocs.yml); what is asked for is imported then.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from steerlab.registry import ordered_studies, registry_of

_MARK = re.compile(r"^<!-- (registered|public): (\w+) -->$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every mark replaced. Raises KeyError or ImportError for a mark that names nothing."""
    lists = {"registered": _table, "public": _reference}
    return _MARK.sub(lambda mark: "\n".join(lists[mark[1]](mark[2])), markdown)


def _reference(room: str) -> Iterator[str]:
    """mkdocstrings' lines for each name of a room that is defined there; the whole of a room without a list."""
    module = import_module(f"steerlab.{room}")
    if not hasattr(module, "__all__"):
        yield f"::: steerlab.{room}\n    options: {{heading_level: 3}}"
        return
    yield f"### steerlab.{room}\n\n{(inspect.getdoc(module) or '').partition(chr(10))[0]}\n"
    for name in module.__all__:
        thing = getattr(module, name)
        own = not inspect.isclass(thing) or f"{thing.__module__}.".startswith(f"steerlab.{room}.")
        if own:
            yield f"::: steerlab.{room}.{name}\n    options: {{heading_level: 4}}"


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
