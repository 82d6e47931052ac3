"""How many ways on does one model see, steered or not? The branching factor without a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.models.prompts import Template
from steerlab.models.thinking import Thinking, thinking_before_answers
from steerlab.plots import Series
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.samples import rendered, sample, steps_left
from steerlab.readouts.sampling import Trajectories
from steerlab.record import Record
from steerlab.statistics import Estimate, Number, bootstrap_mean, proportion
from steerlab.studies._branching import estimators
from steerlab.studies._branching.measures import local_curve

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class BranchingFactor(Record):
    """The branching factor of one model on some prompts, with intervals over prompts.

    law: what was sampled from. factor: exp of the mean over prompts of log BF. curve: the local factor by position.
    length: tokens an output. ended: share of outputs that ended by themselves. martingale_z: check that the recorded
    law is the sampled one, |z| below 4 is chance. thinking: what stands of a thinking block before the answers.
    """

    model: str
    law: str
    n_prompts: int
    n_samples: int
    factor: Estimate
    curve: tuple[Estimate, ...]
    length: Estimate
    ended: Estimate
    martingale_z: Number
    thinking: Thinking = "none"

    def __str__(self) -> str:
        return f"The branching factor of {self.model} is {self.factor:.2f} ({self.law}, {self.n_prompts} prompts)"

    def plot(self) -> Figure:
        """The local factor by position."""
        return plots.curves(
            [Series.of(self.model, list(self.curve), role="post")],
            np.arange(1, len(self.curve) + 1),
            title=f"Local branching factor of {self.model}",
            x_title="Position in the output (tokens)",
            y_title="Branching factor",
        )


def branching_factor(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    template: Template = "auto",
    samples: int = 8,
    max_new_tokens: int = 48,
    law: SamplingLaw | None = None,
    seed: int = 0,
) -> BranchingFactor:
    """Sample answers and measure how many ways the model sees at each token; under `model.steering` the steered model.

    BF = exp(mean over prompts of the mean entropy of the law that was sampled from), Yang and Holtzman (2506.17871).

    Args:
        model: what writes.
        prompts: texts, rendered by `template`; a thinking block that it opens is closed.
        samples: answers to each prompt.
        max_new_tokens: of each answer, less where the context ends.
        law: temperature and truncation; by default temperature 1, nucleus 0.9.

    Raises:
        PromptError: no prompt, or one that fills the model's context.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise PromptError("The branching factor needs a list of at least one prompt; give it some.")
    law = law or SamplingLaw()
    runs = sampled(
        model, prompts, template=template, samples=samples, max_new_tokens=max_new_tokens, law=law, seed=seed
    )
    return BranchingFactor(
        model=model.name,
        law=str(law),
        n_prompts=len(prompts),
        n_samples=samples,
        factor=bootstrap_mean(log_factors(runs), seed=seed).transform(math.exp),
        curve=tuple(local_curve(runs.entropy, runs.prompt, seed)),
        length=bootstrap_mean(runs.lengths, runs.prompt, seed=seed),
        ended=proportion(runs.ended, clusters=runs.prompt),
        martingale_z=estimators.martingale_z(runs.entropy, runs.surprisal),
        thinking=thinking_before_answers(model) if template in ("auto", "chat") else "none",
    )


def sampled(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    template: Template,
    samples: int,
    max_new_tokens: int,
    law: SamplingLaw,
    seed: int,
    description: str = "sampling",
) -> Trajectories:
    """Samples of every prompt with the law of each step."""
    ids = rendered(model, prompts, template)
    return sample(
        model,
        ids,
        samples=samples,
        max_new_tokens=steps_left(model, ids, max_new_tokens),
        law=law,
        seed=seed,
        description=description,
    )


def log_factors(runs: Trajectories) -> Float[np.ndarray, " prompt"]:
    """[prompt] log branching factors."""
    return estimators.by_prompt(estimators.sequence_means(runs.entropy), runs.prompt)
