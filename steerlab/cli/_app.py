"""The command line as an object to which the modules beside add their commands, and its consoles."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


#: What a command found; its errors; and what it does meanwhile, which --quiet leaves out.
out, err, notes = Terminal(), Terminal(stderr=True), Terminal(stderr=True)


def say(line: str) -> None:
    """Note what begins."""
    notes.print(line, style="bold", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Note what takes seconds: a spinner in a terminal, a line elsewhere."""
    if not notes.is_terminal:
        say(what)
        yield
        return
    with notes.status(what):
        yield


def loading_libraries() -> AbstractContextManager[None]:
    """Note that torch and what needs it are imported, which takes seconds once."""
    return nullcontext() if "torch" in sys.modules else waiting("Loading the libraries")


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
