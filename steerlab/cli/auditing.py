"""`steerlab audit`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from steerlab.cli._app import app, out
from steerlab.showing import text_of

if TYPE_CHECKING:
    from steerlab.auditing import AuditResult
    from steerlab.directions import Direction

_SHOWN = ("matrix", "verdict", "change", "top share", "rank", "strength")
_ROWS = 12


@app.command()
def audit(
    base: Annotated[str, typer.Argument(help="What the candidate is held against.")],
    candidate: Annotated[str, typer.Argument(help="Hub name, folder, adapter, GGUF file, or zoo:NAME.")],
    other: Annotated[
        str | None, typer.Option(help="A second model that the candidate may be merged with.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A direction's file to hold the found one against, or a packaged contrast (refusal), for which the "
            "base is loaded and run."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what was done to a set of weights, and run nothing: a cast, an ablation, an adapter, a merge, a fine-tune."""
    from steerlab.auditing import audit as audited

    found = audited(base, candidate, other=other)
    known = None if against is None or found.direction is None else _direction(against, base)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    for line in (f"{found.kind}: {found.sentence}", *found.details):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if known is not None:
        site, cosine = max(found.cosines(known).items(), key=lambda pair: abs(pair[1]))
        out.print(
            f"Cosine with {against}: {cosine:.3f}, at {site}.", markup=False, highlight=False, soft_wrap=True
        )
    out.print(_table(found))


def _direction(name: str, base: str) -> Direction:
    """A direction's file, or what a packaged contrast gives in the base."""
    from steerlab.directions import Direction
    from steerlab.extraction import extract
    from steerlab.opening import load

    if Path(name).suffix == ".safetensors":
        return Direction.load(Path(name))
    return extract(load(base), name)


def _table(found: AuditResult) -> Table:
    """The matrices that moved most; --json has them all."""
    every = found.tables()[0]
    places = [every.columns.index(column) for column in _SHOWN]
    moved = every.columns.index("change")
    rows = sorted(every.rows, key=lambda row: -_size(row[moved]))[:_ROWS]
    table = Table(title_justify="left", title=f"{every.title} ({len(rows)} of {len(every.rows)})")
    for column in _SHOWN:
        table.add_column(column, overflow="fold", no_wrap=column != "matrix")
    for row in rows:
        table.add_row(*(text_of(row[place]) for place in places))
    return table


def _size(change: object) -> float:
    """How far a matrix moved; what the base has not is first."""
    return float(change) if isinstance(change, int | float) else math.inf
