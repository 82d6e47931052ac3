"""What runs at a site: edits compiled into few steps, and the count of what they did.

Neighbouring edits that share positions, schedule and condition and have a normal form become one operator. A table of
edits by row becomes one gathered stack of operators, slot 0 of which does nothing; edits without a normal
form act on the whole batch and are kept where their rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.edits import Edit, EditTable, FramedEdit, Steering, TimedEdit
from steerlab.models.gates import Amount, Decision, EditCondition, Gate, RowGate
from steerlab.models.hooks import Frame
from steerlab.models.operators import Operator, Share, blended, precise
from steerlab.models.sites import Site


@dataclass(frozen=True)
class Count:
    """What one intervention did.

    Attributes:
        edit: the intervention.
        row: the prompt it belongs to, in a table of interventions.
        passes: forward passes in which it reached its site and positions.
        seen: rows (or tokens, where each decides for itself) its condition was decided for; None without a condition.
        held: those for which the condition held.
    """

    edit: Edit
    row: int | None
    passes: int
    seen: int | None
    held: int | None

    def __str__(self) -> str:
        whose = "" if self.row is None else f" of prompt {self.row}"
        place = f"{_name(self.edit)}{whose}: {self.passes} pass{'' if self.passes == 1 else 'es'}"
        return place if self.seen is None else f"{place}, condition held for {self.held} of {self.seen}"


class Applied:
    """What the interventions of one `steering` context have done so far; read it inside or after the context."""

    def __init__(self, lines: Sequence[_Line]) -> None:
        self._lines = lines

    @property
    def counts(self) -> tuple[Count, ...]:
        """One `Count` an intervention, in the order given, tables row by row."""
        return tuple(line.count() for line in self._lines)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.counts))

    def require_acted(self) -> None:
        """Raise `SteeringError` for an intervention that never acted; a condition that never held is none."""
        for line in self._lines:
            if not line.count().passes:
                raise SteeringError(
                    f"{_name(line.edit)} never acted: no forward pass reached its sites and positions "
                    f"({line.edit.positions}); run the model inside the context or change them."
                )


@dataclass(eq=False)
class _Line:
    """One edit of a context, the gate it shares with others, and the steps it became part of."""

    edit: Edit
    gate: Gate
    row: int | None = None
    steps: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._timed = self.edit if isinstance(self.edit, TimedEdit) else None

    def operator(self, site: Site) -> Operator | None:
        return None if self._timed is None else self._timed.operator(site)

    def count(self) -> Count:
        decision = self.gate.decision
        return Count(
            edit=self.edit,
            row=self.row,
            passes=max((step.passes_of(self.row) for step in self.steps), default=0),
            seen=None if decision is None else decision.seen,
            held=None if decision is None else decision.held,
        )


_Rows: TypeAlias = "list[list[_Line]]"


class SiteProgram:
    """The steps of one site, after the conditions that are read there."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.steps: list[_Step] = []

    def __call__(self, state: Tensor, frame: Frame | None) -> Tensor:
        """The edited state, in the precision of the arithmetic; the state itself when nothing acts."""
        for decision in self.decisions:
            decision.observe(state, frame)
        for step in self.steps:
            state = step(state, frame)
        return state


def programs(edits: Sequence[Steering]) -> tuple[list[_Line], dict[Site, SiteProgram]]:
    """Every edit as a line to count, and what runs at each site."""
    gates = _Gates()
    items: list[_Line | _Rows] = [
        [
            [_Line(row_edit, gates.of(row_edit), row) for row_edit in several]
            for row, several in enumerate(edit.rows)
        ]
        if isinstance(edit, EditTable)
        else _Line(edit, gates.of(edit))
        for edit in edits
    ]
    lines = [
        line for item in items for line in ([item] if isinstance(item, _Line) else chain.from_iterable(item))
    ]
    by_site: dict[Site, SiteProgram] = {}
    for decision in gates.decisions.values():
        by_site.setdefault(decision.condition.site, SiteProgram()).decisions.append(decision)
    for site in dict.fromkeys(site for line in lines for site in line.edit.sites):
        by_site.setdefault(site, SiteProgram()).steps.extend(_steps(items, site))
    return lines, by_site


