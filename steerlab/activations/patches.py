"""What is patched in one run of a sweep, and how it acts on a batch of such runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.activations._suffix import WHOLE
from steerlab.errors import PromptError, SiteError, SteeringError
from steerlab.models import All, LanguageModel, Site
from steerlab.models.operators import sent

if TYPE_CHECKING:
    from steerlab.activations.sources import Source


@dataclass(frozen=True)
class StatePatch:
    """States of a source in the place of a run's own, at one site and some positions.

    Attributes:
        site: where.
        positions: tokens of the prompt, counted from 0: one, or a span.
        source: what is put there.
        source_positions: the tokens of the source's prompt that are taken; by default the same.
        heads: at `z` only these heads' parts; by default all of the state.
    """

    site: Site
    positions: tuple[int, ...]
    source: Source
    source_positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.positions or min(self.positions) < 0:
            raise PromptError(f"A patch at {self.site} needs positions counted from 0, not {self.positions}.")
        if self.source_positions is not None and len(self.source_positions) != len(self.positions):
            raise PromptError(
                f"The patch at {self.site} has {len(self.positions)} positions but takes "
                f"{len(self.source_positions)} from its source; give as many."
            )
        if self.heads and self.site.name != "z":
            raise SiteError(f"{self.site} has no heads of its own; patch heads at z.")


#: What one run changes: a window of layers, or a restored state with some paths severed, is several patches.
Cell: TypeAlias = tuple[StatePatch, ...]


def window(
    name: str, layer: int, width: int, n_layers: int, positions: tuple[int, ...], source: Source
) -> Cell:
    """Patches at the `width` layers around `layer`, from layer - width // 2 on and cut at the ends (ROME's window)."""
    low = max(0, layer - width // 2)
    high = min(n_layers, layer - width // 2 + width)
    return tuple(StatePatch(Site(name, at), positions, source) for at in range(low, high))


def starts_at(cell: Cell, n_layers: int) -> int:
    """The first block that runs again: behind resid_post, before what lies inside a block; `WHOLE` for embed."""
    return min(_first_block(patch.site, n_layers) for patch in cell)


def begins_at(cell: Cell) -> int:
    """The first position that is changed."""
    return min(min(patch.positions) for patch in cell)


def check(model: LanguageModel, cell: Cell, prompt: int, length: int) -> None:
    """Raise a `SteerlabError` for a cell that this model or prompt of `length` tokens cannot have."""
    if not cell:
        raise SteeringError(f"A cell of prompt {prompt} patches nothing; give it a Patch.")
    for patch in cell:
        model.require(patch.site)
        if max(patch.positions) >= length:
            raise PromptError(
                f"Prompt {prompt} has {length} tokens and none at position {max(patch.positions)}; count from 0."
            )
        if patch.heads and max(patch.heads) >= model.n_heads:
            raise SiteError(f"{patch.site} has heads 0 to {model.n_heads - 1}, not {max(patch.heads)}.")
        if patch.source_positions is None:
            patch.source.require(prompt, length)


class RowPatches:
    """The patches of a batch of runs as one edit: row i is changed as its cell says.

    Args:
        rows: by row its prompt, the patches that its whole run is under, and its cell.
        start: the block at which the runs begin; patches of the whole run that lie before it are in what enters.
        column: the first column that is run; what lies before it is in the kept keys and values.
    """

    positions = All()

    def __init__(
        self, model: LanguageModel, rows: Sequence[tuple[int, Cell, Cell]], start: int, column: int
    ) -> None:
        self._n_layers = model.n_layers
        collected: dict[tuple[Site, int], list[tuple[int, int, StatePatch]]] = {}
        for row, (prompt, base, cell) in enumerate(rows):
            depth: dict[Site, int] = {}
            ahead = [patch for patch in base if not _contained(patch.site, start, model.n_layers)]
            # In the order of the forward pass, a run's own patches before the cell's at the same site.
            for patch in sorted((*ahead, *cell), key=lambda patch: patch.site):
                at = self._moved(patch.site, start)
                depth[at] = depth.get(at, -1) + 1
                collected.setdefault((at, depth[at]), []).append((row, prompt, patch))
        self._writes: dict[Site, list[_Write]] = {}
        for at, order in sorted(collected, key=lambda key: (key[0], key[1])):
            write = _Write.of(model, collected[at, order], column)
            if write is not None:
                self._writes.setdefault(at, []).append(write)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where something is changed."""
        return tuple(self._writes)

    def apply(self, state: Float[Tensor, "row column width"], site: Site) -> Tensor:
        """The changed states [row, column, width]."""
        new = state.clone()
        for write in self._writes[site]:
            write.into(new)
        return new

    def check(self, model: LanguageModel) -> None:
        """Raise `SiteError` for a site that the model has not."""
        for site in self.sites:
            model.require(site)

    def _moved(self, site: Site, start: int) -> Site:
        """Where a change acts: the output of the last skipped block is changed where it enters block `start`."""
        left_out = start not in (WHOLE, 0) and site == Site("resid_post", start - 1)
        return Site("resid_pre", start) if left_out and start < self._n_layers else site


# -- private --


@dataclass(frozen=True, eq=False)
class _Write:
    """One state into each of some rows and columns."""

    rows: Tensor
    columns: Tensor
    values: Float[Tensor, "write width"]
    adds: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(
        cls, model: LanguageModel, patches: Sequence[tuple[int, int, StatePatch]], column: int
    ) -> _Write | None:
        rows: list[int] = []
        columns: list[int] = []
        values, adds, masks = [], [], []
        width = model.width(patches[0][2].site)
        for row, prompt, patch in patches:
            taken = patch.source_positions or patch.positions
            here = [at for at, position in enumerate(patch.positions) if position >= column]
            if not here:
                continue
            rows += [row] * len(here)
            columns += [patch.positions[at] - column for at in here]
            replacement = patch.source.values(patch.site, prompt, [taken[at] for at in here], width)
            if replacement.shape[-1] != width:
                raise SteeringError(
                    f"The source's states at {patch.site} are {replacement.shape[-1]} wide, but {model.name} has "
                    f"{width} there; carry them across with Mapped and an aligner."
                )
            values.append(replacement.to(model.device))
            adds += [patch.source.adds] * len(here)
            masks += [patch.heads] * len(here)
        if not rows:
            return None
        return cls(
            torch.tensor(rows),
            torch.tensor(columns),
            torch.cat(values),
            torch.tensor(adds)[:, None] if any(adds) else None,
            _head_mask(masks, model.n_heads, width) if any(masks) else None,
        )

    def into(self, state: Tensor) -> None:
        where = sent(self.rows, state.device), sent(self.columns, state.device)
        values = sent(self.values, state.device, state.dtype)
        if self.adds is not None or self.mask is not None:
            old = state[where]
            if self.adds is not None:
                values = torch.where(sent(self.adds, state.device), old + values, values)
            if self.mask is not None:
                values = torch.where(sent(self.mask, state.device), values, old)
        state[where] = values


def _head_mask(heads: Sequence[tuple[int, ...]], n_heads: int, width: int) -> Tensor:
    """[write, width] True where a head's part lies; a write that names no heads takes all of the state."""
    chosen = torch.zeros(len(heads), n_heads, dtype=torch.bool)
    for row, row_heads in enumerate(heads):
        chosen[row, list(row_heads) if row_heads else slice(None)] = True
    return chosen.repeat_interleave(width // n_heads, dim=1)


def _first_block(site: Site, n_layers: int) -> int:
    if site.layer is None:
        return WHOLE if site.name == "embed" else n_layers
    return site.layer + (site.name == "resid_post")


def _contained(site: Site, start: int, n_layers: int) -> bool:
    """Whether what enters block `start` already holds a change at `site`."""
    if start == WHOLE:
        return False
    if site.layer is None:
        return site.name == "embed"
    return site.layer + (site.name != "resid_pre") <= start
