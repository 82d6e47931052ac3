"""Plain PyTorch hooks on a tap: pass the state to a function and write back what the function returns.

A hook always passes the state as `[batch, position, width]`: modules that work on flattened tokens (OPT's
MLP) are reshaped by the frame, which is the shape and the starting column of the forward pass in progress.
Hooks act only in the context that placed them and in contexts that start from it (see `scopes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.errors import SteeringError
from steerlab.models.anatomy import Tap
from steerlab.models.operators import precise
from steerlab.models.prompts import Prompt, Tokens
from steerlab.models.scopes import Entry, Scope

State = Float[Tensor, "batch position width"]
Visitor = Callable[[State], State | None]


@dataclass(eq=False)
class Call:
    """One call of `generate`: its prompts, and by their number the tokens written, where that is known already."""

    prompts: Sequence[Prompt]
    written: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Frame:
    """The forward pass in progress: columns `start` to `start + length` of a batch of `batch` rows.

    `tokens` is the tokenised batch when the toolkit itself runs the pass, `width` the columns of
    the prompt: those of `tokens`, or of the raw call that began the sequence. `mask` is a raw call's attention mask.
    `inputs` are the tokens of the pass; `ends` those that end a text, where they are known. `call` is the same object
    in all passes of one `generate`; `written` says of each row how many tokens stand behind the prompt, where they are
    read again.
    """

    start: int
    length: int
    batch: int
    tokens: Tokens | None
    width: int
    mask: Tensor | None = None
    inputs: Tensor | None = None
    ends: tuple[int, ...] = ()
    call: Call | None = None
    written: tuple[int, ...] | None = None

    def require_known_prompt(self, what: object) -> None:
        """Raise `SteeringError` in a raw call whose prompt may go on: several tokens behind others.

        They may be the prompt's next chunk or tokens that an assistant proposes; nothing in the call tells.
        """
        if self.tokens is None and self.start > 0 and self.length > 1:
            raise SteeringError(
                f"{what} depends on where the prompt ends, which a raw call of {self.length} tokens behind "
                f"{self.start} others does not say (a chunk of the prompt, or proposed tokens?); run it inside "
                "`with model.prompted(tokens)`, or call model.generate."
            )

    @property
    def repeats(self) -> int:
        """Rows that run for each prompt (beams, or several samples)."""
        return 1 if self.tokens is None else self.batch // len(self.tokens)

    @cached_property
    def prompt(self) -> Tokens:
        """The prompt's batch; of a raw call only what its attention mask shows of it."""
        if self.tokens is not None:
            return self.tokens
        mask = torch.ones(self.batch, self.width, dtype=torch.long)
        if self.mask is not None:
            if self.mask.dim() != 2:
                raise SteeringError(
                    f"The raw call's attention mask has {self.mask.dim()} axes and does not say where each row begins; "
                    "pass [batch, position], or run inside `with model.prompted(tokens)`."
                )
            mask = self.mask[:, : self.width].long().cpu()
        return Tokens(
            input_ids=torch.zeros_like(mask),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            offsets=None,
            prompts=(),
            lengths=tuple(mask.sum(dim=1).tolist()),
            padding_side="left" if bool(mask[:, -1].all()) else "right",
        )

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The caller's prompt behind every row."""
        if self.tokens is None:
            return tuple(range(self.batch))
        return tuple(row for row in self.tokens.rows for _ in range(self.repeats))


@dataclass(frozen=True, eq=False)
class _Batch:
    """A tokenised batch whose passes run, and the tokens that end its texts."""

    tokens: Tokens
    ends: tuple[int, ...]
    written: tuple[int, ...] | None = None


@dataclass(eq=False)
class _Watch:
    """One follower of the forward passes.

    raw_width: the prompt's width of the raw call that began the last sequence. widths: the same by cache. counts:
    tokens behind each cache that keeps no length itself (state spaces).
    """

    raw_width: int | None = None
    widths: WeakKeyDictionary[Any, int] = field(default_factory=WeakKeyDictionary)
    counts: WeakKeyDictionary[Any, int] = field(default_factory=WeakKeyDictionary)


#: The forward pass in progress in each context.
_CURRENT: ContextVar[tuple[Frames, Frame] | None] = ContextVar("steerlab_frame", default=None)