class _Gates:
    """Gates by positions, schedule and condition, so that edits which share these share masks and decisions."""

    def __init__(self) -> None:
        self.decisions: dict[int, Decision] = {}
        self._gates: dict[Any, Gate] = {}

    def of(self, edit: Edit) -> Gate:
        schedule, condition = (edit.schedule, edit.condition) if isinstance(edit, TimedEdit) else (None, None)
        key = (edit.positions, id(schedule), id(condition))
        if key not in self._gates:
            self._gates[key] = Gate(edit.positions, schedule, self._decision(condition))
        return self._gates[key]

    def _decision(self, condition: EditCondition | None) -> Decision | None:
        if condition is None:
            return None
        return self.decisions.setdefault(id(condition), Decision(condition))


# -- from edits to steps --


class _Step(Protocol):
    def __call__(self, state: Tensor, frame: Frame | None) -> Tensor: ...

    def passes_of(self, row: int | None) -> int: ...


def _steps(items: Sequence[_Line | _Rows], site: Site) -> list[_Step]:
    steps: list[_Step] = []
    together: list[_Line] = []
    for item in [*items, None]:
        if isinstance(item, _Line) and site not in item.edit.sites:
            continue
        if isinstance(item, _Line) and item.operator(site) is not None:
            if together and together[-1].gate is not item.gate:
                steps.append(_Composed(together, site))
                together = []
            together.append(item)
            continue
        if together:
            steps.append(_Composed(together, site))
            together = []
        if isinstance(item, _Line):
            steps.append(_Single(item, site))
        elif item is not None:
            steps.extend(_table_steps(item, site))
    return steps


def _table_steps(rows: _Rows, site: Site) -> list[_Step]:
    """Stage after stage: the k-th group of edits of every row at once."""
    staged = [_stages([line for line in row if site in line.edit.sites], site) for row in rows]
    steps: list[_Step] = []
    for stage in zip_longest(*staged, fillvalue=()):
        linear = [group if group and group[0].operator(site) is not None else () for group in stage]
        if any(linear):
            steps.append(_Gathered(linear, site))
        others = [group[0] if group and not ours else None for group, ours in zip(stage, linear, strict=True)]
        for edit in {id(line.edit): line.edit for line in others if line is not None}.values():
            own_lines = [line if line is not None and line.edit is edit else None for line in others]
            steps.append(_SingleOfRows(edit, own_lines, site))
    return steps


def _stages(lines: Sequence[_Line], site: Site) -> list[tuple[_Line, ...]]:
    """One row's edits in groups that are one operator each, or one edit without a normal form."""
    groups: list[tuple[_Line, ...]] = []
    for line in lines:
        last = groups[-1][-1] if groups else None
        linear = line.operator(site) is not None
        if last is not None and linear and last.gate is line.gate and last.operator(site) is not None:
            groups[-1] = (*groups[-1], line)
        else:
            groups.append((line,))
    return groups


def _acted(change: Callable[[Tensor, Share], Tensor], state: Tensor, amount: Amount) -> Tensor:
    if amount is None or (isinstance(amount, float) and amount == 0.0):
        return state
    if isinstance(amount, Tensor) and amount.dtype == torch.bool:
        return torch.where(amount, change(state, 1.0), state)
    return change(state, amount)


class _Composed:
    """Edits in a row that share a gate, as one operator."""

    def __init__(self, lines: Sequence[_Line], site: Site) -> None:
        self._gate, self._passes = lines[0].gate, 0
        self._operator = Operator.composed([_required(line, site) for line in lines])
        for line in lines:
            line.steps.append(self)

    def __call__(self, state: Tensor, frame: Frame | None) -> Tensor:
        amount = self._gate.amounts(frame, state.device).share
        if amount is None:
            return state
        self._passes += 1
        return _acted(self._operator.to(state.device, _working(state.dtype)), state, amount)

    def passes_of(self, row: int | None) -> int:
        return self._passes


