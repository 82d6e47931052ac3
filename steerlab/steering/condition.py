"""Conditions: steer only the rows of a batch, or the tokens, whose score on a probe passes a threshold.

The score of a state is its projection x·v̂ on a direction's unit vector; the condition holds above the threshold (or
below it). With `positions` the mean score of these tokens of the prompt decides once, while the prompt is read, for the
row and everything it generates (conditional activation steering: Lee et al. 2025); with `positions=None` every
token decides for itself. A condition gates edits at its own site and behind it; what the prompt decides also gates
edits of generated tokens anywhere.

`Condition.fit` learns the threshold on prompts where nothing should happen, by the rule that alarms share
(`statistics.conformal`): a new prompt of the same kind is above it with probability at most α, or, where every token
decides for itself, the expected share of its tokens is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.activations import capture
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import All, LanguageModel, Last, Prompt, Selector, Site
from steerlab.statistics import Estimate, conformal_threshold, proportion, units_needed
from steerlab.steering import _text
from steerlab.steering._unit_vector import UnitVector


@dataclass(frozen=True, eq=False)
class Condition:
    """A direction, a threshold, and which tokens decide.

    Args:
        direction: one vector at one site, where the states are read; pick it with ``direction.at(site)``.
        threshold: on x·v̂; None takes the direction's own, where its classes part.
        positions: tokens of the prompt whose mean score decides for the row; None: each token for itself.
        above: whether the condition holds above the threshold, or below it.
        latched: without positions, it holds from the first written token that passes on, and never in the prompt: what
            an alarm per answer gates (`sl.Alarm(...).condition(probe)`).

    Raises:
        DirectionError: the direction has several vectors.
        SteeringError: it has several sites, no threshold is known, or the positions lie outside the prompt.
    """

    direction: Direction
    threshold: float | None = None
    positions: Selector | None = field(default_factory=Last)
    above: bool = True
    latched: bool = False
    _unit: UnitVector = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.direction.sites) != 1:
            raise SteeringError(
                f"The condition's direction has {len(self.direction.sites)} sites; pick where it is read with "
                "direction.at(site)."
            )
        object.__setattr__(self, "_unit", UnitVector(self.direction, self.site))
        if self.threshold is None:
            known = self.direction.statistics[self.site].threshold
            if known is None:
                raise SteeringError(
                    f"The direction knows no threshold at {self.site}; give one, or learn it with Condition.fit."
                )
            object.__setattr__(self, "threshold", known[0])
        if not math.isfinite(self.limit):
            raise SteeringError(f"The threshold is {self.threshold}; give a finite number.")
        if self.latched and self.positions is not None:
            raise SteeringError("A latched condition reads every written token; give positions=None.")
        if self.positions is not None and not self.positions.in_prompt:
            raise SteeringError(
                f"{self.positions} picks no token of the prompt, so nothing could be decided; use positions=None for a "
                "decision at every token."
            )

    @property
    def site(self) -> Site:
        """Where the states are read."""
        return self.direction.sites[0]

    @property
    def limit(self) -> float:
        """The threshold, given or the direction's own."""
        assert self.threshold is not None
        return self.threshold

    def score(self, state: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position"]:
        """The projection of every token's state on the unit vector."""
        return state @ self._unit.like(state)

    def holds(self, score: Float[Tensor, ...]) -> Bool[Tensor, ...]:
        """Whether scores lie on the condition's side of the threshold."""
        return score > self.limit if self.above else score < self.limit

    def check(self, model: LanguageModel) -> None:
        """Raise `DirectionError` unless the direction belongs to this model and fits the site."""
        self.direction.check(model)

    def rate(self, model: LanguageModel, prompts: Sequence[str | Prompt]) -> Estimate:
        """The share of prompts (or of their tokens) for which it holds, with its interval."""
        self.check(model)
        scores, prompt = _scores(model, prompts, self.direction, self.positions)
        held = self.holds(scores).numpy()
        return proportion(held, clusters=None if self.positions is not None else prompt)

    @classmethod
    def fit(
        cls,
        direction: Direction,
        model: LanguageModel,
        quiet: Sequence[str | Prompt],
        *,
        false_positives: float = 0.05,
        positions: Selector | None = Last(),  # noqa: B008  # frozen
        above: bool = True,
    ) -> Condition:
        """The condition that holds for a new prompt like the ``quiet`` ones with at most this probability.

        Use prompts the direction was not fitted on. With ``positions=None`` the rate is the expected share of a
        prompt's tokens.

        Raises:
            SteeringError: too few quiet prompts for the rate.
        """
        if not 0 < false_positives < 1:
            raise SteeringError(f"A rate of false positives lies between 0 and 1, not at {false_positives}.")
        ungated = cls(direction, threshold=0.0, positions=positions, above=above)
        ungated.check(model)
        scores, prompt = _scores(model, quiet, direction, positions)
        count = len(np.unique(prompt))
        if count < units_needed(false_positives):
            raise SteeringError(
                f"{count} prompts say nothing about a rate of {false_positives:g}; give at least "
                f"{units_needed(false_positives)} quiet prompts, or allow more false positives."
            )
        sign = 1.0 if above else -1.0
        limit = sign * conformal_threshold(sign * scores.numpy(), false_positives, units=prompt)
        return cls(direction, threshold=limit, positions=positions, above=above)

    def to_dict(self) -> dict[str, Any]:
        """The condition as JSON data; the direction is named by its hash."""
        return {
            "direction": self.direction.hash,
            "threshold": self.limit,
            "positions": None if self.positions is None else _text.positions_to_text(self.positions),
            "above": self.above,
            **({"latched": True} if self.latched else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], directions: Iterable[Direction]) -> Condition:
        """The condition that :meth:`to_dict` wrote, its direction found among ``directions``."""
        positions = data["positions"]
        return cls(
            _text.find_direction(data["direction"], directions),
            threshold=data["threshold"],
            positions=None if positions is None else _text.positions_from_text(positions),
            above=data["above"],
            latched=data.get("latched", False),
        )


def _scores(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    direction: Direction,
    positions: Selector | None,
) -> tuple[Float[Tensor, " score"], np.ndarray]:
    """A score a prompt (or a token, without positions), and the prompt of each."""
    (site,) = direction.sites
    states = capture(model, prompts, site, positions=All() if positions is None else positions)
    scores = states[site] @ UnitVector(direction, site).like(states[site])
    if positions is None:
        return scores, states.example.numpy()
    sums = torch.zeros(len(prompts)).index_add_(0, states.example, scores)
    counts = torch.bincount(states.example, minlength=len(prompts))
    read = counts > 0
    return sums[read] / counts[read], np.arange(len(prompts))[read.numpy()]
