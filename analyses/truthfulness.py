"""Do base and post-trained model share a truth direction? The truthfulness study on any pair, as a TOML file says.

    python analyses/truthfulness.py analyses/truthfulness_zoo_small.toml

Beside the keys of `_one_study.py` the file may hold every option of `steerlab.studies.truthfulness` (size, seed,
answers, preset, layers) and, in a table `[estimator]`, the `kind` of direction (a class of `steerlab.directions`) with
its parameters.
"""

from __future__ import annotations

from typing import Any

from _one_study import main

from steerlab import directions, studies
from steerlab.datasets import StudyData
from steerlab.results import StudyResult
from steerlab.studies import Pair


def study(pair: Pair, data: StudyData, options: dict[str, Any]) -> StudyResult:
    """The truthfulness study with the estimator that the file names."""
    for key in ("answers", "layers"):
        if key in options:
            options[key] = tuple(options[key])
    if "estimator" in options:
        options["estimator"] = estimator_of(options["estimator"])
    return studies.truthfulness(pair, data, **options)


def estimator_of(table: dict[str, Any]) -> directions.LinearDirection:
    """The estimator that `[estimator]` names, with its parameters."""
    kind = table.get("kind", "DifferenceInMeans")
    found = getattr(directions, str(kind), None)
    if not (isinstance(found, type) and issubclass(found, directions.LinearDirection)):
        raise SystemExit(f"[estimator] kind = {kind!r} is no estimator of steerlab.directions.")
    return found(**{key: value for key, value in table.items() if key != "kind"})


if __name__ == "__main__":
    main(__doc__ or "", "truthfulness", study)
