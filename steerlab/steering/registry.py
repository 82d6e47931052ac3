"""Interventions by the kind they are written down with, and exports by the form they write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from steerlab.errors import SteeringError
from steerlab.registry import Registry

if TYPE_CHECKING:
    from steerlab.activations import Activations
    from steerlab.directions import Direction
    from steerlab.steering._intervention import Intervention
    from steerlab.steering.per_row import PerRow

Kind = TypeVar("Kind", bound="type[Intervention] | type[PerRow]")
#: (model, interventions, path) to the path written. It may change the model, which the command line needs no more.
Export: TypeAlias = Callable[..., Path]

#: Classes of interventions by their `kind`; others come through `steerlab.interventions`.
INTERVENTIONS: Registry[type[Intervention] | type[PerRow]] = Registry(
    "edit", package="steerlab.steering", group="steerlab.interventions", error=SteeringError
)
#: What `steerlab export` writes; others come through `steerlab.exports`.
EXPORTS: Registry[Export] = Registry(
    "export", package="steerlab.steering", group="steerlab.exports", error=SteeringError
)


def register_intervention(intervention: Kind) -> Kind:
    """Class decorator: make an intervention known by its `kind`. Raises ValueError where the kind is taken."""
    INTERVENTIONS.add(intervention.kind, intervention)
    return intervention


def edit_from_dict(
    data: Mapping[str, Any], directions: Iterable[Direction], states: Iterable[Activations] = ()
) -> Intervention | PerRow:
    """The intervention that its ``to_dict()`` wrote.

    Args:
        data: what ``to_dict()`` returned; ``data["edit"]`` is the kind.
        directions: those it refers to are found among these by their hashes.
        states: the same for captured states (`Patch`).

    Raises:
        SteeringError: for an unknown kind of edit, or something it refers to that is not among those given.
    """
    return INTERVENTIONS[data.get("edit", "")].from_dict(data, directions, states)
