"""Interventions by request in packed passes: continuous batching runs many texts as one row of tokens.

    x_t ← e_r(x_t)   for the tokens t of the requests that carry row r; every other token keeps its bits

transformers says before each pass which request owns which columns, and at which place of its text they stand. So
selectors and schedules mean what they mean in `model.steering`; a condition is refused. What is not finite after an
edit is put back and its request named, since a packed attention would carry one request's NaN into all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models import All, Edit, EditTable, LanguageModel, Selector, Site, Tokens
from steerlab.models.edits import FramedEdit, TimedEdit
from steerlab.models.operators import Operator
from steerlab.steering.taps import placed


@dataclass(frozen=True)
class Columns:
    """The part of a packed pass that belongs to one request.

    Attributes:
        request: its name.
        start: the first column of the pass.
        length: how many there are.
        first: the place of the first of them in the request's text.
        prompt: tokens of its prompt.
        writes: whether the pass decides its next token.
    """

    request: str
    start: int
    length: int
    first: int
    prompt: int
    writes: bool

    @property
    def step(self) -> int:
        """The number of the token that the pass decides, counted from 0."""
        return self.first + self.length - self.prompt


class Pass:
    """The packed pass in progress, in the thread that runs it; every reader and editor looks here."""

    def __init__(self) -> None:
        self.columns: tuple[Columns, ...] = ()
        self._thread = 0

    def begin(self, requests: Iterable[Any]) -> None:
        """Note who is in the next pass; `requests` are transformers' future states, already moved on."""
        found: list[Columns] = []
        start = 0
        for future in requests:
            state, length = future.state, future.query_length
            prompt = state._true_initial_tokens or len(state.initial_tokens)  # behind a soft reset
            first = state.position_offset - length
            found.append(Columns(state.request_id, start, length, first, prompt, future.has_new_token))
            start += length
        self.columns, self._thread = tuple(found), threading.get_ident()

    def here(self, state: Tensor) -> tuple[Columns, ...]:
        """Who is in the pass that a hook is called in; nobody in another thread's.

        Raises:
            SteeringError: the pass has other tokens than was said.
        """
        if not self.columns or threading.get_ident() != self._thread:
            return ()
        tokens, width = state.shape[:-1].numel(), self.columns[-1].start + self.columns[-1].length
        if tokens != width:
            raise SteeringError(
                f"A packed pass has {tokens} tokens where {width} were said to come; run the model by continuous "
                "batching alone while it is served."
            )
        return self.columns


class Announced:
    """transformers' processors of a packed pass; first they tell who is in it, and last they may choose.

    Args:
        inner: its own `ContinuousBatchingLogitsProcessorList`.
        begin: told the requests of each pass before it runs.
        choose: changes the scores by which the next tokens are taken, a row a request that writes.
    """

    def __init__(
        self,
        inner: Any,
        begin: Callable[[Iterable[Any]], None],
        choose: Callable[[Float[Tensor, "row vocab"]], Float[Tensor, "row vocab"]] | None = None,
    ) -> None:
        self._inner, self._begin, self._choose = inner, begin, choose
        self.do_processing = bool(inner.do_processing) or choose is not None

    def prepare_tensor_args(self, requests_in_batch: Any, arg_storage: Tensor) -> Tensor:
        """Tell who is in the pass, then fill transformers' own numbers."""
        self._begin(requests_in_batch)
        filled: Tensor = self._inner.prepare_tensor_args(requests_in_batch, arg_storage)
        return filled

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """The scores after transformers' processors and the choice."""
        new: Tensor = (
            self._inner(input_ids, scores, logits_processor_args) if self._inner.do_processing else scores
        )
        return new if self._choose is None else self._choose(new)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class PackedRows:
    """Interventions of requests at some sites of a model, in packed passes.

    Args:
        model: a transformers model.
        sites: where the interventions of any request may act.
        now: the pass in progress.

    Raises:
        SteeringError: a site that is no module's output.
    """

    def __init__(self, model: LanguageModel, sites: Iterable[Site], now: Pass) -> None:
        self.model, self._now = model, now
        self._rows: dict[str, Row] = {}
        self._bad: list[tuple[tuple[str, ...], Tensor]] = []
        self._handles: list[Any] = []
        sites = list(dict.fromkeys(sites))
        for site in sites:
            model.require(site)
            if site.name == "resid_mid":
                raise SteeringError(
                    f"{site} is no module's output, which packed passes need; take mlp_out or resid_post."
                )
        for site in sites:
            self._handles.append(placed(model.anatomy.tap(site), self._editor(site)))

    def assign(self, request: str, row: Row) -> None:
        """Give a request its interventions, before it is added."""
        self._rows[request] = row

    def release(self, request: str) -> None:
        """Forget a request."""
        self._rows.pop(request, None)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def not_finite(self) -> set[str]:
        """Requests whose interventions gave numbers that are not finite since the last call; waits for the device."""
        bad, self._bad = self._bad, []
        return {
            name for names, flags in bad for name, is_bad in zip(names, flags.tolist(), strict=True) if is_bad
        }

    def _editor(self, site: Site) -> Callable[[Tensor], Tensor]:
        def edited(state: Tensor) -> Tensor:
            groups: dict[int, tuple[Row, list[Columns]]] = {}
            for columns in self._now.here(state):
                row = self._rows.get(columns.request)
                if row is not None and site in row.sites:
                    groups.setdefault(id(row), (row, []))[1].append(columns)
            if not groups:
                return state
            flat = state.reshape(-1, state.shape[-1]).clone()
            for row, owned in groups.values():
                for part in row.at(site):
                    self._apply(part, flat, owned)
            return flat.reshape(state.shape)

        return edited

    def _apply(self, part: _Part, flat: Float[Tensor, "token width"], owned: Sequence[Columns]) -> None:
        """Change the tokens of some requests in place."""
        places: list[int] = []
        shares: list[float] = []
        owners: list[int] = []
        for number, columns in enumerate(owned):
            for offset in range(columns.length):
                share = part.share(columns.first + offset, columns.prompt)
                if share != 0.0:
                    places.append(columns.start + offset)
                    shares.append(share)
                    owners.append(number)
        if not places:
            return
        part.acted = True
        index = torch.tensor(places, device=flat.device)
        before = flat[index]
        after = part.change(before, shares).to(flat.dtype)
        fine = torch.isfinite(after).all(dim=-1)
        flat.index_copy_(0, index, torch.where(fine[:, None], after, before))
        counts = torch.zeros(len(owned), device=flat.device)
        counts.index_add_(0, torch.tensor(owners, device=flat.device), (~fine).to(counts.dtype))
        self._bad.append((tuple(columns.request for columns in owned), counts > 0))


