"""Patch: put given states in the place of those the model computes, x ← y.

    Patch(sites=...)                    y = 0
    Patch(mean_state(states), ...)      y = the mean of captured states at the site
    Patch(states, positions=...)        y = the state another run had at that prompt and token

With states of another run, the rows of prompt i are put at the tokens that ``positions`` picks in prompt i of the
call, first to first; one prompt's rows fit every prompt (activation patching: Vig et al. 2020, Meng et al. 2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.activations import Activations, Moments
from steerlab.directions import Direction
from steerlab.errors import DirectionError, SteeringError
from steerlab.models import LanguageModel, Site, Tokens
from steerlab.models.hooks import Frame
from steerlab.models.operators import Operator, precise, sent
from steerlab.showing import counted
from steerlab.steering._intervention import Intervention
from steerlab.steering.registry import register_intervention


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Patch(Intervention):
    """Put given states in the place of the model's own.

    Args:
        states: one vector a site (a `Direction`, as `mean_state` makes it), captured states of another run, or
            None for zeros, which needs ``sites``.

    Where (by default the states' own sites), on which tokens and when: see `Intervention`. States of another run
    need ``positions`` inside the prompt, the ones they were captured at as a rule.

    Raises:
        SteeringError: captured states with positions among generated tokens; while running, prompts or tokens
            that are not as many as the states.
        DirectionError: on entering a context, states of another model or width.
    """

    kind: ClassVar[str] = "patch"
    _directions: ClassVar[tuple[str, ...]] = ("states",)
    _needs_width: ClassVar[bool] = True

    states: Direction | Activations | None = None
    _aligned: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def _said(self) -> str:
        if isinstance(self.states, Activations):
            return f"puts the states of {counted(self.states.n_prompts, 'prompt')} in"
        return f"puts {'zeros' if self.states is None else self.states.estimator} in"

    def _validate(self) -> None:
        if isinstance(self.states, Activations) and self.positions.generated:
            raise SteeringError(
                f"States of another run belong to a prompt's tokens, but {self.positions} picks others too; "
                "give the positions they were captured at, for example Last() or WholePrompt()."
            )

    def check(self, model: LanguageModel) -> None:
        """Raise unless the states belong to this model and fit the sites."""
        super().check(model)
        states = self.states
        if not isinstance(states, Activations):
            return
        if states.fingerprint != model.fingerprint:
            raise DirectionError(
                f"The states were read from {states.model_name}, not from {model.name}; capture them again there."
            )
        for site in self.sites:
            if states[site].shape[1] != model.width(site):
                raise DirectionError(
                    f"The states have width {states[site].shape[1]} but {site} of {model.name} {model.width(site)}."
                )

    def _operator(self, site: Site) -> Operator | None:
        if isinstance(self.states, Activations):
            return None
        shift = None if self.states is None else self.states[self.states.source(site)].double()
        return Operator(keep=torch.zeros(self._width(site), dtype=torch.float64), shift=shift)

    def apply_in(self, state: Float[Tensor, "batch position width"], site: Site, frame: Frame) -> Tensor:
        """The state of a pass with the other run's rows at their places."""
        assert isinstance(self.states, Activations)
        rows, columns, source = self._places(frame.prompt, frame.repeats)
        inside = (columns >= frame.start) & (columns < frame.start + frame.length)
        new = precise(state).clone()
        values = sent(self.states[site][source[inside]], new.device, new.dtype)
        new[sent(rows[inside], new.device), sent(columns[inside] - frame.start, new.device)] = values
        return new

    def _places(self, tokens: Tokens, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column of every selected token, and the captured row that goes there."""
        if self._aligned.get("tokens") is not tokens:
            self._aligned.update(tokens=tokens, places=self._align(tokens, repeats))
        places: tuple[Tensor, Tensor, Tensor] = self._aligned["places"]
        return places

    def _align(self, tokens: Tokens, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(self.states, Activations)
        states, selection = self.states, tokens.select(self.positions)
        captured = torch.bincount(states.example, minlength=states.n_prompts)
        prompts = torch.tensor([0 if states.n_prompts == 1 else row for row in tokens.rows])
        if int(prompts.max()) >= states.n_prompts:
            raise SteeringError(
                f"The states are those of {states.n_prompts} prompts, but a prompt number {int(prompts.max())} runs "
                "(counted from 0); run the prompts they were captured for, or states of one prompt only."
            )
        counts = torch.bincount(selection.rows, minlength=len(tokens))
        for row in (counts != captured[prompts]).nonzero().flatten().tolist():
            raise SteeringError(
                f"{self.positions} picks {int(counts[row])} tokens of prompt {tokens.rows[row]}, but the states hold "
                f"{int(captured[prompts[row]])} of it; choose positions that fit what was captured."
            )
        first_here, first_there = counts.cumsum(0) - counts, captured.cumsum(0) - captured
        within = torch.arange(len(selection.rows)) - first_here[selection.rows]
        source = first_there[prompts[selection.rows]] + within
        again = torch.arange(repeats)
        rows = (selection.rows[:, None] * repeats + again).flatten()
        return rows, selection.columns.repeat_interleave(repeats), source.repeat_interleave(repeats)

    def _default_sites(self, layers: Sequence[int] | None) -> Sequence[Site]:
        if self.states is not None and layers is None:  # states are put where they are from
            return self.states.sites
        return super()._default_sites(layers)

    def _plain_value(self, name: str, value: Any) -> Any:
        return (
            {"activations": states_hash(value)}
            if isinstance(value, Activations)
            else super()._plain_value(name, value)
        )

    @classmethod
    def _read(
        cls, name: str, value: Any, directions: Sequence[Direction], states: Sequence[Activations]
    ) -> Any:
        if not isinstance(value, dict):
            return super()._read(name, value, directions, states)
        wanted = value.get("activations")
        for candidate in states:
            if states_hash(candidate) == wanted:
                return candidate
        raise SteeringError(f"The edit refers to states {wanted}, which are not among those given.")


def mean_state(states: Activations | Moments) -> Direction:
    """The mean of captured states at every site, as a point to patch in or to project about.

    It is a `Direction` (one vector a site, with the model's fingerprint), so it can be saved and loaded.
    """
    if isinstance(states, Moments):
        means = {site: states.mean(site) for site in states.sites}
    else:
        means = {site: states[site].double().mean(dim=0) for site in states.sites}
    return Direction(means, states.model_name or "", states.fingerprint or "", estimator="mean state")


def states_hash(states: Activations) -> str:
    """A short hash of sites, rows and what they belong to."""
    digest = hashlib.sha256()
    for site, rows in states.states.items():
        digest.update(f"{site} {tuple(rows.shape)} ".encode())
        digest.update(rows.contiguous().numpy().tobytes())
    for index in (states.example, states.position):
        digest.update(index.numpy().tobytes())
    return digest.hexdigest()[:16]
