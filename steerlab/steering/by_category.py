"""What each of several directions does to each category of prompts: one may carry what another does not.

    effect(direction, category) = mean over its prompts of E(with the direction) − E(without)

"With" is the direction ablated from the whole residual stream, or added. The control takes random directions as long as
what is added, or random directions ablated; the mean and the extremes of their means over the same prompts are given.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Prompt
from steerlab.models.edits import Edit
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, but_for_rounding, mean_and_extremes
from steerlab.steering._named import Directions, beyond, each_prompt, named_directions, random_like
from steerlab.steering.ablate import Ablate
from steerlab.steering.add import Add
from steerlab.steering.calibrate_strength import Effect

How = Literal["ablate", "add"]
_CONTROL = "mean and extremes of {n} random directions"


class CategoryEffect(Record):
    """One direction on the prompts of one category, beside random directions on the same prompts."""

    direction: str
    category: str
    prompts: int
    effect: Estimate
    control: Estimate

    @property
    def identified(self) -> bool:
        """Whether the effect is beyond that of every random direction."""
        return beyond(self.effect, self.control)


class CategoryEffects(Record):
    """A table of effects: one row for each direction and category."""

    how: How
    rows: tuple[CategoryEffect, ...]

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON data."""
        return self.model_dump(mode="json")

    def __str__(self) -> str:
        head = f"| direction | category | prompts | effect ({self.how}) | random directions |"
        lines = [head, "|---|---|---|---|---|"]
        lines += [
            f"| {row.direction} | {row.category} | {row.prompts} | "
            f"{row.effect if row.identified else f'{row.effect}, not identified'} | {row.control} |"
            for row in self.rows
        ]
        return "\n".join(lines)

    def plot(self) -> Any:
        """Effects as a heat map, directions by category."""
        names = list(dict.fromkeys(row.direction for row in self.rows))
        kinds = list(dict.fromkeys(row.category for row in self.rows))
        of = {(row.direction, row.category): row.effect for row in self.rows}
        cells, low, high = (
            [[getattr(of[name, kind], part) for kind in kinds] for name in names]
            for part in ("value", "low", "high")
        )
        return plots.heatmap(
            cells,
            kinds,
            names,
            title=f"Effect of directions by category ({self.how})",
            low=low,
            high=high,
            x_title="category",
            y_title="direction",
            colour_title="effect",
            diverging=True,
        )


def effects_by_category(
    model: LanguageModel,
    directions: Directions,
    prompts: Sequence[str | Prompt],
    categories: Sequence[Hashable],
    effect: Effect,
    *,
    how: How = "ablate",
    strength: float = 1.0,
    randoms: int = 19,
    seed: int = 0,
) -> CategoryEffects:
    """The effect of each direction on each category of prompts; `print` shows it as a table.

    Args:
        directions: by name or in a list, or one direction of k vectors (of `ClusterDirections`).
        prompts: held-out prompts.
        categories: one name a prompt ("weapons", "fraud").
        effect: called as ``effect(model, prompts)``, one number a prompt.
        how: "ablate" removes a direction everywhere, "add" adds `strength` of its units.
        randoms: random directions in the control; one more of their kind exceeds all of 19 in one of 20 cases.
        seed: of the random directions and the bootstrap.

    Raises:
        SteeringError: not one category a prompt, an unknown way, or an effect that is none.
    """
    named = named_directions(model, directions)
    if isinstance(categories, str) or len(categories) != len(prompts):
        raise SteeringError(
            f"{len(prompts)} prompts came with {len(categories)} categories; give one a prompt."
        )
    if how not in ("ablate", "add"):
        raise SteeringError(f"Directions are compared by 'ablate' or 'add', not by {how!r}.")
    listed = list(prompts)
    before = each_prompt(effect, model, listed)
    members = {
        str(name): np.array([given == name for given in categories]) for name in dict.fromkeys(categories)
    }

    def changes(edit: Edit) -> Float[np.ndarray, " prompt"]:
        with model.steering(edit):
            moved: Float[np.ndarray, " prompt"]
            moved = but_for_rounding(each_prompt(effect, model, listed), before) - before
        return moved

    rows: list[CategoryEffect] = []
    for name, direction in named.items():
        own, *others = (changes(edit) for edit in _edits(direction, how, strength, randoms, seed))
        for category, inside in members.items():
            rows.append(
                CategoryEffect(
                    direction=name,
                    category=category,
                    prompts=int(inside.sum()),
                    effect=bootstrap_mean(own[inside], seed=seed),
                    control=mean_and_extremes([float(other[inside].mean()) for other in others], _CONTROL),
                )
            )
    return CategoryEffects(how=how, rows=tuple(rows))


def _edits(direction: Direction, how: How, strength: float, randoms: int, seed: int) -> list[Edit]:
    """The direction's edit, and those of random directions of equal size."""
    if how == "ablate":
        return [Ablate(one) for one in (direction, *random_like(direction, randoms, seed))]
    own = Add(direction, strength)
    (site,) = direction.sites
    operator = own.operator(site)
    assert operator is not None
    assert operator.shift is not None
    ratio = float(operator.shift.norm() / direction[site].double().norm())
    return [own, *(Add(one, ratio, unit="raw") for one in random_like(direction, randoms, seed))]
