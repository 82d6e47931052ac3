"""Representational independence: does ablating direction i leave direction j what it was?

    cosine_ij(l)     = mean over prompts of cos(x̃_l, v_j) − cos(x_l, v_j)         x̃: the states while i is ablated
    projection_ij(l) = the same of x·v̂_j
    effect_ij        = mean of [E(ablate i, add j) − E(ablate i)] − [E(add j) − E()]      E: the caller's effect

Two directions at a right angle may still lean on each other, because what i writes is read by later layers that write
along j (Wollschläger et al. 2025, "The Geometry of Refusal in Large Language Models", who call directions independent
where the cosines of the first line stay as they were, at every layer, both ways). The second asks for consequences. The
control is the same with random directions as long as i in the place of i, of which the mean and the extremes are given.
Ablation is of the whole residual stream; states are those behind every block.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from steerlab import plots
from steerlab.activations import capture
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Edit, LanguageModel, Last, Prompt, Selector
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_curve, bootstrap_mean, but_for_rounding, mean_and_extremes
from steerlab.steering._named import Directions, beyond, each_prompt, named_directions, random_like
from steerlab.steering.ablate import Ablate
from steerlab.steering.add import Add
from steerlab.steering.calibrate_strength import Effect

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_CONTROL = "mean and extremes of {n} random directions"


class Leaning(Record):
    """What ablating one direction does to another.

    ablated, kept: their names. cosine, projection: by site the change of the kept direction's component. effect: the
    change of its steering effect; None where none was asked for. The controls: the same while random directions of
    equal length are ablated, mean and extremes.
    """

    ablated: str
    kept: str
    cosine: dict[str, Estimate]
    projection: dict[str, Estimate]
    effect: Estimate | None
    cosine_control: dict[str, Estimate]
    projection_control: dict[str, Estimate]
    effect_control: Estimate | None

    @property
    def moved(self) -> tuple[str, ...]:
        """The sites at which the cosine changes beyond every random direction's."""
        return tuple(
            site for site, change in self.cosine.items() if beyond(change, self.cosine_control[site])
        )

    @property
    def leans(self) -> bool | None:
        """Whether the kept direction's effect changes beyond every random direction's; None where not measured."""
        if self.effect is None or self.effect_control is None:
            return None
        return beyond(self.effect, self.effect_control)


