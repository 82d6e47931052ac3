"""Interventions at a dose: so many times as strong as they were given, and the same with random directions."""

from __future__ import annotations

from collections.abc import Sequence

from steerlab.errors import SteeringError, kind_of
from steerlab.models import LanguageModel
from steerlab.steering import Intervention

DOSES = (0.25, 0.5, 1.0, 2.0, 4.0)


def checked(model: LanguageModel, interventions: object) -> list[Intervention]:
    """The interventions of a card, which fit the model and have directions that random ones can stand in for.

    Raises:
        SteeringError: none, something that is no intervention, or one without a direction.
        DirectionError: a direction of another model.
    """
    given = [interventions] if isinstance(interventions, Intervention) else interventions
    if not isinstance(given, Sequence) or not given:
        raise SteeringError(
            f"A card is of one or more interventions, not of {kind_of(given)}; give sl.Add(...)."
        )
    for one in given:
        if not isinstance(one, Intervention):
            raise SteeringError(
                f"A card is of interventions, and this is {kind_of(one)}; give sl.Add(direction)."
            )
        one.check(model)
        one.random_like(0)
    return list(given)


def doses_of(interventions: Sequence[Intervention], wanted: Sequence[float] | None) -> tuple[float, ...]:
    """The doses from weak to strong, 1 among them; by default those of a quarter to four that all can take.

    Raises:
        SteeringError: a dose that is not positive, or that one of the interventions cannot take.
    """
    if wanted is None:
        return tuple(dose for dose in DOSES if _takes(interventions, dose))
    try:
        given = list(wanted)
        doses = sorted({1.0, *map(float, given)})
    except (TypeError, ValueError) as error:
        raise SteeringError(
            f"The doses cannot be {wanted!r:.80}; give factors above 0, such as (0.5, 1, 2)."
        ) from error
    if not all(0 < dose < float("inf") for dose in doses):
        raise SteeringError(f"The doses are {given}; give factors above 0, such as (0.5, 1, 2).")
    for dose in doses:
        at_dose(interventions, dose)
    return tuple(doses)


def at_dose(interventions: Sequence[Intervention], dose: float) -> list[Intervention]:
    """Every intervention so many times as strong as it was given."""
    return [one.times(dose) for one in interventions]


def random_ones(interventions: Sequence[Intervention], draws: int, seed: int) -> list[list[Intervention]]:
    """The interventions with random directions of equal norm, so many times; each of several has its own."""
    first = 1000 * seed
    return [
        [one.random_like(first + draw + 100_000 * at) for at, one in enumerate(interventions)]
        for draw in range(draws)
    ]


# -- private --


def _takes(interventions: Sequence[Intervention], dose: float) -> bool:
    try:
        at_dose(interventions, dose)
    except SteeringError:
        return False
    return True
