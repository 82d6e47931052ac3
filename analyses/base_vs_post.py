"""Compare a base model with its post-trained version as a TOML file says; store figures and tables.

    python analyses/base_vs_post.py analyses/zoo_small.toml

The run goes to `runs/<name>` (taken up again where an earlier one stopped); every figure goes to
`figures/<name>/` as SVG where a browser is installed and as HTML otherwise, every table as CSV
(an interval is three more columns: low, high, n).
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import steerlab as sl
from steerlab.comparison import Run
from steerlab.errors import SteerlabError
from steerlab.plots import save_all
from steerlab.report import csv_text
from steerlab.results import StudyResult


def read_configuration(path: Path) -> dict[str, Any]:
    """The keys of the TOML file: name, base, post and, if given, whatever else `sl.compare` takes."""
    try:
        configuration = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}.") from error
    missing = {"name", "base", "post"} - configuration.keys()
    if missing:
        raise SystemExit(f"{path} does not say {', '.join(sorted(missing))}.")
    return configuration


def require_known(options: dict[str, Any], takes: Callable[..., Any], *also: str) -> None:
    """Stop with a sentence at a key that nothing takes (a misspelt one would go unnoticed or end in a trace)."""
    parameters = signature(takes).parameters.values()
    known = {*also, *(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)}
    if strange := sorted(options.keys() - known):
        raise SystemExit(f"Unknown key {', '.join(strange)}; a file may say {', '.join(sorted(known))}.")


def run(configuration: dict[str, Any], runs: Path, *, overwrite: bool) -> Run:
    """The comparison, resumed where an earlier one of the same name stopped."""
    options = {key: value for key, value in configuration.items() if key not in {"name", "base", "post"}}
    require_known(options, sl.compare, "dtype", "device", "revision")
    return sl.compare(
        configuration["base"],
        configuration["post"],
        out=runs / configuration["name"],
        resume=not overwrite,
        overwrite=overwrite,
        announce=print,
        **options,
    )


def write_figures(finished: Run, folder: Path) -> None:
    """Every study's figures and tables below `folder`."""
    for result in finished.results.values():
        write_result(result, folder)


def write_result(result: StudyResult, folder: Path) -> None:
    """One study's figures and tables below `folder`, their names beginning with the study's."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {folder / f"{result.study}_{name}.svg": figure for name, figure in result.figures().items()}
    for saved in save_all(pictures):
        print(saved.path, saved.reason)
    for table in result.tables():
        path = folder / f"{result.study}_{table.key}.csv"
        path.write_text(csv_text(table), encoding="utf-8", newline="")
        print(path)


def main() -> None:
    """Read the arguments, run, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="a TOML file of this folder, or your own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where figures and tables go")
    parser.add_argument("--overwrite", action="store_true", help="run again from the beginning")
    arguments = parser.parse_args()
    configuration = read_configuration(arguments.configuration)
    try:
        finished = run(configuration, arguments.runs, overwrite=arguments.overwrite)
    except SteerlabError as error:
        raise SystemExit(f"{arguments.configuration}: {error}") from error
    write_figures(finished, arguments.figures / configuration["name"])
    print(f"Report: {finished.report}")


if __name__ == "__main__":
    main()
