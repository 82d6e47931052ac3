"""Interventions: what is done to a model's states while it runs, inside ``with model.steering(...)``.

`Add` moves states along a direction, `Ablate` removes a direction from them. Both are frozen data with sites and
positions, satisfy the `Edit` protocol of the models room, and can be written down and read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.steering.ablate import Ablate, stream_writes
from steerlab.steering.add import Add
from steerlab.steering.bake import bake
from steerlab.steering.engines import export_easysteer, export_gguf, export_vllm_lens
from steerlab.steering.export import export_transformers

_EDITS: dict[str, type[Add] | type[Ablate]] = {"add": Add, "ablate": Ablate}


def edit_from_dict(data: Mapping[str, Any], directions: Iterable[Direction]) -> Add | Ablate:
    """The edit that its ``to_dict()`` wrote; its direction is found by hash among ``directions``.

    Raises:
        SteeringError: for an unknown kind of edit or a direction that is not among those given.
    """
    kind = data.get("edit")
    if kind not in _EDITS:
        raise SteeringError(f"There is no edit {kind!r}; choose from {', '.join(_EDITS)}.")
    return _EDITS[kind].from_dict(data, directions)


__all__ = [
    "Ablate",
    "Add",
    "bake",
    "edit_from_dict",
    "export_easysteer",
    "export_gguf",
    "export_transformers",
    "export_vllm_lens",
    "stream_writes",
]
