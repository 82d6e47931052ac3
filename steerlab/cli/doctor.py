"""`steerlab doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from steerlab.cli._app import app, out
from steerlab.cli._options import Device, Dtype, TrustRemoteCode, load_model
from steerlab.errors import ModelError
from steerlab.registry import REGISTRIES, registry_of

if TYPE_CHECKING:
    from steerlab.models import SelfCheck


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A checkpoint to check, too.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """What is installed and can be named, what device there is, and whether a checkpoint passes the self-check."""
    from steerlab.environment import hardware, library_versions

    table = Table("what", "found", title="Environment", title_justify="left")
    for name, value in {**library_versions(), **hardware()}.items():
        table.add_row(name, str(value))
    out.print(table)
    out.print(_registered_table())
    if model is None:
        return
    from steerlab.models import SelfCheck

    try:
        out.print(_self_check_table(load_model(model, device, dtype, trust_remote_code).self_check()))
    except ModelError as error:
        if isinstance(error.self_check, SelfCheck):
            out.print(_self_check_table(error.self_check))
        raise


def _registered_table() -> Table:
    table = Table("what", "names", title="What can be named", title_justify="left")
    for things in REGISTRIES:
        table.add_row(things, ", ".join(sorted(registry_of(things))))
    return table


def _self_check_table(check: SelfCheck) -> Table:
    table = Table("part", "largest relative error", "verdict", title="Self-check", title_justify="left")
    for row in check.rows:
        table.add_row(row.part, f"{row.error:.1e}", "ok" if row.ok else "FAILS")
    return table
