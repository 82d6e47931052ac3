"""Engines a language model can run on: a plain transformers model, a TransformerLens bridge, an nnsight model.

Each wraps one transformers model and calls its modules, so the same hooks read and edit on each. A backend knows where
that model is in its live object, how to build such an object, and what would make its states differ.
"""

from __future__ import annotations

from typing import Any

from steerlab.models.backends.native import Transformers
from steerlab.models.backends.nnsight import NNsight
from steerlab.models.backends.registry import BACKENDS, register_backend
from steerlab.models.backends.transformer_lens import TransformerLens


def backend_of(source: Any) -> type[Transformers]:
    """The backend a live object belongs to; a plain module is transformers'."""
    wrappers = (backend for backend in BACKENDS.values() if backend is not Transformers)
    return next((backend for backend in wrappers if backend.wraps(source)), Transformers)


__all__ = ["BACKENDS", "NNsight", "TransformerLens", "Transformers", "backend_of", "register_backend"]