class Row:
    """What one request carries: its interventions by site, those that share positions and schedule composed.

    Args:
        edits: in the order in which they act.
        model: checked against it.
        prompt: the request's prompt, tokenized alone, for selectors that ask for it.

    Raises:
        SteeringError: a table, a condition, or an edit that depends on the forward pass.
        DirectionError: a direction of another model.
    """

    def __init__(self, edits: Sequence[Edit], model: LanguageModel, prompt: Tokens | None = None) -> None:
        self.edits = tuple(edits)
        for edit in edits:
            _require_packable(edit, model)
        self.sites = tuple(dict.fromkeys(site for edit in edits for site in edit.sites))
        self._parts = {
            site: _parts([edit for edit in edits if site in edit.sites], site, prompt) for site in self.sites
        }

    def at(self, site: Site) -> list[_Part]:
        """What acts at a site."""
        return self._parts[site]

    def require_acted(self) -> None:
        """Raise `SteeringError` for an edit that never acted."""
        for parts in self._parts.values():
            for part in parts:
                if not part.acted:
                    raise SteeringError(
                        f"{type(part.edits[0]).__name__} never acted: no pass reached its positions "
                        f"({part.edits[0].positions}); change them, or write more tokens."
                    )


@dataclass(eq=False)
class _Part:
    """Neighbouring edits of one site that share positions and schedule."""

    edits: list[Edit]
    site: Site
    chosen: frozenset[int] | None
    acted: bool = False
    _operator: Operator | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        operators = [_operator(edit, self.site) for edit in self.edits]
        known = [operator for operator in operators if operator is not None]
        if len(known) == len(operators):
            self._operator = Operator.composed(known)
        self._schedule = getattr(self.edits[0], "schedule", None)

    def share(self, place: int, prompt: int) -> float:
        """How much of the change a token gets, by its place in the text."""
        step = place - prompt
        positions = self.edits[0].positions
        in_prompt = self.chosen is None or place in self.chosen
        if not (in_prompt if step < 0 else positions.selects(step, prompt)):
            return 0.0
        return 1.0 if self._schedule is None else float(self._schedule(max(0, step)))

    def change(self, state: Float[Tensor, "token width"], shares: Sequence[float]) -> Tensor:
        """The changed states of the tokens that are acted on, at least float32."""
        whole = all(share == 1.0 for share in shares)
        share: Any = 1.0 if whole else torch.tensor(shares, device=state.device)[:, None]
        wide = state.to(torch.promote_types(state.dtype, torch.float32))
        if self._operator is not None:
            new: Tensor = self._operator.to(state.device, wide.dtype)(wide, share)
            return new
        (edit,) = self.edits
        if isinstance(edit, TimedEdit):
            return edit.apply(wide[None], self.site, share if whole else share[None])[0]
        new = edit.apply(wide[None], self.site)[0]
        return new if whole else torch.lerp(wide, new, share)


def _parts(edits: Sequence[Edit], site: Site, prompt: Tokens | None) -> list[_Part]:
    groups: list[list[Edit]] = []
    for edit in edits:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.positions == edit.positions
            and getattr(last, "schedule", None) is getattr(edit, "schedule", None)
            and _operator(last, site) is not None
            and _operator(edit, site) is not None
        ):
            groups[-1].append(edit)
        else:
            groups.append([edit])
    return [_Part(group, site, _chosen(group[0].positions, prompt)) for group in groups]


def _chosen(positions: Selector, prompt: Tokens | None) -> frozenset[int] | None:
    """Places of the prompt that a selector picks; None for all."""
    if isinstance(positions, All):
        return None
    if not positions.in_prompt:
        return frozenset()
    if prompt is None:
        raise SteeringError(
            f"What acts at {positions} must know the prompt; act on All() or Generated() here."
        )
    return frozenset(positions.resolve(prompt, 0))


def _operator(edit: Edit, site: Site) -> Operator | None:
    return edit.operator(site) if isinstance(edit, TimedEdit) else None


def _require_packable(edit: Edit, model: LanguageModel) -> None:
    name = type(edit).__name__
    if isinstance(edit, EditTable):
        raise SteeringError(f"A {name} inside a row of a table has no prompts to go by; write its edits out.")
    edit.check(model)
    if getattr(edit, "condition", None) is not None:
        raise SteeringError(
            f"{name} has a condition, which packed passes do not decide; leave it out, or use model.steering with "
            "model.generate."
        )
    if isinstance(edit, FramedEdit):
        raise SteeringError(
            f"{name} depends on the forward pass, which packed passes do not show; use model.steering with "
            "model.generate."
        )
