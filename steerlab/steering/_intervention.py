"""What every intervention shares: sites, positions, schedule, condition, and conversion to data and back.

A subclass is a frozen dataclass that says what it does to a state: by its `_operator` in the normal form
x ← keep ⊙ x + (x A) C + c, or by `_changed` where it has none.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from html import escape
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.activations import Activations
from steerlab.directions import Direction
from steerlab.errors import PromptError, SteeringError
from steerlab.models import All, LanguageModel, Selector, Site, require_selector, sites_among, sites_of
from steerlab.models.gates import EditCondition, Schedule
from steerlab.models.operators import Operator, Share, precise
from steerlab.models.sites import LAYER_SITES
from steerlab.steering import _text
from steerlab.steering._amounts import LayersGiven, at_layers, layers_given, where_it_works
from steerlab.steering._random import random_direction
from steerlab.steering._sentence import sentence
from steerlab.steering.condition import Condition
from steerlab.steering.schedules import Constant, schedule_from_dict, schedule_to_dict

#: The estimator of a direction that is made of a tensor; it belongs to whatever model it is used in.
RAW = "a raw vector"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Intervention(ABC):
    """A change of the states at some sites and positions, at some steps, on some condition.

    Args:
        sites: where: a `Site`, "resid_post.5", "resid_post" (every layer of the direction, or of the model where the
            direction has one vector), or a list of these; by default the direction's only site, or its best one.
        layers: instead of sites, layers of the direction's kind of site, counted from 0: one number, a pair
            `(first, last)` with both in it, a list or range of them, or "all" for every site of the direction.
        positions: which tokens.
        schedule: a function of the step: generated token j gets s(j) times the intervention, the prompt s(0).
            A strength is multiplied by it, of other interventions it is the share of the change. None: always 1.
        condition: under which it acts. None: always.
    """

    kind: ClassVar[str]
    #: Fields that hold a `Direction`.
    _directions: ClassVar[tuple[str, ...]] = ("direction",)
    #: The field that may give every layer a number of its own, and then says the layers.
    _by_layer: ClassVar[str] = "strength"
    #: Whether the normal form depends on a site's width, which the model says.
    _needs_width: ClassVar[bool] = False

    #: Written as `SitesGiven`, read as a tuple of `Site`; a family's name stays a name until `check`.
    sites: Any = ()
    layers: InitVar[LayersGiven] = None
    positions: Selector = field(default_factory=All)
    schedule: Schedule | None = None
    condition: Condition | None = None
    _operators: dict[Site, Operator | None] = field(init=False, repr=False, default_factory=dict)
    _widths: dict[Site, int] = field(init=False, repr=False, default_factory=dict)
    _families: tuple[Site | str, ...] = field(init=False, repr=False, default=())

    def __post_init__(self, layers: LayersGiven) -> None:
        if layers is not None and self.sites:
            raise SteeringError("Give an intervention either sites or layers, not both.")
        self._take_tensors()
        self._require_parts()
        sites: Sequence[Site | str]
        sites = self._named_sites() if self.sites else self._layers_sites(layers)
        object.__setattr__(self, "sites", tuple(sites))
        if any(isinstance(site, str) for site in sites):
            object.__setattr__(self, "_families", tuple(sites))
        else:
            self._require_sound()

    def _require_sound(self) -> None:
        """Raise a sentence where the parts do not fit each other at the sites."""
        self._validate()
        if not self._needs_width:
            for site in self.sites:
                self.operator(
                    site
                )  # an operator that cannot be made is refused now and not in the middle of a forward pass

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {sentence(self, self._said())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>"

    # ------------------------------------------------------------------------------------------- what a kind defines

    def _said(self) -> str:
        """What it does, in words that go before the place."""
        return f"acts ({self.kind})"

    def _validate(self) -> None:  # noqa: B027  # not every kind has something to check
        """Raise a sentence when the fields do not fit together."""

    def _operator(self, site: Site) -> Operator | None:
        """The intervention at a site in normal form, float64 on the CPU; None when it has none."""
        return None

    def _like(self, site: Site) -> Site:
        """A site at which the normal form is the same."""
        return site

    def _changed(
        self, state: Float[Tensor, "batch position width"], site: Site, share: Share
    ) -> Float[Tensor, "batch position width"]:
        """The changed state of an intervention without a normal form."""
        raise SteeringError(
            f"A {type(self).__name__} has neither a normal form nor a change of its own; define one of them."
        )

    # ------------------------------------------------------------------------------------------ what the runtime asks

    def operator(self, site: Site) -> Operator | None:
        """The intervention in normal form, float64 on the CPU; None when it has none."""
        key = self._like(site)
        if key not in self._operators:
            self._operators[key] = self._operator(site)
        return self._operators[key]

    def apply(self, state: Float[Tensor, "... width"], site: Site, share: Share = 1.0) -> Tensor:
        """The state with ``share`` of the change, as a new tensor."""
        self._learn(site, state.shape[-1])
        operator = self.operator(site)
        if operator is None:
            return self._changed(precise(state), site, share)
        return operator.to(state.device, torch.promote_types(state.dtype, torch.float32))(state, share)

    def check(self, model: LanguageModel) -> None:
        """Raise unless every part belongs to this model and fits its sites.

        Raises:
            DirectionError: a direction of another model, width or layer.
            SiteError: a site the model has not.
        """
        self._settle(model)
        for direction in self._given_directions():
            if direction.estimator == RAW:  # raw numbers belong to the model they are used in
                direction = replace(direction, model_name=model.name, fingerprint=model.fingerprint)
            direction.check(model, sites=self.sites)
        for site in self.sites:
            model.require(site)
            self._learn(site, model.width(site))

    def times(self, factor: float) -> Self:
        """The same, so many times as strong; without a strength, that share of the change.

        Raises:
            SteeringError: a share outside 0 to 1, or of an intervention that has none.
        """
        if factor == 1:
            return self
        strength = getattr(self, "strength", None)
        if strength is not None:
            by_layer = isinstance(strength, Mapping)
            new = {at: factor * own for at, own in strength.items()} if by_layer else factor * strength
            changes: dict[str, Any] = {"strength": new}
            return replace(self, **changes)
        if not 0 <= factor <= 1:
            raise SteeringError(
                f"A {type(self).__name__} has no strength, so it acts in shares of 0 to 1 and not {factor:g} times."
            )
        own = self.schedule
        return replace(self, schedule=Constant(factor) if own is None else lambda step: factor * own(step))

    def random_like(self, seed: int = 0) -> Self:
        """The control: the same with random directions, each vector as long as the one whose place it takes.

        Raises:
            SteeringError: it has no direction.
        """
        drawn = {
            name: random_direction(direction, seed)
            for name in self._directions
            if isinstance(direction := getattr(self, name), Direction)
        }
        if not drawn:
            raise SteeringError(
                f"A {type(self).__name__} without a direction has no random one that could take its place."
            )
        changes: dict[str, Any] = drawn
        return replace(self, **changes)

    # ------------------------------------------------------------------------------------------------------------- data

    def to_dict(self) -> dict[str, Any]:
        """The intervention as JSON data; directions are named by their hashes.

        Raises:
            SteeringError: for a schedule that is a function of the caller's.
        """
        data: dict[str, Any] = {"edit": self.kind}
        for part in fields(self):
            if part.init and part.name not in _SHARED:
                data[part.name] = self._plain_value(part.name, getattr(self, part.name))
        data["sites"] = self._sites_as_data()
        data["positions"] = _text.positions_to_text(self.positions)
        if self.schedule is not None:
            data["schedule"] = schedule_to_dict(self.schedule)
        if self.condition is not None:
            data["condition"] = self.condition.to_dict()
        return data

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        directions: Iterable[Direction],
        states: Iterable[Activations] = (),
    ) -> Self:
        """The intervention that :meth:`to_dict` wrote, its directions (and states) found by hash among those given.

        Raises:
            SteeringError: data that means nothing, or something it refers to is not given.
        """
        directions, states = list(directions), list(states)
        names = {part.name for part in fields(cls) if part.init}
        unknown = data.keys() - names - {"edit"}
        if unknown:
            raise SteeringError(f"The edit {cls.kind!r} has no {', '.join(sorted(unknown))}; check the file.")
        given = {
            name: cls._read(name, value, directions, states)
            for name, value in data.items()
            if name not in _SHARED and name != "edit"
        }
        try:
            return cls(
                **given,
                sites=tuple(data["sites"] or ()),
                positions=_text.positions_from_text(data["positions"]),
                schedule=schedule_from_dict(data["schedule"]) if data.get("schedule") else None,
                condition=Condition.from_dict(data["condition"], directions)
                if data.get("condition")
                else None,
            )
        except (KeyError, TypeError) as error:
            raise SteeringError(f"The edit {cls.kind!r} lacks {error}; check the file.") from error

    def _plain_value(self, name: str, value: Any) -> Any:
        """A field's value as data."""
        if isinstance(value, Direction):
            return value.hash
        if isinstance(value, Mapping):
            return {str(key): number for key, number in value.items()}
        return list(value) if isinstance(value, tuple) else value

    @classmethod
    def _read(
        cls, name: str, value: Any, directions: Sequence[Direction], states: Sequence[Activations]
    ) -> Any:
        """A field's value from data."""
        if name in cls._directions:
            return None if value is None else _text.find_direction(value, directions)
        if isinstance(value, dict):
            return {int(layer): number for layer, number in value.items()}
        return tuple(value) if isinstance(value, list) else value

    def _sites_as_data(self) -> list[str] | None:
        return [str(site) for site in self._families or self.sites]

    # ----------------------------------------------------------------------------------------------------------- inside

    def _require_parts(self) -> None:
        given: tuple[tuple[str, Any, bool, str], ...] = (
            (
                "schedule",
                self.schedule,
                self.schedule is None or callable(self.schedule),
                "one like Decay(0.9)",
            ),
            (
                "condition",
                self.condition,
                self.condition is None or isinstance(self.condition, EditCondition),
                "a Condition",
            ),
        )
        try:
            require_selector(self.positions, "positions of an intervention")
        except PromptError as error:
            raise SteeringError(str(error)) from error
        for name, value, fits, wanted in given:
            if not fits:
                raise SteeringError(f"The {name} of an intervention cannot be {value!r}; give {wanted}.")

    def _width(self, site: Site) -> int:
        if site not in self._widths:
            raise SteeringError(
                f"How wide {site} is, the model says; enter model.steering(...) with this {type(self).__name__}."
            )
        return self._widths[site]

    def _learn(self, site: Site, width: int) -> None:
        if self._needs_width and self._widths.get(site) != width:
            self._widths[site] = width
            self._operators.pop(self._like(site), None)

    def _take_tensors(self) -> None:
        """Make a direction of raw numbers, which need a place; refuse what is neither."""
        for name in self._directions:
            value = getattr(self, name)
            if value is None or isinstance(value, Direction | Activations):
                continue
            if not isinstance(value, Tensor | np.ndarray | list | tuple) or not len(value):
                raise SteeringError(
                    f"{type(self).__name__} takes as its {name} a sl.Direction, or a tensor with "
                    f"sites='resid_post.5'; it cannot be {value!r:.80}."
                )
            if not self.sites:
                raise SteeringError(
                    f"A raw tensor says no place; write {type(self).__name__}(tensor, ..., sites='resid_post.5')."
                )
            place = self._named_sites()[0]
            site = Site(place, 0) if isinstance(place, str) else place
            vectors = {site: torch.as_tensor(value, dtype=torch.float32)}
            object.__setattr__(self, name, Direction(vectors, "", "", estimator=RAW))

    def _named_sites(self) -> list[Site | str]:
        """The sites as they were named; a family's name where only the model knows its layers."""
        direction = self._first_direction()
        known = direction.sites if direction is not None else ()
        given: Any = self.sites
        named: list[Site | str] = []
        for part in [given] if isinstance(given, Site | str) or not isinstance(given, Iterable) else given:
            later = part in LAYER_SITES and (len(known) == 1 or all(site.name != part for site in known))
            named += [part] if later else sites_among(known, part)
        return list(dict.fromkeys(named))

    def _settle(self, model: LanguageModel) -> None:
        """Put the model's sites in the place of the families that were named."""
        if self._families:
            object.__setattr__(self, "sites", tuple(sites_of(model, self._families)))
            self._require_sound()

    def _first_direction(self) -> Direction | None:
        return next(self._given_directions(), None)

    def _given_directions(self) -> Iterator[Direction]:
        given = (getattr(self, name) for name in self._directions)
        return (direction for direction in given if isinstance(direction, Direction))

    def _layers_sites(self, layers: LayersGiven) -> Sequence[Site]:
        direction = self._first_direction()
        if isinstance(layers, str) and layers == "all":
            return self._default_sites(None) if direction is None else direction.sites
        return self._default_sites(None if layers is None else layers_given(layers))

    def _default_sites(self, layers: Sequence[int] | None) -> Sequence[Site]:
        direction = self._first_direction()
        if direction is None:
            raise SteeringError(f"{type(self).__name__} needs sites, for example sites='resid_post.3'.")
        if layers is None:
            amounts = getattr(self, self._by_layer, None)
            layers = layers_given(list(amounts)) if isinstance(amounts, Mapping) else None
        return where_it_works(direction) if layers is None else at_layers(direction, layers)


_SHARED = {field_.name for field_ in fields(Intervention)} | {"layers"}
