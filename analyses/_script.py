"""What the scripts on real models share: arguments, columns of numbers with intervals, pictures, names of files."""

from __future__ import annotations

import argparse
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from _part_files import PartFile, Row
from plotly.graph_objects import Figure

from steerlab.plots import save
from steerlab.statistics import Estimate


def arguments_of(description: str | None, *, only: str = "", runs: bool = False) -> argparse.Namespace:
    """The command line: a TOML file (`plan` holds what it says), the folder of its figures, and what is left out.

    only: what `--only` names some of ("models"); runs: whether something is kept below `--runs`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="the TOML file of this name, or your own")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where tables and figures go")
    if only:
        parser.add_argument(
            "--dry-run", action="store_true", help="state tokens and parts, and load no model"
        )
        parser.add_argument("--only", nargs="+", help=f"some of the {only}")
    if runs:
        parser.add_argument(
            "--runs", type=Path, default=Path("runs"), help="where an interrupted part is kept"
        )
    arguments = parser.parse_args()
    arguments.plan = tomllib.loads(arguments.configuration.read_text(encoding="utf-8"))
    arguments.folder = arguments.figures / arguments.plan["name"]
    return arguments


def part_files(folder: Path, columns: Mapping[str, Sequence[str]], key: Sequence[str]) -> dict[str, PartFile]:
    """The files of a script by name; their parts are told apart by `key`."""
    return {name: PartFile(folder / f"{name}.csv", listed, key) for name, listed in columns.items()}


def settings_of(*settings: object) -> str:
    """A short hash of what a part is run with: its rows are not taken for those of other settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def ends(*names: str) -> list[str]:
    """The columns of numbers with their intervals."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def named(name: str, estimate: Estimate | None) -> Row:
    """A number with its interval in these columns; nothing where it was not measured."""
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def estimate_of(row: Row, name: str) -> Estimate:
    """The number with its interval that stands in a row of a file."""
    return Estimate(**{part: float(row[f"{name}{end}"]) for part, end in
                       (("value", ""), ("low", "_low"), ("high", "_high"))})  # fmt: skip


def draw(figure: Figure, path: Path, *, height: int | None = None) -> None:
    """Write a picture, and nothing where no browser draws."""
    saved = save(figure, path, height=height)
    if saved.reason:
        saved.path.unlink(missing_ok=True)


def slug(name: str) -> str:
    """A name as part of a file's name: the last part of a hub name in small letters."""
    return "".join(
        letter if letter.isalnum() or letter == "-" else "_" for letter in name.rpartition("/")[2].lower()
    )
