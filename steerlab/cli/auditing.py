"""`steerlab audit`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from steerlab.cli import _completion
from steerlab.cli._app import app, loading_libraries, out
from steerlab.cli._inputs import require_files
from steerlab.cli._options import AsJson, Quiet
from steerlab.cli._results import print_json, print_line
from steerlab.showing import text_of

if TYPE_CHECKING:
    from steerlab.auditing import AuditResult
    from steerlab.directions import Direction

_SHOWN = ("matrix", "verdict", "change", "top share", "rank", "strength")
_ROWS = 12


@app.command()
def audit(
    base: Annotated[
        str,
        typer.Argument(help="What the candidate is held against.", autocompletion=_completion.models),
    ],
    candidate: Annotated[
        str,
        typer.Argument(
            help="Hub name, folder, adapter, GGUF file, or zoo:NAME.", autocompletion=_completion.models
        ),
    ],
    other: Annotated[
        str | None,
        typer.Option(
            help="A second model that the candidate may be merged with.", autocompletion=_completion.models
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A direction's file to hold the found one against, or a packaged contrast (refusal), for which the "
            "base is loaded and run.",
            autocompletion=_completion.contrasts,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what was done to a set of weights, and run nothing: a cast, an ablation, an adapter, a merge, a fine-tune."""
    from steerlab.opening import require_findable

    require_findable(base, candidate, other)
    known = None if against is None else _known(against)
    with loading_libraries():
        from steerlab.auditing import audit as audited

    found = audited(base, candidate, other=other)
    if against is not None and known is None and found.direction is not None:
        known = _extracted(against, base)
    cosines = None if known is None or found.direction is None else found.cosines(known)
    if as_json:
        print_json(found.model_dump() | ({} if cosines is None else {"cosines": cosines}))
        return
    for line in (f"{found.kind}: {found.sentence}", *found.details):
        print_line(line)
    if cosines is not None:
        site, cosine = max(cosines.items(), key=lambda pair: abs(pair[1]))
        print_line(f"Cosine with {against}: {cosine:.3f}, at {site}.")
    out.print(_table(found))


def _known(name: str) -> Direction | None:
    """The direction in a file; None for a packaged contrast. Raises where there is neither."""
    from steerlab.datasets.contrasts import names
    from steerlab.errors import DirectionError

    if Path(name).suffix == ".safetensors":
        require_files(Path(name))
        with loading_libraries():
            from steerlab.directions import Direction
        return Direction.load(Path(name))
    known = ("truth", "refusal", *names())
    if name not in known and not Path(name).exists():
        raise DirectionError(
            f"There is nothing called {name!r} to hold a direction against; name a .safetensors file, a file of a "
            f"contrast, or one of {', '.join(known)}."
        )
    return None


def _extracted(name: str, base: str) -> Direction:
    """What a contrast gives in the base."""
    from steerlab.extraction import extract
    from steerlab.opening import load

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
