"""Edits while the model runs: the protocol, and the runtime that applies it.

An edit names sites, positions and a function of the state. Inside `model.steering(*edits)` one hook per
site applies the edits in the order given. Which tokens are meant is decided by their column in the whole
sequence (the KV cache's length plus the place in the current input), once per forward pass and edit,
never by the input's length; for `All` no positions are computed at all. Arithmetic is float32, the result
a new tensor in the model's dtype. `resid_mid` is no module's output: an edit there changes what the MLP
reads, and the block's output gets the same change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.hooks import Frame, State, attach
from steerlab.models.positions import All, Selector
from steerlab.models.sites import Site

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel


@runtime_checkable
class Edit(Protocol):
    """A change of the states at some sites and positions."""

    @property
    def sites(self) -> Sequence[Site]:
        """Where the edit acts; read after `check`, which may choose them by the model."""

    @property
    def positions(self) -> Selector:
        """Which tokens it acts on."""

    def apply(self, state: Float[Tensor, "batch position width"], site: Site) -> Tensor:
        """The edited state, as a new tensor of the same shape.

        `state` is float32 (float64 in a float64 model) and holds every token of the current input; the
        runtime keeps the result at the selected positions only.
        """

    def check(self, model: LanguageModel) -> None:
        """Raise a sentence when the edit does not fit the model."""


class _Active:
    """One edit of one `steering` context: its mask for the current frame, and whether it ever fired."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.fired = False
        self._everywhere = isinstance(edit.positions, All)
        self._frame: Frame | None = None
        self._mask: Bool[Tensor, "batch position 1"] | None = None

    def __call__(self, state: State, site: Site, frame: Frame | None) -> State:
        if self._everywhere:
            self.fired = True
            return self.edit.apply(state, site)
        if frame is None:
            raise SteeringError("A steered part of the model was called by itself; run the whole model.")
        if frame is not self._frame:
            self._frame, self._mask = frame, self._selected(frame, state.device)
        if self._mask is None:
            return state
        self.fired = True
        return torch.where(self._mask, self.edit.apply(state, site), state)

    def _selected(self, frame: Frame, device: torch.device) -> Tensor | None:
        """Mask of the frame's tokens the edit acts on, `None` when there are none of them."""
        positions, tokens = self.edit.positions, frame.tokens
        if tokens is None:
            if positions.needs_prompt:
                raise SteeringError(
                    f"The positions {positions} need the prompt's text; call model.logits, model.generate or capture "
                    "instead of the raw model."
                )
            # Without the batch, the first pass (no cache yet) is the prompt and later ones are generated.
            chosen = positions.generated and frame.start > 0
            return torch.ones(1, 1, 1, dtype=torch.bool, device=device) if chosen else None
        if len(tokens) != frame.batch:
            raise SteeringError(
                f"A batch of {len(tokens)} prompts runs as {frame.batch} rows, so positions are unclear; run each once."
            )
        if frame.start >= tokens.width:
            return torch.ones(1, 1, 1, dtype=torch.bool, device=device) if positions.generated else None
        end = frame.start + frame.length
        mask = torch.full((frame.batch, max(end, tokens.width)), positions.generated)
        selection = tokens.select(positions)
        mask[:, : tokens.width] = False
        mask[selection.rows, selection.columns] = True
        mask = mask[:, frame.start : end, None]
        return mask.to(device) if bool(mask.any()) else None


@contextmanager
def steering(model: LanguageModel, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply `edits` to every forward pass of this thread inside the context; see `LanguageModel.steering`."""
    if not edits:
        raise SteeringError("Steering needs at least one edit; give model.steering(...) an Add or an Ablate.")
    for edit in edits:
        edit.check(model)
        if not edit.sites:
            raise SteeringError(
                f"{type(edit).__name__} names no site, so it would change nothing; give it sites."
            )
        for site in edit.sites:
            model.require(site)
    active = [_Active(edit) for edit in edits]
    by_site: dict[Site, list[_Active]] = {}
    for one in active:
        for site in dict.fromkeys(one.edit.sites):
            by_site.setdefault(site, []).append(one)
    with ExitStack() as stack:
        stack.enter_context(model.frames.watch(model.anatomy.base))
        for site, several in by_site.items():
            _place(model, site, several, stack)
        yield
    # Only reached without an exception: a forgotten edit is worth an error, a failed run already is one.
    for one in active:
        if not one.fired:
            sites = ", ".join(str(site) for site in one.edit.sites[:4])
            raise SteeringError(
                f"{type(one.edit).__name__} at {sites} never acted: no forward pass reached its sites and positions "
                f"({one.edit.positions}); run the model inside the context or change them."
            )


def _place(model: LanguageModel, site: Site, several: Sequence[_Active], stack: ExitStack) -> None:
    frames, anatomy = model.frames, model.anatomy

    def edited(state: State) -> State:
        precise = state.to(torch.promote_types(state.dtype, torch.float32))
        for one in several:
            precise = one(precise, site, frames.current)
        return precise

    if site.name != "resid_mid":
        visit = lambda state: edited(state).to(state.dtype)  # noqa: E731
        stack.callback(attach(anatomy.tap(site), frames, visit).remove)
        return

    change: list[Tensor] = []

    def before_mlp(state: State) -> State:
        new = edited(state)
        change[:] = [new - state]
        return new.to(state.dtype)

    def after_block(state: State) -> State:
        return (state + change.pop()).to(state.dtype)

    assert site.layer is not None
    stack.callback(attach(anatomy.tap(site), frames, before_mlp).remove)
    # Before every hook on the block's output: reads and edits of resid_post see the stream with the change in it.
    output = anatomy.tap(Site("resid_post", site.layer))
    stack.callback(attach(output, frames, after_block, first=True).remove)
