"""The command line as an object to which the modules beside add their commands, and its two consoles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from steerlab import __version__
from steerlab.showing import visible

app = typer.Typer(
    name="steerlab",
    help="See what post-training changed inside a language model, and steer one at inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="The bundled pairs of small trained models.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")


class Terminal(Console):
    """A console that shows the control characters in what it prints and sends none but its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Pieces of text with their styles, as they are printed."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else piece._replace(text=visible(piece.text))


out = Terminal()
err = Terminal(stderr=True)


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
