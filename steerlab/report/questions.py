"""One study as the page shows it: card, argument, figures with captions, and the tables behind them."""

from __future__ import annotations

import base64
import html
import json
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from steerlab.plots import draws_something
from steerlab.report.cells import axis_titles, csv_text, numeric_columns, shown, table_of_figure
from steerlab.report.keys import marks
from steerlab.report.manifest import label
from steerlab.results import STUDIES, StudyResult, Table, study_title
from steerlab.showing import isolated

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ON_THE_PAGE = 4
"""Figures that stand on the page of a study that captions none of them."""
_SENTENCES = 3
"""Sentences that stand below the answer; the others are folded."""


def question(result: StudyResult, mark: str = "") -> dict[str, Any]:
    """All that the templates show of a study.

    mark: what anchors begin with where two results of one study share a page.
    """
    name = f"{mark}{result.study}"
    tables = {table.key: table for table in result.tables()}
    said = result.captions()
    figures = [_figure(name, key, figure, tables, said.get(key)) for key, figure in result.figures().items()]
    first = [figure for figure in figures if figure["captioned"]] or figures[:_ON_THE_PAGE]
    argument = result.argument()
    sentences = [sentence for sentence in result.summary if sentence != argument.answer]
    return {
        "id": f"study-{name}",
        "study": result.study,
        "title": study_title(result.study),
        "question": STUDIES[result.study].question if result.study in STUDIES else "",
        "status": result.status,
        "argument": argument,
        "sentences": sentences[:_SENTENCES],
        "more_sentences": sentences[_SENTENCES:],
        "headlines": [
            (one, shown(one.value), None if one.control is None else shown(one.control))
            for one in result.headlines()
        ],
        "key": marks(result.key_figure()),
        "figures": first,
        "more_figures": [figure for figure in figures if figure not in first],
        "tables": [_table(f"{name}-{table.key}", table) for table in tables.values()],
        "download": data_uri("application/json", json.dumps(result.to_dict(), separators=(",", ":"))),
        "file": f"{name}.json",
    }


def json_for_html(text: str) -> Markup:
    """JSON `text` that no HTML parser can take for markup, whatever its strings hold."""
    for raw in "<>&\u2028\u2029":
        text = text.replace(raw, f"\\u{ord(raw):04x}")
    return Markup(text)


def data_uri(kind: str, text: str) -> str:
    """A file that the page itself holds, to be saved from a link."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode(errors='replace')).decode()}"


def caption_of(figure: Figure) -> str:
    """What a figure shows, from its axes and its kind of marks, where its study says nothing of it."""
    across, down = axis_titles(figure)
    if any(trace.type == "heatmap" for trace in figure.data):
        axes = f"Rows: {down[:1].lower() + down[1:]}. " if down else ""
        return f"{axes}Colours and numbers are the values; point at a cell to read it."
    axes = f"{down} by {across[:1].lower() + across[1:]}. " if down and across else f"{down or across}. "
    whiskers = any(
        trace.type in ("bar", "scatter") and trace.error_y.array is not None for trace in figure.data
    )
    bands = any(trace.type == "scatter" and trace.fill == "toself" for trace in figure.data)
    spread = "Whiskers are 95 % intervals." if whiskers else "Bands are 95 % intervals." if bands else ""
    return f"{axes if axes != '. ' else ''}{spread}".strip()


# -- private, in the order they are called --


def _figure(
    study: str, key: str, figure: Figure, tables: dict[str, Table], caption: str | None
) -> dict[str, Any]:
    """A figure with its table, taken out of `tables` when the study gives one under the same key."""
    title = html.unescape(figure.layout.title.text or "") or label(key)
    drawn = draws_something(figure)
    table = tables.pop(key, None) or (
        table_of_figure(key, f"The numbers of: {title}", figure) if drawn else None
    )
    fields = _isolated_in(json.loads(figure.to_json()))
    # the page carries the title as text that wraps; the drawing then needs less room on top
    fields["layout"].pop("title", None)
    has_note = any(str(note.get("yref", "")) == "paper" for note in fields["layout"].get("annotations", []))
    fields["layout"].setdefault("margin", {})["t"] = 28 if has_note else 16
    return {
        "id": f"figure-{study}-{key}",
        "key": key,
        "title": title,
        "caption": caption or caption_of(figure),
        "captioned": caption is not None,
        "drawn": drawn,
        "json": json_for_html(json.dumps(fields, separators=(",", ":"))) if drawn else "",
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
    run = name[:2] if name[1:2] == "-" else ""  # of two that share a page
    return {
        "id": f"table-{name}",
        "title": table.title,
        "label": f"{table.title}, run {run[0].upper()}" if run else table.title,
        "note": table.note,
        "columns": list(zip(table.columns, numeric_columns(table), strict=True)),
        "wide": len(table.columns) > 7,
        "rows": [[shown(cell) for cell in row] for row in table.rows],
        "file": f"{name}.csv",
        "download": data_uri("text/csv", csv_text(table)),
    }
