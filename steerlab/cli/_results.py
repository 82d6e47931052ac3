"""What commands print: tables and sentences for people, or one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from steerlab.cli._app import out

if TYPE_CHECKING:
    from steerlab.comparison import Run


def print_json(found: Mapping[str, Any]) -> None:
    """One JSON object on standard output. Numbers that are none become null, paths and sites texts."""
    typer.echo(json.dumps(_plain(found), indent=2, allow_nan=False))


def print_line(text: str) -> None:
    """A sentence on a line of its own, however wide the terminal."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def run_facts(run: Run) -> dict[str, Any]:
    """Where a run lies, and what its studies found, in sentences."""
    return {
        "run": run.folder.path,
        "report": run.report,
        "studies": {
            name: {"status": result.status, "summary": result.summary} for name, result in run.results.items()
        },
    }


def print_study(run: Run, *, as_json: bool) -> None:
    """The sentences of a run's only study and where its report lies."""
    if as_json:
        print_json(run_facts(run))
        return
    (result,) = run.results.values()
    for line in result.summary:
        print_line(line)
    print_line(f"Report: {run.report}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
