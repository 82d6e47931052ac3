"""Compare a base model with its post-trained version as a TOML file says; store figures and tables.

    python analyses/base_vs_post.py analyses/zoo_small.toml

The run goes to `runs/<name>` (taken up again where an earlier one stopped); every figure goes to
`figures/<name>/` as SVG where a browser is installed and as HTML otherwise, every table as CSV
(an interval is three more columns: low, high, n).
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

import steerlab as sl
from steerlab.comparison import Run
from steerlab.errors import SteerlabError
from steerlab.plots import save_all
from steerlab.report import csv_text
from steerlab.results import StudyResult

#: Keys of every script that name something.
_TEXTS = {
    *("name", "base", "post", "dtype", "device", "revision"),
    *("statements", "requests", "questions", "pairs", "template", "prompts"),
}


def read_configuration(path: Path) -> dict[str, Any]:
    """The keys of the TOML file: name, base, post and, if given, whatever else `sl.compare` takes."""
    try:
        configuration = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}.") from error
    missing = {"name", "base", "post"} - configuration.keys()
    if missing:
        raise SystemExit(f"{path} does not say {', '.join(sorted(missing))}.")
    for key in _TEXTS & configuration.keys():
        if not isinstance(configuration[key], str):
            raise SystemExit(f'{path}: {key} is a text, as in {key} = "...", and not {configuration[key]!r}.')
    return configuration


def require_known(options: dict[str, Any], takes: Callable[..., Any], *also: str) -> None:
    """Stop with a sentence at a key that nothing takes, or a value of another kind than `takes` names.

    A misspelt key would go unnoticed or end in a trace, and a text in place of a list be taken letter by letter.
    """
    parameters = {
        one.name: one for one in signature(takes).parameters.values() if one.kind is one.KEYWORD_ONLY
    }
    known = {*also, *parameters}
    if strange := sorted(options.keys() - known):
        raise SystemExit(f"Unknown key {', '.join(strange)}; a file may say {', '.join(sorted(known))}.")
    for key in sorted(options.keys() & parameters.keys()):
        kind = _kind_of(parameters[key], takes)
        try:
            _ = kind and kind.validate_json(json.dumps(options[key]), strict=True)
        except (TypeError, ValueError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise SystemExit(
                f"{key} = {options[key]!r} is of another kind than is taken there: {said}."
            ) from error


def _kind_of(parameter: Parameter, takes: Callable[..., Any]) -> TypeAdapter[Any] | None:
    """What a parameter's annotation says of plain values; None where it names objects that no file can hold."""
    try:
        return TypeAdapter(eval(str(parameter.annotation), takes.__globals__))  # our own source
    except (NameError, PydanticSchemaGenerationError):
        return None


def run(configuration: dict[str, Any], runs: Path, *, overwrite: bool) -> Run:
    """The comparison, resumed where an earlier one of the same name stopped."""
    options = {key: value for key, value in configuration.items() if key not in {"name", "base", "post"}}
    if own := sorted(options.keys() & {"out", "resume", "overwrite", "announce"}):
        raise SystemExit(f"{', '.join(own)} is not for a file to say; see --runs and --overwrite.")
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
