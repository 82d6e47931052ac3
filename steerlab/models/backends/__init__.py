"""Engines a language model can run on: a plain transformers model, a TransformerLens bridge, an nnsight model.

Each wraps one transformers model and calls its modules, so the same hooks read and edit on each. A backend knows where
that model is in its live object, how to build such an object, and what would make its states differ.
"""

from __future__ import annotations

from typing import Any

from steerlab.errors import ModelError
from steerlab.models.backends.native import Transformers
from steerlab.models.backends.nnsight import NNsight
from steerlab.models.backends.transformer_lens import TransformerLens

BACKENDS: dict[str, type[Transformers]] = {
    kind.name: kind for kind in (TransformerLens, NNsight, Transformers)
}


def backend(name: str) -> type[Transformers]:
    """The backend called `name`.

    Raises:
        ModelError: there is none.
    """
    if name not in BACKENDS:
        known = ", ".join(map(repr, sorted(BACKENDS)))
        raise ModelError(f"There is no backend called {name!r}; choose from {known}.")
    return BACKENDS[name]


def backend_of(source: Any) -> type[Transformers]:
    """The backend a live object belongs to; a plain module is transformers'."""
    return next(kind for kind in BACKENDS.values() if kind.wraps(source))


__all__ = ["BACKENDS", "NNsight", "TransformerLens", "Transformers", "backend", "backend_of"]
