"""Tables of what is registered: `<!-- registered: estimators -->` in a page becomes a table of names and what they are.

Used by mkdocs (`hooks:` in mkdocs.yml); a registry is imported when a page asks for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

_REGISTRIES = {
    "estimators": "steerlab.directions:ESTIMATORS",
    "aligners": "steerlab.alignment:ALIGNERS",
    "backends": "steerlab.models.backends:BACKENDS",
    "interventions": "steerlab.steering:INTERVENTIONS",
    "exports": "steerlab.steering:EXPORTS",
    "studies": "steerlab.registry:STUDIES",
}
_MARK = re.compile(r"^<!-- registered: (\w+) -->$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every mark replaced. Raises ValueError for a mark that names no registry."""
    return _MARK.sub(lambda mark: "\n".join(_table(mark[1])), markdown)


def _table(name: str) -> Iterator[str]:
    if name not in _REGISTRIES:
        raise ValueError(f"There is no registry {name!r}; choose from {', '.join(_REGISTRIES)}.")
    module, _, attribute = _REGISTRIES[name].partition(":")
    registry = getattr(import_module(module), attribute)
    if name == "studies":
        yield from ("| study | title | question |", "| --- | --- | --- |")
        for study in sorted(registry.values(), key=lambda study: (study.order, study.name)):
            yield f"| `{study.name}` | {study.title} | {_cell(study.question)} |"
        return
    yield from ("| name | in Python | what it is |", "| --- | --- | --- |")
    for key in registry:
        thing = registry[key].func if isinstance(registry[key], partial) else registry[key]
        first_line = (inspect.getdoc(thing) or "").partition("\n")[0]
        yield f"| `{key}` | `{thing.__name__}` | {_cell(first_line)} |"


def _cell(text: str) -> str:
    """Text in which nothing ends the cell; reStructuredText roles and double backquotes become Markdown's."""
    plain = re.sub(r":\w+:`", "`", text).replace("``", "`")
    return plain.replace("|", "\\|")
