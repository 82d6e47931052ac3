"""Backends by the names that `load` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from steerlab.errors import ModelError
from steerlab.registry import Registry

if TYPE_CHECKING:
    from steerlab.models.backends.native import Transformers

Backend = TypeVar("Backend", bound="type[Transformers]")

#: Classes of backends, each registered where it is defined; others come through `steerlab.backends`.
BACKENDS: Registry[type[Transformers]] = Registry(
    "backend", package="steerlab.models.backends", group="steerlab.backends", error=ModelError
)


def register_backend(backend: Backend) -> Backend:
    """Class decorator: make a backend known by its `name`. Raises ValueError where the name is taken."""
    BACKENDS.add(backend.name, backend)
    return backend
