"""Add a direction to the stream: x ← x + strength · u, with u the vector, its class gap or a share of the stream.

    unit "raw"        u = v                      as estimated: 1 moves by the vector itself
    unit "class_gap"  u = gap · v̂                1 moves one class mean onto the other (along v̂)
    unit "norm"       u = mean ‖x‖ · v̂           0.1 moves by a tenth of the stream's norm

Activation addition (Turner et al. 2023; Rimsky et al. 2024; Arditi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import All, LanguageModel, Selector, Site
from steerlab.steering import _direction_edit as shared

Unit = Literal["raw", "class_gap", "norm"]


@dataclass(frozen=True, eq=False)
class Add:
    """Add ``strength`` units of a direction at some sites and positions.

    Args:
        direction: one vector a site (k = 1).
        sites: where to add; None means the direction's own sites. A direction with a single site may be added
            anywhere of its width, one with several only where it has a vector.
        strength: how many units; zero leaves every state as it is.
        unit: what one unit is, see the module.
        positions: which tokens.

    Raises:
        DirectionError: when the direction has no vector for a site, or the unit's scale is not known.
        SteeringError: for an unknown unit.
    """

    direction: Direction
    sites: Sequence[Site] = ()
    strength: float = 1.0
    unit: Unit = "raw"
    positions: Selector = field(default_factory=All)
    _shifts: dict[Site, Tensor] = field(init=False, repr=False, default_factory=dict)
    _cache: shared.Cache = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise SteeringError(f"There is no unit {self.unit!r}; choose from {', '.join(get_args(Unit))}.")
        object.__setattr__(self, "sites", tuple(self.sites or self.direction.sites))
        self._shifts.update({site: self._shift(site) for site in self.sites})

    def apply(self, state: Float[Tensor, "... width"], site: Site) -> Tensor:
        """The state plus the site's shift, as a new tensor."""
        return state + shared.cached(self._cache, site, state, self._shifts[site])

    def check(self, model: LanguageModel) -> None:
        """Raise `DirectionError` unless the direction belongs to this model and fits the sites."""
        self.direction.check(model, sites=self.sites)

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON data; the direction is named by its hash."""
        return {
            "edit": "add",
            "direction": self.direction.hash,
            "sites": [str(site) for site in self.sites],
            "strength": self.strength,
            "unit": self.unit,
            "positions": shared.positions_to_text(self.positions),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], directions: Iterable[Direction]) -> Add:
        """The edit that :meth:`to_dict` wrote, with its direction found among ``directions``."""
        return cls(
            shared.find_direction(data, directions),
            sites=tuple(Site.parse(text) for text in data["sites"]),
            strength=data["strength"],
            unit=data["unit"],
            positions=shared.positions_from_text(data["positions"]),
        )

    def _shift(self, site: Site) -> Float[Tensor, " width"]:
        source = self.direction.source(site)
        vector = self.direction[source].double()
        if self.unit == "class_gap":
            vector = vector / vector.norm() * self.direction.at(source).class_gap[source]
        elif self.unit == "norm":
            vector = vector / vector.norm() * self.direction.at(source).stream_norm[source]
        return self.strength * vector
