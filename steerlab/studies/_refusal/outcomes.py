"""Verdicts put together and turned into shares: the rows of the refusal study's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from steerlab.judging import agreement_of
from steerlab.readouts.refusals import Verdicts, difference
from steerlab.statistics import Estimate, bootstrap_mean, proportion
from steerlab.studies._refusal.result import Intervention, Outcome


def outcome(
    model: str,
    kind: str,
    intervention: Intervention,
    direction: str,
    after: Verdicts,
    before: Verdicts | None = None,
    clusters: NDArray[np.int64] | None = None,
    *,
    judged: bool = False,
    seed: int,
) -> Outcome:
    """The shares of `after` and their change from `before`; of random directions, one a cluster, also one by one."""

    def share(rows: Bool[np.ndarray, " row"]) -> Estimate:
        return proportion(rows, clusters=clusters)

    effect = None
    if before is not None and intervention == "ablation":
        effect = difference(share(after.not_answered), share(before.not_answered))
    elif before is not None:
        effect = difference(share(after.coherent_refusal), share(before.coherent_refusal))
    draws: tuple[float, ...] = ()
    if direction.startswith("random") and before is not None and clusters is not None:
        field = "not_answered" if intervention == "ablation" else "coherent_refusal"
        change = getattr(after, field).astype(float) - getattr(before, field).astype(float)
        draws = tuple(float(change[clusters == draw].mean()) for draw in np.unique(clusters))
    known = not np.isnan(after.odds).any()
    return Outcome(
        model=model,
        prompts="harmful" if kind == "harmful" else "harmless",
        intervention=intervention,
        direction=direction,
        refused=share(after.refused),
        start=share(after.start),
        anywhere=share(after.anywhere),
        log_odds=bootstrap_mean(after.odds, clusters, seed=seed) if known else Estimate(value=math.nan),
        gibberish=share(after.gibberish),
        unfinished=share(after.unfinished) if after.unfinished.any() else None,
        judged=agreement_of(after.refused, after.phrases, clusters) if judged else None,
        effect=effect,
        draws=draws,
    )


def picked(verdicts: Verdicts, rows: NDArray[np.int64]) -> Verdicts:
    """The verdicts on some rows."""
    return Verdicts(**{field.name: getattr(verdicts, field.name)[rows] for field in fields(Verdicts)})


def joined(parts: Sequence[Verdicts]) -> Verdicts:
    """Verdicts one after the other."""
    return Verdicts(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Verdicts)
        }
    )
