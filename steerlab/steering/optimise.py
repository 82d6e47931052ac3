"""The most that one added vector can do: a direction found by gradient, within a norm bound, through the frozen model.

    max J(v) = mean_i [ln P(towards_i | prompt_i; x + v) − ln P(away_i | prompt_i; x + v)]    subject to ‖v‖ ≤ max_norm

Steering vector optimisation (Dunefsky and Cohan 2025, "Investigating Generalization of One-shot LLM Steering
Vectors"); with `away` it maximises the difference that BiPO (Cao et al. 2024) puts under a logistic function. A
direction that was read off states is held against it: how far is it from the most that a vector of its norm does here?
The search is local, so "the most" is what it found. It says nothing about what the model represents, so the effect on
held-out prompts and that of random vectors of the same norm are kept beside the effect in the sample.

Steps of projected gradient ascent: v ← Π(v + s · max_norm · g/‖g‖), with Π the projection on the ball; a step that
lowers J is taken back and s halved, so J never falls. A J that is linear in v is solved by the first step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import All, LanguageModel, Selector, Site, require_selector, site_of
from steerlab.models.sites import SiteName
from steerlab.progress import counting
from steerlab.statistics import Estimate, bootstrap_mean, mean_and_extremes
from steerlab.steering._trained import (
    TOKEN_BUDGET,
    Answer,
    Batch,
    Example,
    batches_of,
    examples_of,
    frozen,
    held_out_members,
    hidden_states,
    log_probabilities,
    unembedded,
)

Metric: TypeAlias = Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]
"""From logits behind each prompt to what is to grow, differentiable."""
#: The first step, as a share of the norm bound, and the one at which the search ends.
_FIRST, _LAST = 1.0, 1e-4
_RANDOMS = 5
_CONTROL = "mean and extremes of {n} random vectors of equal norm"


# Long: most of it documents its options.
def optimise_direction(
    model: LanguageModel,
    site: SiteName,
    prompts: Sequence[Any],
    towards: Answer | Sequence[Answer] | Metric,
    away: Answer | Sequence[Answer] | None = None,
    *,
    max_norm: float,
    steps: int = 50,
    positions: Selector = All(),  # noqa: B008  # frozen
    held_out: float = 0.25,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Direction:
    """The vector within a norm bound that makes some continuations as likely as it can, added at one site.

    The model stays as it is: no gradient goes into it, and what its parameters ask for, its mode and its gradients are
    as before, on exceptions as well. The search is in float32, whatever the model's dtype.

    Args:
        model: loaded here, uncompiled.
        site: where the vector is added ("resid_post.5").
        prompts: texts, `Prompt`s or conversations; `model.instruction_prompt` renders an instruction.
        towards: what is to become likely behind each prompt: a text (" yes"), one a prompt, or token ids; or a function
            of the logits behind the prompts [row, vocab], one number a row, differentiable.
        away: what is to become unlikely, likewise; with single tokens J is their difference of logits.
        max_norm: of the vector, in the units of the states: `direction.stream_norm` or a class gap is a measure.
        steps: at most so many passes with a gradient over all prompts.
        positions: the tokens it is added at.
        held_out: share of the prompts (of their groups) that the search never sees; 0 for none.
        groups: what is held out and resampled together, one name a prompt.
        seed: of the share held out, the random vectors and the intervals.

    Returns:
        A `Direction` at the site, which `Add` adds as it is (unit "raw"). Its `parameters` hold "in_sample" and
        "held_out", the effects J(v) − J(0) in nats, and "random", that of random vectors of equal norm on the held-out
        prompts.

    Raises:
        SteeringError: a norm bound or number of steps that is none, a remote or compiled model, no gradient at the
            site, or a metric that gives something else than a finite number a row.
        PromptError: an answer that is empty.

    Example:
        >>> v = sl.optimise_direction(model, "resid_post.8", prompts, " yes", " no", max_norm=4.0)  # doctest: +SKIP
        >>> v.parameters["held_out"]  # doctest: +SKIP
    """
    place = site_of(site)
    model.require(place)
    require_selector(positions)
    if not (isinstance(max_norm, int | float) and 0 < max_norm < float("inf")):
        raise SteeringError(f"The norm bound is a number above 0, not {max_norm!r}.")
    if not isinstance(steps, int) or steps < 1:
        raise SteeringError(f"At least one step is needed, not steps={steps!r}.")
    objective = _Objective.of(model, place, prompts, towards, away, positions)
    train, apart = held_out_members(groups, objective.n, held_out, seed)
    with frozen(model):
        found = _ascend(objective, train, float(max_norm), steps)
        rest = apart or train
        with torch.no_grad():
            plain, steered = (
                objective.values(None, range(objective.n)),
                objective.values(found, range(objective.n)),
            )
            drawn = [objective.values(vector, rest) - plain[rest] for vector in _random(found, seed)]
    clusters = _codes(groups, objective.n)
    gains = steered - plain

    def effect(members: Sequence[int]) -> dict[str, Any] | None:
        if not members:
            return None
        estimate: Estimate = bootstrap_mean(gains[members], clusters[members], seed=seed)
        return estimate.model_dump(mode="json")

    return Direction(
        vectors={place: found},
        model_name=model.name,
        fingerprint=model.fingerprint,
        estimator="optimise_direction",
        parameters={
            "max_norm": float(max_norm),
            "steps": steps,
            "seed": seed,
            "held_out_share": held_out,
            "objective": objective.name,
            "in_sample": effect(train),
            "held_out": effect(apart),
            "random": mean_and_extremes([float(row.mean()) for row in drawn], _CONTROL).model_dump(
                mode="json"
            ),
        },
        dataset_hash=objective.hash,
        position=repr(positions),
        best=place,
    )


# -- private, in the order they are called --


@dataclass(frozen=True, eq=False)
class _Objective:
    """What is maximised: by example what counts for it and what counts against."""

    model: LanguageModel
    site: Site
    sides: tuple[tuple[float, list[Example]], ...]
    metric: Metric | None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        site: Site,
        prompts: Sequence[Any],
        towards: Any,
        away: Any,
        positions: Selector,
    ) -> _Objective:
        given = model.as_prompts(prompts)
        if callable(towards):
            if away is not None:
                raise SteeringError("A metric says by itself what is to grow; leave away out.")
            # The token behind a prompt is not read; any will do.
            return cls(
                model, site, ((1.0, examples_of(model, given, [[0]] * len(given), positions)),), towards
            )
        sides = [(1.0, towards)] + ([] if away is None else [(-1.0, away)])
        made = [
            (sign, examples_of(model, given, _each(answers, len(given)), positions))
            for sign, answers in sides
        ]
        return cls(model, site, tuple(made), None)

    @property
    def n(self) -> int:
        return len(self.sides[0][1])

    @property
    def name(self) -> str:
        if self.metric is not None:
            return str(getattr(self.metric, "__name__", type(self.metric).__name__))
        return "log P(towards)" + (" - log P(away)" if len(self.sides) > 1 else "")

    @property
    def hash(self) -> str:
        written = repr([(sign, [example.ids for example in examples]) for sign, examples in self.sides])
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def gradient(self, vector: Tensor, members: Sequence[int]) -> tuple[float, Tensor]:
        """J of the members and its gradient, batch after batch."""
        total, slope = 0.0, torch.zeros_like(vector)
        for sign, examples in self.sides:
            for batch in batches_of(examples, members, TOKEN_BUDGET):
                value = sign * self._of(vector, batch).sum() / len(members)
                if value.requires_grad:
                    slope += torch.autograd.grad(value, vector)[0]
                total += float(value.detach())
        return total, slope

    def values(self, vector: Tensor | None, members: Sequence[int]) -> Float[np.ndarray, " member"]:
        """What each member contributes."""
        found = np.zeros(self.n)
        for sign, examples in self.sides:
            for batch in batches_of(examples, list(members), TOKEN_BUDGET):
                found[list(batch.members)] += sign * self._of(vector, batch).double().cpu().numpy()
        values: Float[np.ndarray, " member"] = found[list(members)]
        return values

    def _of(self, vector: Tensor | None, batch: Batch) -> Float[Tensor, " row"]:
        """By example of a batch ln P of its answer, or the metric of the logits behind its prompt."""

        def change(state: Tensor, acts: Tensor) -> Tensor:
            assert vector is not None
            return state + acts * vector.to(state)

        changed = None if vector is None else change
        if self.metric is None:
            each = log_probabilities(self.model, self.site, changed, batch)
            return each.new_zeros(len(batch.members)).index_add(0, batch.row.to(each.device), each)
        values = self.metric(unembedded(self.model, hidden_states(self.model, self.site, changed, batch)))
        if not isinstance(values, Tensor) or values.shape != (len(batch.members),):
            raise SteeringError("The metric has to give one number a row of the logits; check the function.")
        return values


def _ascend(
    objective: _Objective, members: Sequence[int], bound: float, steps: int
) -> Float[Tensor, " width"]:
    """The best vector of the ball that projected gradient ascent reaches from nothing."""
    device = objective.model.device
    best = torch.zeros(objective.model.width(objective.site), device=device)
    value, slope = objective.gradient(best.clone().requires_grad_(), members)
    if not torch.isfinite(slope).all() or not float(slope.norm()) > 0:
        raise SteeringError(
            f"What is maximised has no gradient at {objective.site}; check the metric, or take a site and positions "
            "that come before the answers."
        )
    share = _FIRST
    with counting("Optimising a direction", steps) as done:
        for _ in range(steps):
            tried = _within(best + share * bound * slope / slope.norm(), bound)
            new, its_slope = objective.gradient(tried.clone().requires_grad_(), members)
            if new > value:
                best, value, slope = tried, new, its_slope
            else:
                share /= 2
            done(1)
            if share < _LAST or not float(slope.norm()) > 0:
                break
    if not float(best.norm()) > 0:
        raise SteeringError(
            f"No step raises what is maximised at {objective.site}; take a smaller max_norm than {bound:g}."
        )
    return best.cpu()


def _within(vector: Tensor, bound: float) -> Tensor:
    """The nearest vector of the ball; rounding leaves none outside."""
    norm = float(vector.double().norm())
    return vector if norm <= bound else (vector.double() * (bound / norm * (1 - 1e-7))).float()


def _random(vector: Tensor, seed: int) -> list[Tensor]:
    """Random vectors of the same norm."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(_RANDOMS, len(vector), generator=generator)
    return [row * (vector.norm() / row.norm()) for row in rows]


def _each(answers: Any, n: int) -> list[Any]:
    """One answer a prompt: a text, or one list of token ids, stands for all."""
    is_one = isinstance(answers, str) or all(isinstance(part, int) for part in answers)
    return [answers] * n if is_one else list(answers)


def _codes(groups: Sequence[Hashable] | None, n: int) -> np.ndarray:
    names = list(range(n)) if groups is None else list(groups)
    number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names])
