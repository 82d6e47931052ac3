"""Scripts and commands in this process, in a folder of their own: imports are what a process of its own costs."""

from __future__ import annotations

import csv
import hashlib
import io
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def run_script(script: Path, arguments: Sequence[object], folder: Path) -> object:
    """Run a script as `python SCRIPT ARGUMENTS` in `folder`; the exit code it stops with, None where it ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        before = set(sys.modules)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stopped:
            return stopped.code
        finally:
            for name in set(sys.modules) - before:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(script.parent)):
                    del sys.modules[name]
    return None


def run_analysis(script: Path, plan: Path, folder: Path, *options: str, runs: bool = True) -> object:
    """Run an analysis with a TOML file, its figures (and `runs`) below `folder`; the exit code as of `run_script`."""
    folders = ["--figures", folder / "figures", *(["--runs", folder / "runs"] if runs else [])]
    return run_script(script, [plan, *options, *folders], folder)


def local_copy(model: Path, folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Put a model where analyses of hub models look for "someone/NAME"; the SHA-256 of its weights."""
    (folder / "models").mkdir()
    (folder / "models" / model.name.lower()).symlink_to(model)
    patch.setenv("STEERLAB_REAL_MODELS", str(folder / "models"))
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def rows_of(folder: Path, *names: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each of an analysis' tables, of a plan called "tried"."""
    found = {}
    for name in names:
        with (folder / "figures" / "tried" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found[name] = list(csv.DictReader(file))
    return found


def run_command(arguments: Sequence[object], folder: Path) -> int:
    """Run `steerlab ARGUMENTS` in `folder` with nothing typed in; its exit code."""
    from steerlab import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["steerlab", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO())
        try:
            cli.main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0
