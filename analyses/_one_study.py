"""One study on a pair of models as a TOML file says: what `truthfulness.py` and `refusal.py` share.

The file names `name`, `base` and `post`; `dtype` and `device` are for loading, `statements` and `requests` name files
in place of the packaged data, and every other key (`size`, `seed`, `preset`, ...) goes to the study. Figures and tables
go to `figures/<name>/`, directions and the result as JSON to `runs/<name>_<study>/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base_vs_post import read_configuration, write_result

from steerlab.comparison import Data, load_named, read_data
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.studies import StudyResult

_LOADING, _FILES = ("dtype", "device", "revision"), ("statements", "requests")
Study = Callable[[LanguageModel, LanguageModel, Data, dict[str, Any]], StudyResult]


def main(description: str, study: Study) -> None:
    """Read the arguments, run, print the summary, write everything."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="a TOML file of this folder, or your own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where directions and the JSON go")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where figures and tables go")
    arguments = parser.parse_args()
    configuration = read_configuration(arguments.configuration)
    try:
        result = run(configuration, study)
    except SteerlabError as error:
        raise SystemExit(f"{arguments.configuration}: {error}") from error
    print("\n".join(result.summary))
    write_result(result, arguments.figures / configuration["name"])
    keep(result, arguments.runs / f"{configuration['name']}_{result.study}")


def run(configuration: dict[str, Any], study: Study) -> StudyResult:
    """Load the pair and the data, and do the study."""
    options = {key: value for key, value in configuration.items() if key not in {"name", "base", "post"}}
    loading = {key: options.pop(key) for key in _LOADING if key in options}
    statements, requests = (options.pop(key, None) for key in _FILES)
    base, post = (load_named(configuration[role], **loading) for role in ("base", "post"))
    bundled = base.name.startswith("zoo:") and post.name.startswith("zoo:")
    return study(base, post, read_data(statements, requests, bundled=bundled), options)


def keep(result: StudyResult, folder: Path) -> None:
    """The result as JSON and its directions as files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.study}.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    for name, artefact in result.artefacts().items():
        artefact.save(folder / f"{name}.safetensors")
    print(folder)
