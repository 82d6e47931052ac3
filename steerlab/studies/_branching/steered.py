"""Does steering widen or narrow what a model sees ahead? The branching factor by strength of an intervention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.errors import PromptError
from steerlab.models import Edit, LanguageModel
from steerlab.models.prompts import Template
from steerlab.plots import Series
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.sampling import Trajectories
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, paired_difference
from steerlab.studies._branching.single import log_factors, sampled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class SteeredFactor(Record):
    """BF at one strength, its paired ratio to no steering, and nats an output."""

    strength: float
    factor: Estimate
    ratio: Estimate
    length: Estimate


class BranchingByStrength(Record):
    """The sweep; `plot()` draws it."""

    name: str
    law: str
    rows: tuple[SteeredFactor, ...]

    def plot(self) -> Figure:
        """BF by strength with its interval over prompts."""
        return plots.curves(
            [Series.of(self.name, [row.factor for row in self.rows], role="post")],
            [row.strength for row in self.rows],
            title="Branching factor by strength of steering",
            x_title="Strength",
            y_title="Branching factor",
        )


def branching_by_strength(
    model: LanguageModel,
    prompts: Sequence[str],
    steer: Callable[[float], Sequence[Edit]],
    strengths: Sequence[float],
    *,
    name: str = "steered",
    template: Template = "auto",
    samples: int = 8,
    max_new_tokens: int = 48,
    law: SamplingLaw | None = None,
    seed: int = 0,
) -> BranchingByStrength:
    """Sample the same prompts at every strength, with the same random numbers.

    Args:
        model: what writes.
        prompts: texts, rendered by `template`.
        steer: the interventions of a strength, such as ``lambda s: [Add(direction, strength=s)]``.
        strengths: zero, which is not steered, is put in front where it is missing.

    Raises:
        PromptError: no prompt or no strength.
    """
    if not prompts or not strengths:
        raise PromptError("A sweep needs at least one prompt and one strength.")
    rule = law or SamplingLaw()

    def logs_at(strength: float) -> tuple[Float[np.ndarray, " prompt"], Trajectories]:
        with model.steering(*steer(strength)) if strength else nullcontext():
            runs = sampled(
                model,
                prompts,
                template=template,
                samples=samples,
                max_new_tokens=max_new_tokens,
                law=rule,
                seed=seed,
                description=f"branching at strength {strength:g}",
            )
        return log_factors(runs), runs

    wanted = list(dict.fromkeys(strengths if 0 in strengths else (0.0, *strengths)))
    plain = logs_at(0.0)  # first, since every other one is held against it
    by_strength = {strength: logs_at(strength) if strength else plain for strength in wanted}
    rows = [_row(strength, *by_strength[strength], plain[0], seed) for strength in wanted]
    return BranchingByStrength(name=name, law=str(rule), rows=tuple(rows))


def _row(
    strength: float,
    logs: Float[np.ndarray, " prompt"],
    runs: Trajectories,
    plain: Float[np.ndarray, " prompt"],
    seed: int,
) -> SteeredFactor:
    return SteeredFactor(
        strength=float(strength),
        factor=bootstrap_mean(logs, seed=seed).transform(math.exp),
        ratio=paired_difference(logs, plain, seed=seed).transform(math.exp),
        length=bootstrap_mean(runs.lengths, runs.prompt, seed=seed),
    )