class Frames:
    """Knows the forward pass in progress in each context, while it is watched."""

    def __init__(self) -> None:
        self._batches: Scope[_Batch] = Scope()
        self._watches: Scope[_Watch] = Scope()
        self._hooks: Scope[_Watch] = Scope()
        #: Names of the edits in force that go by the rows of a batch, which sampling repeats and drops.
        self.by_row: Scope[list[str]] = Scope()
        #: The call of `generate` that runs.
        self.call: Scope[Call] = Scope()
        #: Readers that stand behind every edit: each is called to place its hooks again when edits were placed.
        self.readers: Scope[Callable[[], None]] = Scope()

    @property
    def current(self) -> Frame | None:
        """The forward pass in progress."""
        current = _CURRENT.get()
        return current[1] if current is not None and current[0] is self else None

    @property
    def watched(self) -> bool:
        """Whether hooks of this context are in place: inside `steering`, or during a read."""
        return bool(self._watches.here())

    @property
    def hooked(self) -> bool:
        """The same, or single hooks outside of both."""
        return self.watched or bool(self._hooks.here())

    @contextmanager
    def watch(self, base: nn.Module) -> Iterator[None]:
        """Follow the forward passes of `base` inside the context."""
        before = _CURRENT.get()
        with self._watches.holding(_Watch()) as entry:

            def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if entry.is_here:
                    frame = self._frame(entry.value, args, kwargs)
                    if self._watches.here()[0] is entry:  # it has seen the sequence from further back
                        _CURRENT.set((self, frame))

            def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if entry.is_here:
                    _remember(entry.value, self.current, output)

            handles = [
                base.register_forward_pre_hook(begin, with_kwargs=True),
                base.register_forward_hook(end),
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                _CURRENT.set(before)  # of the pass around, where this one ran inside another's hook

    def placed(self) -> None:
        """Edits were placed: readers go behind them."""
        for entry in self.readers.here():
            entry.value()

    @contextmanager
    def of(
        self, tokens: Tokens, ends: Sequence[int] = (), written: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Forward passes inside the context belong to `tokens`; rows that wrote one of `ends` are over.

        written: tokens that stand behind each row, where they are read again.
        """
        counts = None if written is None else tuple(written)
        with self._batches.holding(_Batch(tokens, tuple(ends), counts)):
            yield

    def owner(self) -> tuple[Entry[_Watch], bool]:
        """Whose hooks are placed now: those of the innermost watch, else of a new entry (True) that its user closes."""
        watches = self._watches.here()
        return (watches[-1], False) if watches else (self._hooks.enter(_Watch()), True)

    def _frame(self, watch: _Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
        inputs = kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs.get("inputs_embeds")
        if inputs is None:
            inputs = args[0]
        ids = inputs if inputs.dim() == 2 else None
        batch, length = inputs.shape[:2]
        cache, mask = kwargs.get("past_key_values", kwargs.get("cache_params")), kwargs.get("attention_mask")
        batches = self._batches.here()
        start = 0 if cache is None else _behind(watch, cache, length)
        if batches:
            tokens, ends = batches[-1].value.tokens, batches[-1].value.ends
            written = batches[-1].value.written
            _require_whole_rows(batch, len(tokens))
            calls = self.call.here()
            call = calls[-1].value if calls else None
            return Frame(
                start, length, batch, tokens, tokens.width, inputs=ids, ends=ends, call=call, written=written
            )
        if start == 0:
            watch.raw_width = width = length
        else:  # the last is of a context that was entered in the middle of a sequence
            width = watch.widths.get(cache, watch.raw_width or start)
        seen = mask if isinstance(mask, Tensor) else None
        return Frame(start, length, batch, None, width, seen, inputs=ids)


def _remember(watch: _Watch, frame: Frame | None, output: Any) -> None:
    """What a later pass of a sequence is told of by its cache alone, which may be made in the first pass."""
    cache = getattr(output, "past_key_values", None)
    cache = getattr(output, "cache_params", None) if cache is None else cache
    if frame is None or cache is None or not hasattr(cache, "__weakref__"):
        return
    if frame.start == 0:
        watch.widths[cache] = frame.width
        watch.counts.setdefault(cache, frame.length)


def _behind(watch: _Watch, cache: Any, length: int) -> int:
    """Tokens behind a pass: what its cache says, else what was counted, since state spaces keep no length."""
    try:
        return int(cache.get_seq_length())
    except ValueError:
        before = watch.counts.get(cache, 0)
        watch.counts[cache] = before + length
        return before


def _require_whole_rows(batch: int, prompts: int) -> None:
    if batch % prompts:
        raise SteeringError(
            f"A batch of {prompts} prompts runs as {batch} rows, so positions are unclear; run each equally often."
        )


# Long: its hooks are closures over one tap.
def attach(
    tap: Tap,
    frames: Frames,
    visit: Visitor,
    *,
    clone: bool = False,
    first: bool = False,
    entry: Entry[Any] | None = None,
) -> Callable[[], None]:
    """Call `visit` with the state at `tap`; what it returns, unless `None`, replaces the state.

    Args:
        clone: hand over a copy, for places where the model later changes its tensor in place.
        first: run before the hooks that are already there.
        entry: whose hook it is; None: of the innermost context that watches the passes.

    Returns:
        What removes the hook.
    """
    owner, is_own = (entry, False) if entry is not None else frames.owner()

    def replaced(raw: Tensor) -> Tensor | None:
        state = raw
        if raw.dim() == 2 and (frame := frames.current) is not None:
            state = raw.reshape(frame.batch, frame.length, -1)
        if tap.scale != 1.0:
            state = state * tap.scale
        elif clone:
            state = state.clone()
        new = visit(state)
        if new is None or (state is raw and new.shape == raw.shape):
            return new
        new = new.reshape(raw.shape)
        if tap.scale != 1.0:
            # The change is carried over, not the state: what an edit leaves alone keeps its bits.
            change = (precise(new) - precise(state).reshape(raw.shape)) / tap.scale
            new = (raw + change).to(raw.dtype)
        return new

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not owner.is_here:
            return None
        new = replaced(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not owner.is_here:
            return None
        # Blocks and MLPs return a tensor, attention a tuple: [0] of a tensor would be the batch's first row.
        if isinstance(output, Tensor):
            return replaced(output)
        new = replaced(output[0])
        return None if new is None else type(output)((new, *output[1:]))

    if tap.side == "input":
        handle = tap.module.register_forward_pre_hook(on_input, with_kwargs=True, prepend=first)
    else:
        handle = tap.module.register_forward_hook(on_output, prepend=first)

    def remove() -> None:
        handle.remove()
        if is_own:
            owner.close()

    return remove
