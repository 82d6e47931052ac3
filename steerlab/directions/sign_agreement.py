"""Do the differences a direction was made of point its way? A mean hides that a third of the pairs point against it.

    of pairs:  share of pairs with (x⁺ − x⁻)·v > 0        without:  chance that x⁺·v > x⁻·v for one row of each class

Ties count one half. 1 says that every difference points with the direction, 0.5 that half of them point against it. Two
classes that do not differ give 0.5 on states that the direction was not fitted on, and more on those that it was.
The share of pairs has its Wilson interval over groups, which keeps its width where all of them agree; the chance is the
area under the ROC curve with its bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerlab.activations import Activations, Label
from steerlab.directions._pairs import paired_rows
from steerlab.directions.direction import Direction
from steerlab.directions.fitting import by_row, classes_of, pair_numbers
from steerlab.directions.held_out import numbered
from steerlab.errors import DirectionError, kind_of
from steerlab.models import Site
from steerlab.statistics import Estimate, auroc, proportion


def agreement(
    states: Activations,
    direction: Direction,
    labels: Sequence[Label] | NDArray[Any],
    *,
    pairs: Sequence[Hashable] | NDArray[Any] | None = None,
    positive: Label | None = None,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    seed: int = 0,
) -> dict[Site, Estimate]:
    """By site the share of differences between the classes that point with a direction, with its interval.

    Args:
        states: the states it was fitted on, or better others; of the sites, those the direction knows are read.
        direction: of one vector a site; of several take one, ``direction.component(0)``.
        labels: one label a prompt, as for `fit_direction`.
        pairs: one pair name a prompt. Without them every row of one class is held against every row of the other.
        positive: the class the direction points to, when labels are not 0/1.
        groups: what is drawn together for the interval, one name a prompt; by default pairs, else each prompt.
        seed: of the bootstrap.

    Raises:
        DirectionError: no site in common, several vectors, states of another model, or what `fit_direction` refuses.

    Example:
        >>> agreement(states, refusal, labels, pairs=pairs)  # doctest: +SKIP
        {Site("resid_post", 3): 0.71 [0.63, 0.78]}
    """
    if not isinstance(states, Activations) or not isinstance(direction, Direction):
        raise DirectionError(
            "Agreement is of states of sl.capture(...) with a sl.Direction, not of "
            f"{kind_of(states)} with {kind_of(direction)}."
        )
    if states.fingerprint not in (None, "", direction.fingerprint):
        raise DirectionError(
            f"The states were read from {states.model_name}, and the direction lives in {direction.model_name}; "
            "capture them there, or move the direction with moved_to(...)."
        )
    shared = [site for site in direction.sites if site in states.states]
    if not shared:
        raise DirectionError("The states were read at no site of the direction; capture them at its sites.")
    given = by_row(states, labels, "labels")
    _, high = classes_of(given, positive)
    is_positive = np.array([label == high for label in given])
    drawn = groups if groups is not None else pairs if pairs is not None else range(states.n_prompts)
    together = numbered(by_row(states, drawn, "groups"), len(given))
    numbers = None if pairs is None else pair_numbers(states, pairs)
    return {
        site: _share(
            states[site].double().numpy() @ direction[site].double().numpy(),
            is_positive,
            numbers,
            together,
            seed,
        )
        for site in shared
    }


def _share(
    projections: NDArray[np.float64],
    positive: NDArray[np.bool_],
    pairs: NDArray[Any] | None,
    groups: NDArray[Any],
    seed: int,
) -> Estimate:
    if pairs is None:
        return auroc(projections, positive, groups, seed=seed)
    high, low = paired_rows(pairs, positive, "Agreement")
    gaps = projections[high] - projections[low]
    pointing = np.concatenate([gaps >= 0, gaps > 0])  # a tie is right once of twice
    return proportion(pointing, clusters=np.concatenate([groups[high]] * 2))
