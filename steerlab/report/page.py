"""The report: one HTML file that holds everything it shows.

The script that draws, the figures, the tables and their downloads are inside the file; a content policy in its head
forbids any request. Every string that comes from a model, a prompt or a file is escaped: in HTML by the template,
in JSON by writing <, > and & as \\u003c, \\u003e and \\u0026, in figures by the plot primitives. Control characters are
shown by signs, and words written from right to left are isolated, so that they do not turn what stands beside them.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steerlab.errors import RunError
from steerlab.files import system_reason, whole, write_text
from steerlab.plots import draws_something
from steerlab.report.cells import csv_text, numeric_columns, shown, table_of_figure
from steerlab.results import StudyResult, Table, study_title
from steerlab.showing import isolated

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LONG_TABLE = 14
"""Tables with more rows start folded."""

_MANIFEST_ORDER = (
    "models",
    "data",
    "configuration",
    "versions",
    "hardware",
    "timings",
    "costs",
    "peak_memory",
)


def write_report(
    results: Iterable[StudyResult] | Mapping[str, StudyResult], manifest: Mapping[str, Any], path: str | Path
) -> Path:
    """Write the page for `results` to `path`, whole or not at all, and return the path.

    manifest: what was run and with what, plain JSON values. Raises RunError when the file cannot be written.
    """
    target = Path(path)
    page = render(results, manifest)
    try:
        with whole(target) as partial:
            write_text(partial, page)
    except OSError as error:
        raise RunError(
            f"The report cannot be written to {target}: {system_reason(error)}; choose another place or free space."
        ) from error
    return target


def render(results: Iterable[StudyResult] | Mapping[str, StudyResult], manifest: Mapping[str, Any]) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs

    ordered = list(results.values() if isinstance(results, Mapping) else results)
    studies = [_study(result) for result in ordered]
    environment = Environment(
        loader=PackageLoader("steerlab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: isolated(value) if type(value) is str else value,
    )
    environment.filters["label"] = label
    drawn = any(figure["drawn"] for study in studies for figure in study["figures"])
    return environment.get_template("report.html.jinja").render(
        title=_title(manifest),
        models=_model_names(manifest),
        created=_moment(str(manifest.get("created", ""))),
        studies=studies,
        manifest=_ordered(manifest),
        manifest_download=_data_uri("application/json", json.dumps(manifest, indent=1, default=str)),
        plotly_js=Markup(get_plotlyjs()) if drawn else "",
    )


def json_for_html(text: str) -> Markup:
    """JSON `text` that no HTML parser can take for markup, whatever its strings hold."""
    for raw in "<>&\u2028\u2029":
        text = text.replace(raw, f"\\u{ord(raw):04x}")
    return Markup(text)


def label(key: object) -> str:
    """A key as a heading: "open_prompts" becomes "Open prompts"."""
    words = str(key).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


# -- private, in the order they are called --


def _study(result: StudyResult) -> dict[str, Any]:
    tables = {table.key: table for table in result.tables()}
    figures = [_figure(result.study, key, figure, tables) for key, figure in result.figures().items()]
    return {
        "id": f"study-{result.study}",
        "title": study_title(result.study),
        "status": result.status,
        "summary": result.summary,
        "headlines": [
            {
                "what": headline.what,
                "value": shown(headline.value),
                "control": shown(headline.control) if headline.control else None,
                "control_name": headline.control_name or "control",
            }
            for headline in result.headlines()
        ],
        "figures": figures,
        "tables": [_table(f"{result.study}-{table.key}", table) for table in tables.values()],
        "download": _data_uri("application/json", json.dumps(result.to_dict(), indent=1)),
        "file": f"{result.study}.json",
    }


def _figure(study: str, key: str, figure: Figure, tables: dict[str, Table]) -> dict[str, Any]:
    """A figure with its table, taken out of `tables` when the study gives one under the same key."""
    title = html.unescape(figure.layout.title.text or "") or label(key)
    drawn = draws_something(figure)
    table = tables.pop(key, None) or (
        table_of_figure(key, "The numbers of this figure", figure) if drawn else None
    )
    fields = _isolated_in(json.loads(figure.to_json()))
    # the page carries the title as text that wraps; the drawing then needs less room on top
    fields["layout"].pop("title", None)
    has_note = any(note.get("yref") == "paper" for note in fields["layout"].get("annotations", []))
    fields["layout"].setdefault("margin", {})["t"] = 28 if has_note else 16
    return {
        "id": f"figure-{study}-{key}",
        "title": title,
        "drawn": drawn,
        "json": json_for_html(json.dumps(fields)) if drawn else "",
        "height": int(figure.layout.height or figure.layout.template.layout.height or 420),
        "table": _table(f"{study}-{key}", table) if table is not None and table.rows else None,
    }


def _isolated_in(value: Any) -> Any:
    """JSON with every text in it as it may be shown."""
    if isinstance(value, str):
        return isolated(value)
    if isinstance(value, list):
        return [_isolated_in(entry) for entry in value]
    return {key: _isolated_in(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _table(name: str, table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "note": table.note,
        "columns": list(zip(table.columns, numeric_columns(table), strict=True)),
        "rows": [[shown(cell) for cell in row] for row in table.rows],
        "folded": len(table.rows) > LONG_TABLE,
        "file": f"{name}.csv",
        "download": _data_uri("text/csv", csv_text(table)),
    }


def _data_uri(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode(errors='replace')).decode()}"


def _model_names(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, name) of each model in the manifest."""
    models = manifest.get("models")
    if not isinstance(models, Mapping):
        return []
    return [
        (str(role), str(facts.get("name", role) if isinstance(facts, Mapping) else facts))
        for role, facts in models.items()
    ]


