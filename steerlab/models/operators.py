"""One normal form for most edits, x ← keep ⊙ x + (x A) C + c, and their composition into one of the same form.

    add         keep 1            c the vector
    ablate      keep 1    A = -Q, C = Qᵀ
    clamp       keep 1    A = -v̂, C = v̂ᵀ, c = value · v̂
    project     keep 0    A = Q,  C = Qᵀ, c = m - m Q Qᵀ
    patch       keep 0            c the state
    scale       keep factors

Two operators in a row are one whose ranks add up, so any number of edits of a site with the same positions costs what
one costs. Composition is float64 on the CPU; the result is moved to the device in the working precision once. A stack
of operators, one a row of the batch, is the batched form; the missing parts of a row are zeros (and ones in `keep`), so
that a row without an edit keeps its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Share: TypeAlias = float | Tensor


@dataclass(frozen=True, eq=False)
class Operator:
    """x ← keep ⊙ x + (x A) C + c on the last axis; a missing part means ones (`keep`) or nothing.

    Attributes:
        keep: [width], what each coordinate is multiplied with.
        reads: A, [width, rank].
        writes: C, [rank, width].
        shift: c, [width].

    In a stack (see `stacked`) every part has a leading axis, and `keep` and `shift` one for the positions.
    """

    keep: Float[Tensor, "*stack width"] | None = None
    reads: Float[Tensor, "*stack width rank"] | None = None
    writes: Float[Tensor, "*stack rank width"] | None = None
    shift: Float[Tensor, "*stack width"] | None = None
    _elsewhere: dict[tuple[torch.device, torch.dtype], Operator] = field(
        init=False, repr=False, default_factory=dict
    )

    def __call__(self, state: Float[Tensor, "... width"], share: Share = 1.0) -> Tensor:
        """The changed state; `share` of the change, one number or one a token `[batch, position, 1]`."""
        if isinstance(share, float) and share == 1.0:
            if self.reads is not None:
                state = precise(state)
            # Without a product of matrices the operands' types promote by themselves, which saves a copy.
            new = state if self.keep is None else state * self.keep
            if self.reads is not None and self.writes is not None:
                new = new + (state @ self.reads) @ self.writes
            return new if self.shift is None else new + self.shift
        state = precise(state)
        if isinstance(share, Tensor):
            share = share.to(state.dtype)
        if self.keep is not None or not self:
            return blended(state, self(state), share)
        change = self.shift
        if self.reads is not None and self.writes is not None:
            low_rank = (state @ self.reads) @ self.writes
            change = low_rank if change is None else low_rank + change
        assert change is not None
        if isinstance(share, float):
            return torch.add(state, change, alpha=share)
        return torch.addcmul(state, change.expand_as(state), share)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return any(part is not None for part in self._parts)

    @property
    def width(self) -> int:
        """Width of the states it acts on."""
        wide = self.writes if self.writes is not None else self.keep if self.keep is not None else self.shift
        assert wide is not None
        return wide.shape[-1]

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return (self.keep, self.reads, self.writes, self.shift)

    def to(self, device: torch.device, dtype: torch.dtype) -> Operator:
        """The same operator elsewhere, in another precision; moved once."""
        key = (device, dtype)
        if key not in self._elsewhere:
            self._elsewhere[key] = self._moved(device, dtype)
        return self._elsewhere[key]

    def _moved(self, device: torch.device, dtype: torch.dtype) -> Operator:
        # Made inside somebody's inference mode, a tensor could never meet autograd: leave it for the moment.
        with torch.inference_mode(False):
            return Operator(*(None if part is None else sent(part, device, dtype) for part in self._parts))

    def then(self, second: Operator) -> Operator:
        """This operator and then `second`, as one (ranks add up)."""
        keep = _times(self.keep, second.keep)
        reads, writes, shift = self.reads, _kept(self.writes, second.keep), _kept(self.shift, second.keep)
        if second.reads is not None and second.writes is not None:
            inner = second.reads if self.keep is None else self.keep[:, None] * second.reads
            if self.reads is not None and self.writes is not None:
                inner = inner + self.reads @ (self.writes @ second.reads)
            if self.shift is not None:
                shift = _plus(shift, (self.shift @ second.reads) @ second.writes)
            reads = inner if reads is None else torch.cat([reads, inner], dim=1)
            writes = second.writes if writes is None else torch.cat([writes, second.writes])
        return Operator(keep, reads, writes, _plus(shift, second.shift))

    @classmethod
    def composed(cls, operators: Sequence[Operator]) -> Operator:
        """All of them in the order given, as one."""
        first, *others = operators
        for operator in others:
            first = first.then(operator)
        return first

    @classmethod
    def stacked(cls, operators: Sequence[Operator], width: int) -> Operator:
        """A table with one operator a slot."""
        rank = max((o.reads.shape[1] for o in operators if o.reads is not None), default=0)

        def stack(parts: list[Tensor | None], blank: Tensor) -> Tensor | None:
            if all(part is None for part in parts):
                return None
            return torch.stack([blank if part is None else part for part in parts])

        blank = torch.zeros(width, dtype=torch.float64)
        keep = stack([o.keep for o in operators], torch.ones_like(blank))
        shift = stack([o.shift for o in operators], blank)
        reads = stack([_wide(o.reads, rank, 1) for o in operators], blank[:, None].expand(width, rank))
        writes = stack([_wide(o.writes, rank, 0) for o in operators], blank.expand(rank, width))
        return cls(
            None if keep is None else keep[:, None], reads, writes, None if shift is None else shift[:, None]
        )

    def at(self, slots: Tensor) -> Operator:
        """The rows' own operators from a table: `slots` [batch] names each row's slot."""
        with torch.inference_mode(False):
            return Operator(*(None if part is None else part.index_select(0, slots) for part in self._parts))


def sent(part: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on another device, in another type; nothing waits for CUDA, which takes its copy at the call."""
    return part.to(device, dtype or part.dtype, non_blocking=device.type == "cuda")


def precise(state: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """The state in the precision arithmetic is done in: float32, or float64 in a float64 model."""
    return state.to(torch.promote_types(state.dtype, torch.float32))


def blended(state: Tensor, new: Tensor, share: Share) -> Tensor:
    """`state + share · (new - state)`, exact at shares 0 and 1."""
    if isinstance(share, float) and share == 1.0:
        return new
    return torch.lerp(state, new, share.to(state.dtype) if isinstance(share, Tensor) else share)


def _times(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first * second


def _kept(part: Tensor | None, keep: Tensor | None) -> Tensor | None:
    return part if part is None or keep is None else part * keep


def _plus(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _wide(part: Tensor | None, rank: int, axis: int) -> Tensor | None:
    """The low-rank part with zeros up to the stack's rank."""
    if part is None or part.shape[axis] == rank:
        return part
    shape = list(part.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([part, part.new_zeros(shape)], dim=axis)
