"""A function of the state as an edit: `with model.edit("resid_post.5", lambda state: 0.9 * state): ...`.

What the function gives is held against the state: its shape, its dtype, and that it is finite where the state was. The
last is looked at when the context ends, so that no hook waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteeringError, SteerlabError
from steerlab.models.positions import Selector, require_selector
from steerlab.models.program import Applied
from steerlab.models.sites import Site, SitesGiven, sites_of

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel

StateFunction = Callable[[Float[Tensor, "batch position width"]], Float[Tensor, "batch position width"]]


class FunctionEdit:
    """An edit that applies a function to the states of some sites."""

    def __init__(
        self, model: LanguageModel, sites: SitesGiven, function: StateFunction, positions: Selector
    ) -> None:
        if not callable(function):
            raise SteeringError(
                f"An edit needs a function of the state, not {function!r}; write lambda state: ..."
            )
        require_selector(positions)
        self.sites = tuple(sites_of(model, sites))
        self.positions = positions
        self._function = function
        self._finite: dict[Site, Tensor] = {}

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.sites[:3])) + (", ..." if len(self.sites) > 3 else "")
        return f"{self._name} at {where}"

    @property
    def _name(self) -> str:
        return str(getattr(self._function, "__name__", type(self._function).__name__))

    def check(self, model: LanguageModel) -> None:
        """Raise `SiteError` unless the model has the sites."""
        for site in self.sites:
            model.require(site)

    def apply(self, state: Float[Tensor, "batch position width"], site: Site) -> Tensor:
        """What the function makes of a copy of the state.

        Raises:
            SteeringError: it gives no tensor, or one of another shape or dtype.
        """
        new = self._function(state.clone())
        if not isinstance(new, Tensor):
            raise SteeringError(
                f"The function {self._name} gives {new!r} at {site}; let it return the new state."
            )
        if new.shape != state.shape or new.dtype != state.dtype:
            raise SteeringError(
                f"The function {self._name} gives {tuple(new.shape)} {_plain(new.dtype)} at {site}; the state is "
                f"{tuple(state.shape)} {_plain(state.dtype)}, and what it returns has to be the same."
            )
        fine = (torch.isfinite(new) | ~torch.isfinite(state)).all()
        self._finite[site] = self._finite[site] & fine if site in self._finite else fine
        return new

    def require_finite(self) -> None:
        """Raise `SteeringError` for a site at which the function made numbers that are not finite."""
        for site, fine in self._finite.items():
            if not bool(fine):
                raise SteeringError(
                    f"The function {self._name} made states at {site} that are not finite; correct it."
                )


@contextmanager
def edited(
    model: LanguageModel, sites: SitesGiven, function: StateFunction, positions: Selector
) -> Iterator[Applied]:
    """See `LanguageModel.edit`."""
    edit = FunctionEdit(model, sites, function, positions)
    try:
        with model.steering(edit) as applied:
            yield applied
    except SteerlabError:  # a pass that is not finite: whose fault is it?
        edit.require_finite()
        raise
    edit.require_finite()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