def _title(manifest: Mapping[str, Any]) -> str:
    names = [name for _, name in _model_names(manifest)]
    return str(manifest.get("title") or " → ".join(_short(name) for name in names) or "steerlab report")


def _moment(created: str) -> str:
    """An ISO time for people; anything else as it is."""
    try:
        return datetime.fromisoformat(created).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def _ordered(manifest: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The sections of the manifest that say something: known ones first, then the rest, single values together."""
    keys = [key for key in _MANIFEST_ORDER if key in manifest]
    keys += [key for key in manifest if key not in keys]
    sections = [
        (key, _block(manifest[key], named=key == "versions"))
        for key in keys
        if isinstance(manifest[key], Mapping | list)
    ]
    single = {key: manifest[key] for key in keys if not isinstance(manifest[key], Mapping | list)}
    return [(key, block) for key, block in sections if block] + ([("run", _block(single))] if single else [])


def _block(value: object, named: bool = False) -> dict[str, Any] | None:
    """A manifest section as a table: a mapping of mappings has two sides, anything else one line a key.

    named: the keys are names already (of packages) and stay as they are.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {str(number): entry for number, entry in enumerate(value, start=1)}
    if not isinstance(value, Mapping) or not value:
        return None
    if all(isinstance(entry, Mapping) for entry in value.values()):
        value = _turned(value)
        columns = list(dict.fromkeys(column for entry in value.values() for column in entry))
        rows = [
            [label(key), *(_plain(entry.get(column)) for column in columns)] for key, entry in value.items()
        ]
        return {"columns": ["", *map(label, columns)], "rows": rows}
    return {
        "columns": [],
        "rows": [[str(key) if named else label(key), _plain(entry)] for key, entry in value.items()],
    }


def _turned(entries: Mapping[Any, Mapping[Any, Any]]) -> Mapping[Any, Mapping[Any, Any]]:
    """The longer side down the page: two models with ten facts each have ten rows."""
    inner = list(dict.fromkeys(key for entry in entries.values() for key in entry))
    if len(inner) <= len(entries):
        return entries
    return {key: {outer: entry.get(key) for outer, entry in entries.items()} for key in inner}


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | int | float):
        return shown(value).text if not isinstance(value, float) else f"{value:g}"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, Iterable):
        return ", ".join(_plain(entry) for entry in value)
    return str(value)
