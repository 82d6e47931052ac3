"""Interventions by the name they are written down with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from steerlab.activations import Activations
from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.steering._intervention import Intervention
from steerlab.steering.ablate import Ablate
from steerlab.steering.add import Add
from steerlab.steering.affine import Affine
from steerlab.steering.clamp import Clamp
from steerlab.steering.patch import Patch
from steerlab.steering.per_row import PerRow
from steerlab.steering.project import Project
from steerlab.steering.rotate import Rotate
from steerlab.steering.scale import Scale

_KINDS: dict[str, type[Intervention] | type[PerRow]] = {
    **{kind.kind: kind for kind in (Add, Ablate, Clamp, Project, Rotate, Affine, Patch, Scale)},
    "per_row": PerRow,
}


def edit_from_dict(
    data: Mapping[str, Any], directions: Iterable[Direction], states: Iterable[Activations] = ()
) -> Intervention | PerRow:
    """The intervention that its ``to_dict()`` wrote.

    Args:
        directions: those it refers to are found among these by their hashes.
        states: the same for captured states (`Patch`).

    Raises:
        SteeringError: for an unknown kind of edit, or something it refers to that is not among those given.
    """
    kind = data.get("edit")
    if kind not in _KINDS:
        raise SteeringError(f"There is no edit {kind!r}; choose from {', '.join(_KINDS)}.")
    return _KINDS[kind].from_dict(data, directions, states)
