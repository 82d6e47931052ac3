"""How many continuations do a base model and its post-trained version see ahead? The branching study on any pair.

    python analyses/branching_factor.py analyses/branching_zoo_small.toml
    python analyses/branching_factor.py analyses/branching_zoo_small.toml --reference CURVES.csv [MORE.csv ...]

Beside the keys of `_one_study.py` the file may hold `prompts` (a text or JSONL file), `rule`, `value` and
`temperature` of the sampling law, and `steer` with `strengths`: a direction file that is added to the post-trained
model, in class gaps, for a sweep of the branching factor by strength. `--reference` draws published cumulative
curves (columns model, series, x, bf) next to ours on random strings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from _one_study import main

from steerlab import datasets, studies
from steerlab.datasets import StudyData
from steerlab.directions import Direction
from steerlab.models import LanguageModel
from steerlab.plots import save
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.samples import rendered, sample
from steerlab.results import StudyResult
from steerlab.steering import Add
from steerlab.studies import Pair
from steerlab.studies._branching import estimators
from steerlab.studies._branching.reference import beside, read_curves

_OWN = ("rule", "value", "temperature", "steer", "strengths")


def study(pair: Pair, data: StudyData, options: dict[str, Any]) -> StudyResult:
    """The branching study, the sweep where a direction is named, and the published curves where files are."""
    own = {key: options.pop(key) for key in _OWN if key in options}
    law = SamplingLaw(own.get("temperature", 1.0), own.get("rule", "top_p"), own.get("value", 0.9))
    result = studies.branching(pair, data, law=law, **options)
    if "steer" in own:
        direction = Direction.load(own["steer"])
        sweep = studies.branching_by_strength(
            pair.post,
            list(data.open_prompts)[:16],
            lambda strength: [Add(direction, strength=strength, unit="class_gap")],
            own.get("strengths", [-2.0, -1.0, 0.0, 1.0, 2.0]),
            law=law,
        )
        print(*(f"strength {row.strength:g}: BF {row.factor}" for row in sweep.rows), sep="\n")
        print(save(sweep.plot(), Path("figures") / "branching_by_strength.svg").path)
    if REFERENCE:
        published = {name: curve for path in REFERENCE for name, curve in read_curves(path).items()}
        ours = {"base": cumulative(pair.base), "post": cumulative(pair.post)}
        figure = beside(ours, published)
        print(save(figure, Path("figures") / "branching_beside_published.svg").path)
    return result


def cumulative(model: LanguageModel, n: int = 20, steps: int = 64) -> list[float]:
    """Our cumulative branching factor on random strings of the model's own vocabulary, as the published curves
    have it."""
    texts = datasets.prompt_sets.random_strings([model.tokenizer], n, 1)
    runs = sample(model, rendered(model, texts, "none"), samples=8, max_new_tokens=steps)
    return np.exp(estimators.cumulative(runs.entropy)).tolist()


def _reference_files() -> list[Path]:
    """The files behind --reference, taken out of the arguments that the common part reads."""
    if "--reference" not in sys.argv:
        return []
    at = sys.argv.index("--reference")
    behind = sys.argv[at + 1 :]
    count = next((place for place, one in enumerate(behind) if one.startswith("--")), len(behind))
    del sys.argv[at : at + 1 + count]
    return [Path(one) for one in behind[:count]]


if __name__ == "__main__":
    REFERENCE = _reference_files()
    main(__doc__ or "", "branching", study, also=_OWN, data=["prompts"])
