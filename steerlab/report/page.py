"""The report: one HTML file that holds everything it shows.

Its first screen answers, a page a question argues, and tables are folded away. The script that draws (packed), the
figures, the tables and their downloads are inside the file; a content policy in its head forbids any request. Every
string that comes from a model, a prompt or a file is escaped: in HTML by the template, in JSON by writing <, > and &
as \\u003c, \\u003e and \\u0026, in figures by the plot primitives. Control characters are shown by signs, and words
written from right to left are isolated, so that they do not turn what stands beside them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steerlab.errors import RunError
from steerlab.files import system_reason, whole, write_text
from steerlab.report.manifest import label, model_names, moment, sections, title
from steerlab.report.questions import data_uri, question
from steerlab.results import StudyResult
from steerlab.showing import isolated


class Packed(NamedTuple):
    """A script in base64 of raw DEFLATE, and its size when unpacked."""

    text: Markup
    size: int


def write_report(
    results: Iterable[StudyResult] | Mapping[str, StudyResult], manifest: Mapping[str, Any], path: str | Path
) -> Path:
    """Write the page for `results` to `path`, whole or not at all, and return the path.

    manifest: what was run and with what, plain JSON values. Raises RunError when the file cannot be written.
    """
    return written(render(results, manifest), Path(path))


def render(results: Iterable[StudyResult] | Mapping[str, StudyResult], manifest: Mapping[str, Any]) -> str:
    """The page as text."""
    studies = [question(result) for result in (results.values() if isinstance(results, Mapping) else results)]
    drawn = any(figure["drawn"] for study in studies for figure in study["figures"] + study["more_figures"])
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=title(manifest),
            models=model_names(manifest),
            created=moment(str(manifest.get("created", ""))),
            studies=studies,
            manifest=sections(manifest),
            manifest_download=data_uri("application/json", json.dumps(manifest, indent=1, default=str)),
            plotly=packed_plotly() if drawn else None,
        )
    )


def environment() -> Environment:
    """The templates, which escape every value."""
    made = Environment(
        loader=PackageLoader("steerlab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: isolated(value) if type(value) is str else value,
    )
    made.filters["label"] = label
    return made


def written(page: str, target: Path) -> Path:
    """`page` at `target`, whole or not at all. Raises RunError when it cannot be written."""
    try:
        with whole(target) as partial:
            write_text(partial, page)
    except OSError as error:
        raise RunError(
            f"The report cannot be written to {target}: {system_reason(error)}; choose another place or free space."
        ) from error
    return target


@cache
def packed_plotly() -> Packed:
    """The library, deflated to less than half of its size; the page's script unpacks it."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs().encode()
    deflate = zlib.compressobj(9, wbits=-15)
    return Packed(
        Markup(base64.b64encode(deflate.compress(source) + deflate.flush()).decode()), size=len(source)
    )
