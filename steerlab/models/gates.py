"""Which tokens of a forward pass an edit acts on, and how strongly: positions, schedule and condition together.

A gate answers once a forward pass with an *amount*: None (nowhere), a number (everywhere alike), a mask
`[batch, position, 1]`, or numbers of that shape. Which tokens are meant is decided by their columns in the whole
sequence (the KV cache's length plus the place in the current input), never by the input's length; for `All` nothing
is computed. A generated token's step is its number, from 0; the schedule scales the edit at generated token j by s(j),
and the prompt, which comes before, by s(0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.hooks import Frame
from steerlab.models.operators import precise, sent
from steerlab.models.positions import All, Selector
from steerlab.models.prompts import Tokens
from steerlab.models.sites import Site

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel

Schedule: TypeAlias = Callable[[int], float]
Amount: TypeAlias = "float | Tensor | None"


@runtime_checkable
class EditCondition(Protocol):
    """Whether an edit acts, decided from the states at a site, row by row or token by token."""

    @property
    def site(self) -> Site:
        """Where the states are read."""

    @property
    def positions(self) -> Selector | None:
        """The prompt's tokens whose mean score decides for a row and all it generates; None: each token for itself."""

    def score(self, state: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position"]:
        """The score of every token."""

    def holds(self, score: Float[Tensor, ...]) -> Bool[Tensor, ...]:
        """Whether a score opens the gate."""

    def check(self, model: LanguageModel) -> None:
        """Raise a sentence when the condition does not fit the model."""


class Places:
    """A selector resolved for forward passes: which of a pass's tokens it picks."""

    def __init__(self, positions: Selector) -> None:
        self.positions = positions
        self._everywhere = isinstance(positions, All)

    def of(self, frame: Frame | None) -> bool | Bool[Tensor, "batch position"]:
        """True or False for all tokens alike, else a mask on the CPU.

        Raises:
            SteeringError: a raw call of the model, in which these positions are not known.
        """
        if self._everywhere:
            return True
        if frame is None:
            raise SteeringError("A steered part of the model was called by itself; run the whole model.")
        positions = self.positions
        frame.require_known_prompt(positions)
        if frame.tokens is None and positions.needs_prompt:
            raise SteeringError(
                f"The positions {positions} need the prompt's text; call model.logits, model.generate or capture "
                "instead of the raw model, or run it inside `with model.prompted(tokens)`."
            )
        if frame.start >= frame.width:
            return self._generated(frame)
        mask = self._prompt(frame)[:, frame.start : frame.start + frame.length]
        if frame.start + frame.length > frame.width:
            behind = self._generated(frame)
            count = frame.start + frame.length - frame.width
            tail = torch.full((frame.batch, count), behind) if isinstance(behind, bool) else behind
            mask = torch.cat([mask, tail.expand(frame.batch, count)], dim=1)
        return mask if bool(mask.any()) else False

    def _generated(self, frame: Frame) -> bool | Tensor:
        if not self.positions.generated:
            return False
        steps = range(max(frame.start - frame.width, 0), frame.start + frame.length - frame.width)
        # Only a window counted from the text's start asks how long each prompt was.
        lengths: Sequence[int] = frame.prompt.lengths if self.positions.by_length else (0,)
        chosen = [[self.positions.selects(step, length) for step in steps] for length in lengths]
        answers = {is_selected for row in chosen for is_selected in row}
        if len(answers) == 1:
            return answers.pop()
        mask = torch.tensor(chosen)
        return mask.repeat_interleave(frame.repeats, dim=0) if self.positions.by_length else mask

    def _prompt(self, frame: Frame) -> Tensor:
        selection = frame.prompt.select(self.positions)
        mask = torch.zeros(len(frame.prompt), frame.width, dtype=torch.bool)
        mask[selection.rows, selection.columns] = True
        return mask.repeat_interleave(frame.repeats, dim=0)


class Decision:
    """The running answer of one condition inside one `steering` context.

    Attributes:
        seen: rows (or tokens, where each decides for itself) that were decided.
        held: those among them for which the condition held.
    """

    def __init__(self, condition: EditCondition) -> None:
        self.condition = condition
        self._counts: list[Tensor] = []  # decided and held, pass by pass, on the device
        self._ended: Tensor | None = None
        self._places = None if condition.positions is None else Places(condition.positions)
        self._waits_for: int | None = None
        self._frame: Frame | None = None
        self._open: Tensor | None = None
        self._sum: Tensor | None = None
        self._count: Tensor | None = None
        self._latches = bool(getattr(condition, "latched", False))
        #: By batch whether each row is open; streams of one condition may take turns. None: a raw call.
        self._latched: WeakKeyDictionary[Tokens, Tensor] = WeakKeyDictionary()
        self._raw: Tensor | None = None

    @property
    def seen(self) -> int:
        """Waits for the device."""
        return sum(int(part[0]) for part in self._counts)

    @property
    def held(self) -> int:
        """Waits for the device."""
        return sum(int(part[1]) for part in self._counts)

    def observe(self, state: Float[Tensor, "batch position width"], frame: Frame | None) -> None:
        """Read a pass's states, at the condition's site."""
        if frame is None:
            raise SteeringError("A steered part of the model was called by itself; run the whole model.")
        if self._places is None:
            held = self.condition.holds(self.condition.score(precise(state))[..., None])
            if self._latches:
                held = self._since(held, frame)
            self._decide(held, self._real(frame, state.device))
        else:
            frame.require_known_prompt("The condition")
            if frame.start < frame.width:
                self._prompt(state, frame, self._places)
        self._frame = frame

    def open(self, frame: Frame | None, device: torch.device) -> Bool[Tensor, "batch position 1"]:
        """[batch, 1 or position, 1] where the condition holds.

        Raises:
            SteeringError: the pass acts before the condition is decided.
        """
        if self._open is None or (self._places is None and frame is not self._frame):
            raise SteeringError(
                f"The condition at {self.condition.site} is not decided yet: the tokens it reads come in a later "
                "chunk of the prompt (or were never read); run the prompt in one pass or steer later tokens only."
            )
        return self._open.to(device)

    def _prompt(self, state: Tensor, frame: Frame, places: Places) -> None:
        chosen = places.of(frame)
        if frame.start == 0 or self._waits_for is None:
            self._open, self._sum, self._count = None, None, None
            self._waits_for = _last_column(places, frame)
        if chosen is not False:
            scores = self.condition.score(precise(state))
            weights = torch.ones_like(scores) if chosen is True else sent(chosen, scores.device, scores.dtype)
            self._sum = _plus(self._sum, (scores * weights).sum(dim=1))
            self._count = _plus(self._count, weights.sum(dim=1))
        if self._open is None and self._sum is not None and frame.start + frame.length > self._waits_for:
            assert self._count is not None
            self._decide(self.condition.holds((self._sum / self._count)[:, None, None]), None)

    def _since(self, held: Bool[Tensor, "batch position 1"], frame: Frame) -> Tensor:
        """From the first written token for which it held on; in the prompt it never does."""
        if frame.repeats > 1 or (frame.length > 1 and frame.start >= frame.width):
            raise SteeringError(
                "A latched condition follows each text token by token, and this search moves or takes back tokens; "
                "leave num_beams and the assistant out."
            )
        written = torch.arange(frame.start, frame.start + frame.length, device=held.device) >= frame.width
        held = (held & written[None, :, None]).cumsum(dim=1) > 0
        before = self._raw if frame.tokens is None else self._latched.get(frame.tokens)
        if frame.start > 0 and before is not None:
            held = held | before
        if frame.tokens is None:
            self._raw = held[:, -1:]
        else:
            self._latched[frame.tokens] = held[:, -1:]
        return held

    def _decide(self, held: Tensor, real: Tensor | None) -> None:
        self._open = held
        counted = self._open if real is None else self._open & real
        decided = torch.full((), counted.numel(), device=counted.device) if real is None else real.sum()
        self._counts.append(torch.stack([decided, counted.sum()]))
        if len(self._counts) > 256:
            self._counts = [torch.stack(self._counts).sum(dim=0)]

    def _real(self, frame: Frame, device: torch.device) -> Tensor | None:
        """Which tokens of a pass are counted: neither padding nor what a row runs on after its end. None: all."""
        if frame.start == 0:
            self._ended = None
        if frame.start >= frame.width:
            return self._running(frame, device)
        if sum(frame.prompt.lengths) == frame.width * len(frame.prompt):
            return None
        columns = frame.prompt.attention_mask[:, frame.start : frame.start + frame.length]
        if columns.shape[1] < frame.length:  # tokens behind the prompt, proposed in the same pass
            columns = torch.nn.functional.pad(columns, (0, frame.length - columns.shape[1]), value=1)
        return sent(columns.repeat_interleave(frame.repeats, dim=0), device, torch.bool)[..., None]

    def _running(self, frame: Frame, device: torch.device) -> Tensor | None:
        """Rows of a batch that have not written an end token; beams change places, so theirs are all counted."""
        if frame.inputs is None or not frame.ends or frame.repeats > 1 or frame.length > 1:
            return None
        over = torch.isin(frame.inputs[:, -1], sent(torch.tensor(frame.ends), frame.inputs.device))
        self._ended = over if self._ended is None else self._ended | over
        return (~self._ended).to(device)[:, None, None]


def _last_column(places: Places, frame: Frame) -> int:
    """The last column of the prompt that is read."""
    columns = frame.prompt.select(places.positions).columns
    return int(columns.max()) if len(columns) else 0


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


class _Amounts:
    """An amount, and the same with a mask as zeros and ones."""

    def __init__(self, amount: Amount) -> None:
        self.amount = amount
        mask = isinstance(amount, Tensor) and amount.dtype == torch.bool
        self.share: Amount = amount.float() if mask and isinstance(amount, Tensor) else amount


_EVERYTHING = _Amounts(1.0)


class Gate:
    """Positions, schedule and condition of edits that share them; the amount is computed once a pass and device."""

    def __init__(self, positions: Selector, schedule: Schedule | None, decision: Decision | None) -> None:
        self.decision = decision
        self._places, self._schedule = Places(positions), schedule
        self._always = isinstance(positions, All) and schedule is None and decision is None
        self._frame: Frame | None = None
        self._base: Amount = None
        self._on: dict[torch.device, _Amounts] = {}

    def amounts(self, frame: Frame | None, device: torch.device) -> _Amounts:
        """How strongly the edits act on the pass's tokens."""
        if self._always:
            return _EVERYTHING
        if frame is None or frame is not self._frame:
            self._base, self._frame, self._on = self._timed(frame), frame, {}
        if device not in self._on:
            self._on[device] = _Amounts(self._conditioned(frame, device))
        return self._on[device]

    def _timed(self, frame: Frame | None) -> Amount:
        chosen = self._places.of(frame)
        if chosen is False:
            return None
        mask = None if chosen is True else chosen[..., None]
        if self._schedule is None:
            return 1.0 if mask is None else mask
        if frame is None:
            raise SteeringError("A steered part of the model was called by itself; run the whole model.")
        frame.require_known_prompt("The schedule")
        columns = range(frame.start - frame.width, frame.start + frame.length - frame.width)
        values = [_number(self._schedule, max(0, step)) for step in columns]
        if len(set(values)) == 1:
            return values[0] if mask is None else (mask if values[0] == 1.0 else mask.float() * values[0])
        shares = torch.tensor(values)[None, :, None]
        return shares if mask is None else shares * mask

    def _conditioned(self, frame: Frame | None, device: torch.device) -> Amount:
        base = self._base
        if isinstance(base, Tensor):
            base = sent(base, device)
        if self.decision is None or base is None:
            return base
        held = self.decision.open(frame, device)
        if isinstance(base, float):
            return held if base == 1.0 else held * base
        return held & base if base.dtype == torch.bool else held * base


class RowGate:
    """The amounts of a batch whose rows have gates of their own.

    Args:
        gates: for each of the caller's prompts its gate; None where nothing acts.
        masked: whether rows without a gate must be masked out, because what acts would change them.

    Attributes:
        acting: the caller's prompts something acts on in the current pass.
    """

    def __init__(self, gates: Sequence[Gate | None], *, masked: bool) -> None:
        self._gates = gates
        self._only = _only_gate(gates) if not (masked and None in gates) else None
        self.acting: frozenset[int] = frozenset()
        self._frame: Frame | None = None
        self._on: dict[torch.device, _Amounts] = {}

    def amounts(self, frame: Frame, device: torch.device) -> _Amounts:
        """How strongly each row's edits act on its tokens."""
        if frame is not self._frame:
            self._frame, self._on = frame, {}
        if device not in self._on:
            self._on[device] = _Amounts(self._joined(frame, device))
        return self._on[device]

    def _joined(self, frame: Frame, device: torch.device) -> Amount:
        own = self._of_rows(frame)
        amounts = {
            gate: gate.amounts(frame, device).amount for gate in dict.fromkeys(own) if gate is not None
        }
        self.acting = frozenset(
            row
            for row, gate in zip(frame.rows, own, strict=True)
            if gate is not None and amounts[gate] is not None
        )
        if not self.acting:
            return None
        if self._only is not None:
            return amounts[self._only]
        # Numbers that hold for a whole row make one column; what differs by token is laid over it.
        whole = [amounts[gate] if gate is not None else None for gate in own]
        plain = [amount if isinstance(amount, float) else 0.0 for amount in whole]
        joined = sent(torch.tensor(plain), device)[:, None, None]
        by_token = {id(amount): amount for amount in amounts.values() if isinstance(amount, Tensor)}
        for amount in by_token.values():
            rows = sent(torch.tensor([of_row is amount for of_row in whole]), device)[:, None, None]
            joined = torch.where(rows, amount.to(joined.dtype), joined)
        return joined.bool() if all(_is_mask(amount) for amount in amounts.values()) else joined

    def _of_rows(self, frame: Frame) -> list[Gate | None]:
        known = len(self._gates)
        if max(frame.rows) >= known:
            raise SteeringError(
                f"The table of interventions has {known} rows, but a prompt number {max(frame.rows)} runs (counted "
                "from 0); give one row of interventions a prompt, () for a prompt left alone."
            )
        return [self._gates[row] for row in frame.rows]


def _only_gate(gates: Sequence[Gate | None]) -> Gate | None:
    """The only gate among these; None where there is none or more than one."""
    different = {gate for gate in gates if gate is not None}
    return different.pop() if len(different) == 1 else None


def _is_mask(amount: Amount) -> bool:
    if isinstance(amount, Tensor):
        return amount.dtype == torch.bool
    return amount is None or amount == 1.0


def _number(schedule: Schedule, step: int) -> float:
    value: Any = schedule(step)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise SteeringError(f"The schedule gives {value!r} at step {step}; it must give a number.") from error
    if number != number or number in (float("inf"), float("-inf")):
        raise SteeringError(f"The schedule gives {number} at step {step}; it must give a finite number.")
    return number
