"""The options that commands share: the same name, type and help everywhere, on every command where they make sense."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from steerlab.cli import app

SHARED = ("--quiet", "--json", "--seed", "--device", "--dtype", "--batch-tokens")
#: Which of them a command has. Left out is what would change nothing there:
#: one prompt is one batch (generate, chat, bake, export, doctor); greedy or stored work draws nothing (bake, export,
#: doctor, report, audit, watch, calibrate); audit, report and zoo run no model that is loaded to a device; chat is a
#: conversation, which is neither one object nor quiet about less than its answers; zoo list does nothing that takes
#: time.
TABLE = {
    "compare": {*SHARED},
    "branching": {*SHARED},
    "trace": {*SHARED},
    "transfer": {*SHARED},
    "diff": {*SHARED},
    "neurons": {*SHARED},
    "card": {*SHARED},
    "extract": {*SHARED},
    "generate": {"--quiet", "--json", "--seed", "--device", "--dtype"},
    "chat": {"--quiet", "--seed", "--device", "--dtype"},
    "watch": {"--quiet", "--json", "--device", "--dtype", "--batch-tokens"},
    "calibrate": {"--quiet", "--json", "--device", "--dtype", "--batch-tokens"},
    "bake": {"--quiet", "--json", "--device", "--dtype"},
    "serve": {"--quiet", "--device", "--dtype"},
    "export": {"--quiet", "--json", "--device", "--dtype"},
    "doctor": {"--quiet", "--json", "--device", "--dtype"},
    "audit": {"--quiet", "--json"},
    "report": {"--quiet", "--json"},
    "zoo list": {"--json"},
    "zoo train": {"--quiet", "--json", "--seed"},
    "zoo measure": {"--quiet", "--json"},
}
#: Options that mean one thing wherever they are, so they are the same there, too.
ALIKE = (
    *SHARED,
    "--overwrite",
    "--size",
    "--answers",
    "--steer",
    "--ablate",
    "--alarm",
    "--per",
    "--trust-remote-code",
    "--resume",
)


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner, below in getattr(command, "commands", {"": command}).items():
            found[f"{name} {inner}".strip()] = below
    return found


def kind_of(option: Any) -> str:
    """An option's type; typer without click of its own keeps it elsewhere."""
    descriptor = getattr(option, "type_descriptor", None)
    return str(getattr(descriptor, "annotation", vars(option).get("type")))


def options(command: Any) -> dict[str, Any]:
    return {
        spelled: option for option in command.params for spelled in option.opts if spelled.startswith("-")
    }


def test_every_command_has_the_options_of_the_table() -> None:
    assert {name: set(SHARED) & options(command).keys() for name, command in commands().items()} == TABLE


@pytest.mark.parametrize("spelled", ALIKE)
def test_an_option_is_the_same_everywhere(spelled: str) -> None:
    found = {}
    for name, command in commands().items():
        option = options(command).get(spelled)
        if option is not None:
            found[name] = (option.name, kind_of(option), option.help, option.default, tuple(option.opts))
    assert len(found) > 0
    assert len(set(found.values())) == 1, found


def test_no_command_has_a_short_or_hidden_way_of_its_own() -> None:
    for name, command in commands().items():
        for spelled, option in options(command).items():
            assert spelled.startswith("--"), f"{name}: {spelled}"
            assert option.help or getattr(option, "hidden", False), f"{name}: {spelled} says nothing"
