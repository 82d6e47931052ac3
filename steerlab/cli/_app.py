"""The command line as an object to which the modules beside add their commands, and its two consoles."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from steerlab import __version__

app = typer.Typer(
    name="steerlab",
    help="See what post-training changed inside a language model, and steer one at inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="The bundled pairs of small trained models.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

out = Console()
err = Console(stderr=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """See what post-training changed inside a language model, and steer one at inference."""