class Independence(Record):
    """Every ordered pair of some directions.

    effects: by name each direction's own steering effect, nothing ablated. pairs: (ablated, kept) in the order of
    names. prompts: how many.
    """

    names: tuple[str, ...]
    effects: dict[str, Estimate]
    pairs: tuple[Leaning, ...]
    prompts: int

    def pair(self, ablated: str, kept: str) -> Leaning:
        """One ordered pair. Raises SteeringError where there is none."""
        for pair in self.pairs:
            if (pair.ablated, pair.kept) == (ablated, kept):
                return pair
        raise SteeringError(
            f"There is no pair of {ablated!r} and {kept!r}; the names are {', '.join(self.names)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON data."""
        return self.model_dump(mode="json")

    def plot(self) -> Figure:
        """The largest change of cosine over the layers, each pair a cell; ablated by row, kept by column."""
        cells = np.full((len(self.names), len(self.names)), np.nan)
        for pair in self.pairs:
            at = self.names.index(pair.ablated), self.names.index(pair.kept)
            cells[at] = max((change.value for change in pair.cosine.values()), key=abs)
        return plots.heatmap(
            cells,
            self.names,
            self.names,
            title="What ablating one direction does to another",
            x_title="kept",
            y_title="ablated",
            colour_title="change of cosine",
            diverging=True,
        )


def independence(
    model: LanguageModel,
    directions: Directions,
    prompts: Sequence[str | Prompt],
    effect: Effect | None = None,
    *,
    strength: float = 1.0,
    positions: Selector = Last(),  # noqa: B008  # frozen
    groups: Sequence[Hashable] | None = None,
    randoms: int = 19,
    seed: int = 0,
) -> Independence:
    """For each ordered pair of directions, what ablating the one changes of the other.

    Args:
        directions: two or more, by name or in a list, or one direction of k vectors (of `ConceptCone`). Each acts with
            the vector of its only site, or of the one where it works best.
        prompts: on which components and effects are read; others than those the directions were fitted on.
        effect: called as ``effect(model, prompts)``, one number a prompt: `token_log_odds`, say. None leaves the
            steering effects out.
        strength: of `Add`, in each direction's own unit.
        positions: the tokens whose states are read; several of a prompt count together.
        groups: what is drawn together in the intervals, one name a prompt; by default each prompt stands alone.
        randoms: random directions in the control; one more of their kind exceeds all of 19 in one of 20 cases.
        seed: of the random directions and the bootstrap.

    Raises:
        SteeringError: fewer than two directions, an effect that is none, or another number of groups than prompts.
        DirectionError: a direction of another model.

    Example:
        >>> independence(model, cone, prompts, token_log_odds([40]))  # doctest: +SKIP
    """
    named = named_directions(model, directions, least=2)
    if groups is not None and len(groups) != len(prompts):
        raise SteeringError(f"{len(prompts)} prompts came with {len(groups)} groups; give one a prompt.")
    if randoms < 1:
        raise SteeringError(f"The control needs a random direction at least, not randoms={randoms!r}.")
    measure = _Measure(model, named, list(prompts), effect, strength, positions)
    plain = measure.while_(())
    ablated = {name: measure.while_([Ablate(direction)]) for name, direction in named.items()}
    # Ablation does not depend on a vector's length, so one set of random directions is every direction's control.
    drawn = random_like(next(iter(named.values())), randoms, seed)
    chance = [measure.while_([Ablate(direction)]) for direction in drawn]
    summary = _Summary(plain, chance, [*named], measure.sites, groups, seed)
    return Independence(
        names=tuple(named),
        effects={name: summary.mean(plain.effects[at]) for at, name in enumerate(named)} if effect else {},
        pairs=tuple(summary.pair(i, j, ablated[i]) for i, j in permutations(named, 2)),
        prompts=len(prompts),
    )


# -- private, in the order they are called --


class _Read(NamedTuple):
    """What is read in one run: components by prompt, layer and direction, and effects by direction and prompt."""

    cosines: Float[np.ndarray, "prompt layer direction"]
    projections: Float[np.ndarray, "prompt layer direction"]
    effects: Float[np.ndarray, "direction prompt"]


class _Measure(NamedTuple):
    """Everything that is read under some edits."""

    model: LanguageModel
    named: dict[str, Direction]
    prompts: list[str | Prompt]
    effect: Effect | None
    strength: float
    positions: Selector

    @property
    def sites(self) -> list[str]:
        return [str(site) for site in self.model.sites("resid_post")]

    def while_(self, edits: Sequence[Edit]) -> _Read:
        with self.model.steering(*edits) if edits else nullcontext():
            states = capture(self.model, self.prompts, "resid_post", positions=self.positions)
        units = torch.stack([d[d.sites[0]].double() for d in self.named.values()])
        units = torch.nn.functional.normalize(units, dim=1)
        by_layer = []
        for site in states.sites:
            rows = states[site].double()
            along = rows @ units.T
            by_layer.append((along / rows.norm(dim=1, keepdim=True), along))
        counts = np.bincount(states.example.numpy(), minlength=len(self.prompts))
        cosines, projections = (
            np.stack(
                [_by_prompt(parts[at].numpy(), states.example.numpy(), counts) for parts in by_layer], axis=1
            )
            for at in (0, 1)
        )
        return _Read(cosines, projections, self._effects(edits))

    def _effects(self, edits: Sequence[Edit]) -> Float[np.ndarray, "direction prompt"]:
        if self.effect is None:
            return np.empty((0, len(self.prompts)))
        with self.model.steering(*edits) if edits else nullcontext():
            before = each_prompt(self.effect, self.model, self.prompts)
        gains = []
        for direction in self.named.values():
            with self.model.steering(*edits, Add(direction, self.strength)):
                gains.append(each_prompt(self.effect, self.model, self.prompts) - before)
        return np.stack(gains)


class _Layers:
    """Components of one direction [prompt, layer]: before, after, and with each random direction ablated."""

    def __init__(self, read: _Read, plain: _Read, chance: Sequence[_Read], name: str, at: int) -> None:
        self.before, self.after, *self.by_chance = (
            getattr(one, name)[:, :, at] for one in (plain, read, *chance)
        )


class _Summary(NamedTuple):
    """Changes as estimates."""

    plain: _Read
    chance: list[_Read]
    names: list[str]
    sites: list[str]
    groups: Sequence[Hashable] | None
    seed: int

    def pair(self, ablated: str, kept: str, read: _Read) -> Leaning:
        j = self.names.index(kept)
        has_effect = len(self.plain.effects) > 0
        cosines, projections = (
            _Layers(read, self.plain, self.chance, name, j) for name in ("cosines", "projections")
        )
        by_chance = [
            float((one.effects[j] - self.plain.effects[j]).mean()) for one in self.chance if has_effect
        ]
        return Leaning(
            ablated=ablated,
            kept=kept,
            cosine=self._by_site(cosines),
            projection=self._by_site(projections),
            effect=self.mean(but_for_rounding(read.effects[j], self.plain.effects[j]) - self.plain.effects[j])
            if has_effect
            else None,
            cosine_control=self._control(cosines),
            projection_control=self._control(projections),
            effect_control=mean_and_extremes(by_chance, _CONTROL) if has_effect else None,
        )

    def mean(self, values: Float[np.ndarray, " prompt"]) -> Estimate:
        return bootstrap_mean(values, self._clusters, seed=self.seed)

    @property
    def _clusters(self) -> list[int] | None:
        number = {name: at for at, name in enumerate(dict.fromkeys(self.groups or ()))}
        return None if self.groups is None else [number[name] for name in self.groups]

    def _by_site(self, layers: _Layers) -> dict[str, Estimate]:
        changes = but_for_rounding(layers.after, layers.before) - layers.before
        return dict(zip(self.sites, bootstrap_curve(changes, self._clusters, seed=self.seed), strict=True))

    def _control(self, layers: _Layers) -> dict[str, Estimate]:
        means = np.stack([(draw - layers.before).mean(axis=0) for draw in layers.by_chance])
        return {
            site: mean_and_extremes(means[:, at].tolist(), _CONTROL) for at, site in enumerate(self.sites)
        }


def _by_prompt(
    values: Float[np.ndarray, "row direction"], example: Any, counts: Any
) -> Float[np.ndarray, "prompt direction"]:
    """Means of the rows of each prompt."""
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, example, values)
    if not counts.all():
        raise SteeringError("A prompt has no token at the positions; choose positions that every prompt has.")
    means: Float[np.ndarray, "prompt direction"] = sums / counts[:, None]
    return means
