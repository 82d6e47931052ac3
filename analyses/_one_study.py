"""One study on a pair of models as a TOML file says: what the scripts of single studies share.

The file names `name`, `base` and `post`; `dtype`, `device` and `revision` are for loading, `statements` and `requests`
name files in place of the packaged data that the study reads, and every other key (`size`, `seed`, ...) goes to it.
Figures and tables go to `figures/<name>/`, the run with its report, result and directions to `runs/<name>_<study>/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from base_vs_post import read_configuration, require_known, write_result

import steerlab as sl
from steerlab.comparison import Run, run_alone
from steerlab.datasets import StudyData
from steerlab.errors import SteerlabError
from steerlab.registry import STUDIES
from steerlab.results import StudyResult
from steerlab.run_data import Facts, data_facts, on_topics, read_data
from steerlab.studies import Pair

_LOADING, _FILES = ("dtype", "device", "revision"), ("statements", "requests", "questions")
Call = Callable[[Pair, StudyData, dict[str, Any]], StudyResult]


def main(
    description: str,
    study: str,
    call: Call | None = None,
    *,
    also: Sequence[str] = (),
    data: Sequence[str] = (),
) -> None:
    """Read the arguments, run the study, print its sentences, write everything.

    call: runs the study with the options of the file, by default as they stand. also: keys that `call` takes itself.
    data: further keys that say what is read (`run_data.read_data`).
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="a TOML file of this folder, or your own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where figures and tables go")
    arguments = parser.parse_args()
    configuration = read_configuration(arguments.configuration)
    function, reads = STUDIES[study].load(), STUDIES[study].reads
    sets = [*(name for name in _FILES if name in reads), *data]
    options = {key: value for key, value in configuration.items() if key not in {"name", "base", "post"}}
    require_known(options, function, *_LOADING, *sets, *also)
    folder = arguments.runs / f"{configuration['name']}_{study}"
    try:
        finished = run(
            configuration, options, call or partial(as_asked, function), folder, sets=sets, reads=reads
        )
    except SteerlabError as error:
        raise SystemExit(f"{arguments.configuration}: {error}") from error
    result = finished[study]
    print("\n".join(result.summary))
    write_result(result, arguments.figures / configuration["name"])
    print(finished.report)


def run(
    configuration: dict[str, Any],
    options: dict[str, Any],
    call: Call,
    folder: Path,
    *,
    sets: Sequence[str],
    reads: Sequence[str],
) -> Run:
    """Read the data, load the pair, do the study and store it in `folder`.

    sets: keys of `options` that say what is read. reads: what of it the study reads, and the manifest records.
    """
    asked = {key: str(value) for key, value in options.items()}
    loading = {key: options.pop(key) for key in _LOADING if key in options}
    given = read_data(**{key: options.pop(key) for key in sets if key in options})

    def study(models: dict[str, sl.LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        pair = Pair(models["base"], models["post"])
        data = on_topics(given, pair.topics)
        return call(pair, data, options), data_facts(data, reads)

    return run_alone(
        study,
        {role: str(configuration[role]) for role in ("base", "post")},
        out=folder,
        configuration=asked,
        overwrite=True,
        load=partial(sl.load, **loading),
    )


def as_asked(
    function: Callable[..., StudyResult], pair: Pair, data: StudyData, options: dict[str, Any]
) -> StudyResult:
    """The study with the options of the file as they stand."""
    return function(pair, data, **options)