class _Single:
    """One edit without a normal form."""

    def __init__(self, line: _Line, site: Site) -> None:
        self._gate, self._change, self._passes = line.gate, _change(line.edit, site), 0
        line.steps.append(self)

    def __call__(self, state: Tensor, frame: Frame | None) -> Tensor:
        amount = self._gate.amounts(frame, state.device).amount
        if amount is None:
            return state
        self._passes += 1
        return _acted(lambda x, share: self._change(x, share, frame), precise(state), amount)

    def passes_of(self, row: int | None) -> int:
        return self._passes


class _Gathered:
    """One stage of a table: each row's own operator out of [slot, ...]."""

    def __init__(self, rows: Sequence[Sequence[_Line]], site: Site) -> None:
        self._gate = RowGate([row[0].gate if row else None for row in rows], masked=False)
        self._acted: set[int] = set()
        self._passes = 0
        # Rows with the very same edits share a slot; slot 0 leaves a row as it is.
        kinds = {tuple(id(line.edit) for line in row): row for row in rows if row}
        self._slots = [1 + list(kinds).index(key) if (key := _key(row)) else 0 for row in rows]
        operators = [Operator.composed([_required(line, site) for line in row]) for row in kinds.values()]
        self._table = Operator.stacked([Operator(), *operators], operators[0].width)
        self._rows: tuple[Any, ...] | None = None
        self._gathered = Operator()
        for row in rows:
            for line in row:
                line.steps.append(self)

    def __call__(self, state: Tensor, frame: Frame | None) -> Tensor:
        known = _known(frame)
        amount = self._gate.amounts(known, state.device).share
        if amount is None:
            return state
        self._passes += 1
        self._acted |= self._gate.acting
        key = (known.rows, state.device, state.dtype)
        if key != self._rows:
            slots = torch.tensor([self._slots[row] for row in known.rows])
            gathered = self._table.at(slots).to(state.device, _working(state.dtype))
            self._rows, self._gathered = key, gathered
        return _acted(self._gathered, state, amount)

    def passes_of(self, row: int | None) -> int:
        return self._passes if row in self._acted else 0


class _SingleOfRows:
    """One edit without a normal form, on the rows of a table that carry it."""

    def __init__(self, edit: Edit, lines: Sequence[_Line | None], site: Site) -> None:
        self._gate = RowGate([line.gate if line else None for line in lines], masked=True)
        self._change = _change(edit, site)
        self._acted: set[int] = set()
        self._passes = 0
        for line in lines:
            if line is not None:
                line.steps.append(self)

    def __call__(self, state: Tensor, frame: Frame | None) -> Tensor:
        known = _known(frame)
        amount = self._gate.amounts(known, state.device).amount
        if amount is None:
            return state
        self._passes += 1
        self._acted |= self._gate.acting
        return _acted(lambda x, share: self._change(x, share, known), precise(state), amount)

    def passes_of(self, row: int | None) -> int:
        return self._passes if row in self._acted else 0


def _change(edit: Edit, site: Site) -> Callable[[Tensor, Share, Frame | None], Tensor]:
    if isinstance(edit, FramedEdit):
        framed = edit
        return lambda state, share, frame: blended(state, framed.apply_in(state, site, _known(frame)), share)
    if isinstance(edit, TimedEdit):
        timed = edit
        return lambda state, share, frame: timed.apply(state, site, share)
    return lambda state, share, frame: edit.apply(state, site)


def _known(frame: Frame | None) -> Frame:
    if frame is None:
        raise SteeringError("A steered part of the model was called by itself; run the whole model.")
    return frame


def _required(line: _Line, site: Site) -> Operator:
    operator = line.operator(site)
    assert operator is not None
    return operator


def _key(row: Sequence[_Line]) -> tuple[int, ...]:
    return tuple(id(line.edit) for line in row)


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _name(edit: Edit) -> str:
    shown = ", ".join(str(site) for site in edit.sites[:3])
    more = f" and {len(edit.sites) - 3} more" if len(edit.sites) > 3 else ""
    return f"{type(edit).__name__} at {shown}{more}"
