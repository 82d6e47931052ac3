"""Names that were replaced: they work for one more release, with a warning that says the new name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module


def old_names(module: str, new: Mapping[str, str]) -> Callable[[str], object]:
    """A module's `__getattr__` for names it had: `{"load": "steerlab.models.load_model"}`.

    Raises:
        AttributeError: a name that the module never had.
    """

    def found(name: str) -> object:
        if name not in new:
            raise AttributeError(f"{module} has no {name!r}.")
        message = f"{module}.{name} is now {new[name]}; the old name goes with the next release."
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        room, _, known = new[name].rpartition(".")
        return getattr(import_module(room), known)

    return found
