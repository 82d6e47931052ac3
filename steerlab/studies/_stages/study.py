"""Which stage of training changed what, and more than everything else?

Every stage is measured by itself, prompt by prompt, with the quantities of every study (`Study.stage`); stages are then
paired on the prompts that both were measured on. So one model is in memory at a time, and four stages cost twice as
much as two. The control is the same change measured on contrasts that training did not aim at: a direction of refusal
that grows no more than directions of tense and number do has grown with everything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from steerlab.datasets import StudyData
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.registry import STUDIES, Size, check_options
from steerlab.studies._stages.changes import trajectories
from steerlab.studies._stages.readings import StageReadings, able, controls_of, read_stage
from steerlab.studies._stages.result import StagesResult
from steerlab.studies._stages.sentences import headline, sentences

FEWEST = 2
_OWN = ("study", "quantity", "unit", "measure", "stages")
#: Correlation above which weights at random places are no accident, in standard errors.
_RELATED = 4.0


def stages(
    models: Mapping[str, LanguageModel],
    data: StudyData | None = None,
    *,
    studies: Sequence[str] | str | None = None,
    controls: Any = None,
    size: Size = "quick",
    seed: int = 0,
) -> StagesResult:
    """Compare loaded models as stages of one training, in their order.

    For checkpoints that should not be in memory together, `sl.compare([...])` reads one after the other.

    Args:
        models: by label.
        data: what studies read; None takes the packaged sets.
        studies: whose quantities are measured; None takes all that have some.
        controls: contrasts that training did not aim at, as `readouts.contrasts.read_contrasts` takes them; None takes
            the packaged ones that are not among the contrasts of `data`.
        size: "full" asks more.
        seed: of every draw.

    Raises:
        SteerlabError: fewer than two models, an unknown study or size.
    """
    check_options("The study of stages", size=size)
    require_stages(list(models))
    chosen = known_stages(studies)
    data = StudyData.of(data, "statements", next(iter(models.values())).topics)
    beside = controls_of(data, controls)
    return compare_stages(
        [
            read_stage(model, data, beside, chosen, label=label, size=size, seed=seed)
            for label, model in models.items()
        ],
        list(beside),
        seed,
    )


def compare_stages(stages: Sequence[StageReadings], controls: Sequence[str], seed: int) -> StagesResult:
    """The result of stages that were measured, in their order."""
    found = trajectories(stages, seed)
    if not found:
        why = " ".join(dict.fromkeys(reason for stage in stages for reason in stage.missing.values()))
        raise SteerlabError(f"Nothing could be measured of any stage. {why}")
    labels = [stage.label for stage in stages]
    moved = any(change.moved for one in found for change in one.changes)
    return StagesResult(
        status="done" if moved else "not identified",
        summary=[*sentences(found, labels), *_equal(stages), *_strangers(stages)],
        headline=headline(found),
        labels=tuple(labels),
        models=tuple(stage.name for stage in stages),
        controls=tuple(controls),
        trajectories=tuple(found),
        missing={stage.label: stage.missing for stage in stages if stage.missing},
    )


def require_stages(labels: Sequence[str]) -> None:
    """Raise SteerlabError for fewer than two stages, two of one label, or a label that tables have for themselves."""
    if len(labels) < FEWEST:
        raise SteerlabError(f"Stages are compared with each other: give at least two, not {len(labels)}.")
    if odd := [label for label in labels if not label.strip() or label.strip().lower() in _OWN]:
        raise SteerlabError(
            f"A stage cannot be called {odd[0]!r}, which tables use for themselves; name it otherwise."
        )
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise SteerlabError(f"Two stages are called {twice[0]!r}; give each a label of its own.")


def known_stages(names: Sequence[str] | str | None) -> list[str]:
    """The studies whose quantities are measured; "contrast" alone: own contrasts, which are always read.

    Raises SteerlabError for one that has none.
    """
    known = able()
    if names is None:
        return known
    named = [names] if isinstance(names, str) else list(names)
    for name in named:
        STUDIES[name]  # raises, with the names there are
        if name not in (*known, "contrast"):
            raise SteerlabError(
                f"The study {name!r} measures nothing of one model by itself; choose from {', '.join(known)}."
            )
    if not named:
        raise SteerlabError(f"No study is named; choose from {', '.join(known)}.")
    return [name for name in named if name != "contrast"]


# -- private --


def _equal(stages: Sequence[StageReadings]) -> list[str]:
    """Says which stages have one set of weights."""
    by_print: dict[str, list[str]] = {}
    for stage in stages:
        by_print.setdefault(stage.fingerprint, []).append(stage.label)
    return [
        f"{' and '.join(labels)} have the same weights." for labels in by_print.values() if len(labels) > 1
    ]


def _strangers(stages: Sequence[StageReadings]) -> list[str]:
    """Says which adjacent stages are no two states of one training: other shapes, or weights that do not correlate."""
    said = []
    for first, second in pairwise(stages):
        names = f"{first.label} and {second.label}"
        if first.shape != second.shape:
            said.append(
                f"{names} differ in shape ({first.shape}; {second.shape}): a change between them is one between "
                "models, not a step of training."
            )
            continue
        common = [key for key in first.sketch if key in second.sketch]
        if not common:
            continue
        rows = [
            np.concatenate(
                [np.asarray(stage.sketch[key]) / (np.std(stage.sketch[key]) or 1.0) for key in common]
            )
            for stage in (first, second)
        ]
        if not all(row.std() for row in rows):
            continue
        found = float(np.corrcoef(rows[0], rows[1])[0, 1])
        if found < _RELATED / math.sqrt(len(rows[0])):
            said.append(
                f"The weights of {names} do not correlate ({found:.2f} at {len(rows[0])} places), so neither was "
                "trained from the other: a change between them is one between models, not a step of training."
            )
    return said
