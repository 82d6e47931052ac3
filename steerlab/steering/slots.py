"""Places for interventions that stay while a model is compiled, and whose contents change without compiling again.

A slot is a small module behind (or before) a part of the model: x ← keep ⊙ x + (x A) C + c with buffers for all
four. Compilers trace it like any module; writing another intervention into the buffers changes what it does and
not the program. Hooks that are placed *after* compiling are not seen by the compiled program; `model.steering`
refuses a compiled model.

    slots = Slots(model, model.sites("resid_post"), rank=1)
    model.model.compile()
    with slots.steering(Add(direction, strength=2.0)):
        model.generate(...)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.errors import SteeringError
from steerlab.models import All, Edit, LanguageModel, Site
from steerlab.models.edits import EditTable
from steerlab.models.operators import Operator
from steerlab.models.steering import is_compiled
from steerlab.steering.taps import placed


class Slots:
    """Slots at some sites of a model, empty at first; an empty slot changes no bit of a finite state.

    Args:
        model: a transformers model that is not compiled yet.
        sites: where; `resid_mid` is no module's output and has none.
        rank: the largest rank of what is put in at a site: one for an ablated direction, none is needed to add.

    Raises:
        SteeringError: a compiled model, another backend, or a site that cannot have a slot.
    """

    def __init__(self, model: LanguageModel, sites: Sequence[Site], *, rank: int = 1) -> None:
        if model.backend != "transformers":
            raise SteeringError(f"Slots go into a transformers model, not into one run by {model.backend}.")
        if is_compiled(model):
            raise SteeringError(
                f"{model.name} is compiled already, and a compiled program would not see new slots; make them "
                f"first, then compile."
            )
        if not sites or rank < 0:
            raise SteeringError("Slots need at least one site, and a rank of zero or more.")
        self.model, self.rank = model, rank
        self._slots: dict[Site, _Slot] = {}
        self._handles = []
        for site in dict.fromkeys(sites):
            model.require(site)
            if site.name == "resid_mid":
                raise SteeringError(
                    f"{site} is no module's output, so it has no slot; take mlp_out or resid_post."
                )
            slot = _Slot(model.width(site), rank).to(model.device)
            self._slots[site] = slot
            self._handles.append(placed(model.anatomy.tap(site), slot))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where slots are."""
        return tuple(self._slots)

    def set(self, *interventions: Edit) -> None:
        """Put interventions in, in the place of what was there; other sites are emptied.

        Raises:
            SteeringError: one that depends on the token or the state, a site without a slot, or a higher rank.
        """
        by_site: dict[Site, list[Operator]] = {}
        for edit in interventions:
            if isinstance(edit, EditTable):
                raise SteeringError(
                    f"A {type(edit).__name__} goes by the rows of a batch, which a slot does not see; put in "
                    "what all rows share, or use model.steering without compiling."
                )
            edit.check(self.model)  # first: some learn the sites' widths here
            self._require_constant(edit)
            for site in edit.sites:
                if site not in self._slots:
                    raise SteeringError(
                        f"There is no slot at {site}; make Slots(model, [...]) with it before compiling."
                    )
                operator = edit.operator(site)  # type: ignore[attr-defined]  # checked above
                by_site.setdefault(site, []).append(operator)
        composed = {site: Operator.composed(operators) for site, operators in by_site.items()}
        for site, operator in composed.items():
            rank = 0 if operator.reads is None else operator.reads.shape[1]
            if rank > self.rank:
                raise SteeringError(
                    f"The interventions at {site} have rank {rank}, its slot {self.rank}; make "
                    f"Slots(rank={rank})."
                )
        for site, slot in self._slots.items():
            slot.fill(composed.get(site))

    def clear(self) -> None:
        """Empty every slot."""
        for slot in self._slots.values():
            slot.fill(None)

    @contextmanager
    def steering(self, *interventions: Edit) -> Iterator[None]:
        """Put interventions in for the length of the context.

        Raises:
            SteeringError: as `set`; and on a regular exit when no forward pass went through the slots.
        """
        if not interventions:
            raise SteeringError("Steering needs at least one intervention.")
        self.set(*interventions)
        used = [site for edit in interventions for site in edit.sites]
        before = {site: self._slots[site].passes for site in used}
        try:
            yield
        finally:
            self.clear()
        for site, passes in before.items():
            if self._slots[site].passes == passes:
                raise SteeringError(
                    f"No forward pass went through the slot at {site}: the program that ran was compiled "
                    f"without it, or nothing ran."
                )

    def remove(self) -> None:
        """Take the slots out again; a compiled program keeps them, empty."""
        self.clear()
        for handle in self._handles:
            handle.remove()

    def _require_constant(self, edit: Edit) -> None:
        name = type(edit).__name__
        if not isinstance(edit.positions, All):
            raise SteeringError(
                f"{name} acts at {edit.positions}; a slot acts on every token. Use "
                f"model.steering without compiling."
            )
        for what in ("schedule", "condition"):
            if getattr(edit, what, None) is not None:
                raise SteeringError(
                    f"{name} has a {what}, which a slot has not. Use model.steering without compiling."
                )
        operator = getattr(edit, "operator", None)
        if operator is None or any(operator(site) is None for site in edit.sites):
            raise SteeringError(
                f"{name} is no linear change of the state, so it fits no slot. Use "
                f"model.steering without compiling."
            )


# -- private --


class _Slot(nn.Module):
    """x ← keep ⊙ x + (x A) C + c in float32 at least, with buffers that are written in place."""

    keep: Tensor
    reads: Tensor
    writes: Tensor
    shift: Tensor
    count: Tensor

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        for name, value in (
            ("keep", torch.ones(width)),
            ("reads", torch.zeros(width, rank)),
            ("writes", torch.zeros(rank, width)),
            ("shift", torch.zeros(width)),
        ):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def passes(self) -> int:
        """Forward passes that went through."""
        return int(self.count)

    def forward(self, state: Float[Tensor, "... width"]) -> Tensor:
        self.count.add_(1)
        wide = state.to(torch.promote_types(state.dtype, torch.float32))
        keep, reads, writes, shift = (
            part.to(wide.dtype) for part in (self.keep, self.reads, self.writes, self.shift)
        )
        new: Tensor = (wide * keep + (wide @ reads) @ writes + shift).to(state.dtype)
        return new

    def fill(self, operator: Operator | None) -> None:
        """Write an operator into the buffers; None empties them."""
        with torch.inference_mode(False), torch.no_grad():
            self.keep.fill_(1.0)
            for part in (self.reads, self.writes, self.shift):
                part.zero_()
            if operator is None:
                return
            if operator.keep is not None:
                self.keep.copy_(operator.keep)
            if operator.shift is not None:
                self.shift.copy_(operator.shift)
            if operator.reads is not None and operator.writes is not None:
                rank = operator.reads.shape[1]
                self.reads[:, :rank].copy_(operator.reads)
                self.writes[:rank].copy_(operator.writes)
