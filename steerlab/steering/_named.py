"""Several directions by name, random ones of their length, and what an effect gives prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float

from steerlab.directions import Direction
from steerlab.errors import SteeringError, kind_of
from steerlab.models import LanguageModel, Prompt
from steerlab.statistics import Estimate
from steerlab.steering._amounts import where_it_works
from steerlab.steering._intervention import RAW

Directions: TypeAlias = "Direction | Sequence[Direction] | Mapping[str, Direction]"


def named_directions(model: LanguageModel, given: Any, least: int = 1) -> dict[str, Direction]:
    """By name directions of one vector at one site: their only site, or where they work best.

    A direction of k vectors stands for k directions, "0" to "k − 1"; so do those of a list.

    Raises:
        SteeringError: fewer than `least`, something else, or a direction that does not know where it works.
        DirectionError: a direction of another model.
    """
    if isinstance(given, Direction):
        given = given.at(*where_it_works(given))
        given = [given.component(number) for number in range(len(given.vectors[given.sites[0]]))]
    named = given if isinstance(given, Mapping) else {str(at): one for at, one in enumerate(given)}
    found: dict[str, Direction] = {}
    for name, direction in named.items():
        if not isinstance(direction, Direction):
            raise SteeringError(f"{name} is {kind_of(direction)}; give sl.Direction objects, by name.")
        direction.check(model)
        single = direction.at(*where_it_works(direction))
        if len(single.vectors[single.sites[0]]) != 1:
            raise SteeringError(f"{name} has several vectors; take one of them with direction.component(0).")
        if single.vectors[single.sites[0]].shape[1] != model.d_model:
            raise SteeringError(
                f"{name} lives at {single.sites[0]}, outside the residual stream; fit it there."
            )
        found[str(name)] = single
    if len(found) < least:
        raise SteeringError(f"At least {least} directions are needed, and {len(found)} came.")
    return found


def random_like(direction: Direction, draws: int, seed: int) -> list[Direction]:
    """Random directions at the site of a direction of one vector, as long as it is."""
    (site,) = direction.sites
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(draws, len(direction[site]), generator=generator, dtype=torch.float64)
    rows *= direction[site].double().norm() / rows.norm(dim=1, keepdim=True)
    return [
        Direction({site: row}, direction.model_name, direction.fingerprint, estimator=RAW) for row in rows
    ]


def each_prompt(
    effect: Any, model: LanguageModel, prompts: Sequence[str | Prompt]
) -> Float[np.ndarray, " prompt"]:
    """What an effect measures, one finite number a prompt."""
    if not callable(effect):
        raise SteeringError(
            f"The effect is a function of (model, prompts), for example token_log_odds(' yes', ' no'), not {effect!r}."
        )
    given = effect(model, prompts)
    values = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given, dtype=np.float64)
    if values.shape != (len(prompts),) or not np.isfinite(values).all():
        raise SteeringError(
            f"The effect gave numbers of shape {values.shape} for {len(prompts)} prompts; it has to give one finite "
            "number a prompt."
        )
    return values


def beyond(change: Estimate, control: Estimate) -> bool:
    """Whether a change is none of chance's and larger than every one of its control's."""
    largest = max(abs(control.low), abs(control.high))
    return change.excludes(0.0) and abs(change.value) > (0.0 if np.isnan(largest) else largest)
