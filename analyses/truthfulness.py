"""Compare the truth directions of a base model and its post-trained version as a TOML file says.

    python analyses/truthfulness.py analyses/truthfulness_zoo_small.toml

Beside `name`, `base` and `post` the file may hold `statements` (a file of your own), every option of
`steerlab.studies.truthfulness` (size, seed, answers, preset, layers) and, in a table `[estimator]`, the `kind` of
direction (a class of `steerlab.directions`) with its parameters; what remains goes to `steerlab.load` (dtype, device).
Figures and tables go to `figures/<name>/`, the result and both directions to `runs/<name>_truthfulness/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from base_vs_post import read_configuration, write_result

import steerlab as sl
from steerlab.comparison import load_named, read_data
from steerlab.studies import StudyResult

_OPTIONS = ("size", "seed", "answers", "preset", "layers")


def estimator_of(table: dict[str, Any]) -> Any:
    """The estimator that `[estimator]` names, with its parameters."""
    kind = table.get("kind", "DifferenceInMeans")
    found = getattr(sl.directions, str(kind), None)
    if not (isinstance(found, type) and issubclass(found, sl.directions.LinearDirection)):
        raise SystemExit(f"[estimator] kind = {kind!r} is no estimator of steerlab.directions.")
    return found(**{key: value for key, value in table.items() if key != "kind"})


def run(configuration: dict[str, Any]) -> StudyResult:
    """The study on the pair."""
    options = {key: configuration[key] for key in _OPTIONS if key in configuration}
    for key in ("answers", "layers"):
        if key in options:
            options[key] = tuple(options[key])
    mine = {"name", "base", "post", "statements", "estimator", *_OPTIONS}
    loading = {key: value for key, value in configuration.items() if key not in mine}
    data = read_data(configuration.get("statements"))
    models = []
    for role in ("base", "post"):
        print(f"loading {configuration[role]}")
        models.append(load_named(configuration[role], **loading))
    return sl.studies.truthfulness(
        *models,
        data.statements,
        estimator=estimator_of(configuration.get("estimator", {})),
        plain_text=data.plain_text,
        **options,
    )


def main() -> None:
    """Read the arguments, run, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="a TOML file of this folder, or your own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where result and directions go")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where figures and tables go")
    arguments = parser.parse_args()
    configuration = read_configuration(arguments.configuration)
    result = run(configuration)
    print("\n".join(result.summary))
    folder = arguments.runs / f"{configuration['name']}_truthfulness"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truthfulness.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    for name, direction in result.artefacts().items():
        direction.save(folder / f"{name}.safetensors")
    write_result(result, arguments.figures / configuration["name"])


if __name__ == "__main__":
    main()
