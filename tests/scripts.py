"""Scripts and commands in this process, in a folder of their own: imports are what a process of its own costs."""

from __future__ import annotations

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


def run_analysis(script: Path, plan: Path, folder: Path, *options: str) -> object:
    """Run an analysis with a TOML file, its figures and runs below `folder`; the exit code as of `run_script`."""
    folders = ["--figures", folder / "figures", "--runs", folder / "runs"]
    return run_script(script, [plan, *options, *folders], folder)


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
