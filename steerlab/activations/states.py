"""Captured states: one row for every selected token, in prompt order, for each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from steerlab.errors import SiteError
from steerlab.models import Site


@dataclass(frozen=True, eq=False)
class Activations:
    """States of selected tokens by site; made by `capture`.

    Attributes:
        states: for each site float32 [row, width] on the CPU.
        example: [row], the prompt each row belongs to.
        position: [row], the token's index in the unpadded prompt.
        n_prompts: prompts that were read.
        model_name: the model the states come from.
        fingerprint: its fingerprint.
    """

    states: Mapping[Site, Float[Tensor, "row width"]]
    example: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    n_prompts: int
    model_name: str
    fingerprint: str

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order they were asked for."""
        return tuple(self.states)

    def __getitem__(self, site: Site) -> Float[Tensor, "row width"]:
        """The rows of a site.

        Raises:
            SiteError: when the site was not captured.
        """
        if site not in self.states:
            known = ", ".join(map(str, self.states))
            raise SiteError(f"{site} was not captured; there is {known}. Add it to the sites of capture().")
        return self.states[site]

    def __len__(self) -> int:
        """Rows of every site."""
        return len(self.example)

    def __repr__(self) -> str:
        size = f"{len(self)} rows of {self.n_prompts} prompts at {len(self.states)} sites"
        return f"Activations({size}, {self.model_name})"
