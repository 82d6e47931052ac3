"""The command line: one thin function a command, one module a group of commands.

Heavy imports stay inside the functions, so that `steerlab --help` answers at once. Wrong input ends with
exit code 2 and one sentence, an interrupt with 130.
"""

from __future__ import annotations

import sys

import typer

# Importing a module adds its commands, in this order of the help page.
from steerlab.cli import (  # noqa: F401
    auditing,
    branching,
    card,
    comparing,
    difference,
    doctor,
    extracting,
    neurons,
    serving,
    steering,
    tracing,
    transfer,
    watching,
    zoo,
)
from steerlab.cli._app import app, err
from steerlab.errors import SteerlabError

__all__ = ["app", "main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command line and turn errors into sentences and exit codes."""
    try:
        code = app(standalone_mode=False)
    except SteerlabError as error:
        err.print(f"steerlab: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        # click's usage errors know how to show themselves; anything else is a fault of ours and keeps its trace.
        show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or status is None:
            raise
        show()
        sys.exit(status)
    if code == _INTERRUPTED:
        err.print("Interrupted.")
    sys.exit(code if isinstance(code, int) else 0)
