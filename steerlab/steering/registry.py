"""Interventions by the kind they are written down with, and exports by the form they write; `export` picks one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from steerlab.errors import SteeringError
from steerlab.registry import Registry

if TYPE_CHECKING:
    from steerlab.activations import Activations
    from steerlab.directions import Direction
    from steerlab.models import LanguageModel
    from steerlab.models.edits import SteeringGiven
    from steerlab.steering._intervention import Intervention
    from steerlab.steering.per_row import PerRow

Kind = TypeVar("Kind", bound="type[Intervention] | type[PerRow]")
#: (model, interventions, path) to the path written. One that takes `in_place` may change the model where it is True.
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


def export(
    model: LanguageModel,
    edits: SteeringGiven,
    out: str | Path,
    format: str = "transformers",
    *,
    in_place: bool = False,
    dtype: str = "auto",
) -> Path:
    """Write a steered model, or its steering, in the form another engine reads.

    Args:
        model: the model the edits belong to.
        edits: one intervention or several, in the order in which they act.
        out: the folder (transformers, easysteer) or file to write.
        format: a name of `EXPORTS`: "transformers" is the whole model with the edits in its weights, "gguf",
            "vllm-lens" and "easysteer" are vectors for these engines.
        in_place: a format that bakes may change `model` itself rather than a copy (half the memory).
        dtype: of a format that bakes: "auto" is the checkpoint's own, another name the model's, as it was loaded.

    Returns:
        What was written.

    Raises:
        SteeringError: for an unknown format, or as the format's own function.

    Example:
        >>> sl.export(model, sl.Ablate(refusal), "llama-without-refusal")  # doctest: +SKIP
    """
    from steerlab.models.edits import edits_of

    write = EXPORTS[format]
    is_empty = isinstance(edits, list | tuple) and not edits  # which every format refuses in its own words
    every = [] if is_empty else edits_of([edits])
    taken = signature(write).parameters
    options = {name: value for name, value in (("in_place", in_place), ("dtype", dtype)) if name in taken}
    return write(model, every, out, **options)


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
