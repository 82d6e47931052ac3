"""Many variants of one forward pass, each recomputed only from where it differs.

A change at block l leaves everything before block l as it was. `record` runs prompts once and keeps the residual
stream at the input of some blocks; `sweep` restarts the stack from there for any number of variants: the blocks
before l do nothing, the kept stream enters block l, and the variants of all prompts are rows of one batch.

    recording = record(model, prompts, layers=range(model.n_layers))
    scores = sweep(recording, PerVariant(...), variants=40, measure=lambda logits, prompts: ...)

What a variant does is a `Change`: it sees the states as [variant, prompt, position, width]. The unembedding runs at
each prompt's last token only. Whether restarting is exact for a family is not assumed: `record` restarts once without
a change and compares the logits; a family that fails runs whole and `Recording.restarts` says so.

Executed token-layers: sum over sweeps of variants x tokens x (n_layers - start), against variants x tokens x n_layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerlab.activations._memory import is_out_of_memory, release_cached_memory
from steerlab.errors import PromptError, SteeringError, SteerlabError
from steerlab.models import All, LanguageModel, Prompt, Site, Tokens
from steerlab.models.hooks import attach
from steerlab.progress import track

TOKEN_BUDGET = 8192
_EXACT = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the logits' spread; half precision rounds by shape

Forms = tuple[int, ...]
Measure = Callable[[Float[Tensor, "variant prompt vocab"], Int[Tensor, " prompt"]], Tensor]


class Change(Protocol):
    """What distinguishes the variants of a sweep."""

    @property
    def sites(self) -> Sequence[Site]:
        """Where the variants differ from the recorded run."""

    def apply(
        self, state: Float[Tensor, "variant prompt position width"], site: Site, variants: slice
    ) -> Tensor:
        """The changed states, float32 or wider, of the variants `variants` as a new tensor."""


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some prompts of like length: their numbers, their tokens, and the stream entering each recorded block."""

    prompts: Int[Tensor, " prompt"]
    tokens: Tokens
    streams: dict[int, Float[Tensor, "prompt position d_model"]]


@dataclass(frozen=True, eq=False)
class Recording:
    """One plain run of some prompts, to restart from.

    Attributes:
        model: whose run it was.
        batches: the prompts in batches, with their streams.
        logits: after each prompt's last token [prompt, vocab], float32 on the model's device.
        layers: blocks whose input was kept, ascending.
        forms: how many things each block returns (0: a bare tensor), which a skipped block must return as well.
        restarts: whether restarting gave the run's own logits; otherwise every sweep runs the whole stack.
    """

    model: LanguageModel
    batches: tuple[_Batch, ...]
    logits: Float[Tensor, "prompt vocab"]
    layers: tuple[int, ...]
    forms: Forms
    restarts: bool

    def __len__(self) -> int:
        """Prompts of the recording."""
        return len(self.logits)

    @property
    def tokens(self) -> int:
        """Padded tokens of all prompts."""
        return sum(batch.tokens.input_ids.numel() for batch in self.batches)

    def start(self, sites: Sequence[Site]) -> int:
        """The deepest recorded block from which a change at `sites` can be run."""
        needed = min(first_block(site, self.model.n_layers) for site in sites)
        usable = [layer for layer in self.layers if layer <= needed]
        return max(usable, default=0) if self.restarts else 0


def record(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    layers: Iterable[int] = (),
    *,
    token_budget: int = TOKEN_BUDGET,
) -> Recording:
    """Run the prompts once, unsteered, and keep the stream that enters the blocks `layers`.

    Memory: prompts x positions x d_model for each layer, in the model's dtype and on its device.

    Raises:
        PromptError: no prompt.
        SiteError: a layer the model has not.
    """
    if isinstance(prompts, str | Prompt) or not prompts:
        raise PromptError("Prompts come as a list with at least one prompt; put a single one in brackets.")
    kept = tuple(sorted(set(layers)))
    sites = {layer: Site("resid_pre", layer) for layer in kept}
    for site in sites.values():
        model.require(site)
    batches: list[_Batch] = []
    logits = torch.empty(len(prompts), model.vocab_size, device=model.device)
    forms: dict[int, int] = {}
    with _noted(model, forms):
        for numbers, tokens in _batches(model, prompts, token_budget):
            streams: dict[int, Tensor] = {}
            reads = {site: _keep(streams, layer) for layer, site in sites.items()}
            found = model.run(tokens, read=reads, logits="last")
            assert found is not None
            logits[numbers] = found
            batches.append(_Batch(numbers, tokens, streams))
    whole = tuple(forms[layer] for layer in range(model.n_layers))
    recording = Recording(model, tuple(batches), logits, kept, whole, restarts=True)
    return replace(recording, restarts=not kept or _is_exact(recording))


def sweep(
    recording: Recording,
    change: Change,
    variants: int,
    measure: Measure,
    *,
    start: int | None = None,
    token_budget: int = TOKEN_BUDGET,
    progress: str | None = None,
) -> Float[Tensor, "variant prompt *value"]:
    """`measure` of the last token's logits of every variant of every prompt, on the CPU.

    Args:
        change: what the variants do.
        variants: how many there are.
        measure: `(logits [variant, prompt, vocab], numbers of the prompts) -> [variant, prompt, ...]`.
        start: block to restart from; by default the deepest recorded one before the change.
        token_budget: padded tokens of one batch (at least one variant); halved when memory runs out.
        progress: name of a progress bar.

    Raises:
        SteeringError: the change begins before `start`.
        SteerlabError: one variant does not fit in memory.
    """
    model = recording.model
    for site in change.sites:
        model.require(site)
    latest = recording.start(change.sites)
    begin = latest if start is None else start
    if begin > latest:
        first = min(change.sites, key=lambda site: first_block(site, model.n_layers))
        raise SteeringError(
            f"The change at {first} lies before block {begin}, where the sweep is to restart; restart at {latest} or "
            "earlier."
        )
    steps = list(_steps(recording, variants, token_budget))
    found: Tensor | None = None
    with torch.inference_mode():
        for batch, some in track(steps, progress, len(steps)) if progress else steps:
            for part, values in _halving(recording, batch, some, change, begin, measure):
                if found is None:
                    found = torch.empty((variants, len(recording), *values.shape[2:]), dtype=values.dtype)
                found[part, batch.prompts] = values.cpu()
    assert found is not None
    return found


def first_block(site: Site, n_layers: int) -> int:
    """The first block that must run again when `site` changes; the last block for what comes after it."""
    if site.layer is None:
        return 0 if site.name == "embed" else n_layers - 1
    # What leaves a block enters the next one, so the block itself need not run again.
    return min(site.layer + (site.name == "resid_post"), n_layers - 1)


# -- private, in the order they are called --


def _batches(
    model: LanguageModel, prompts: Sequence[str | Prompt], token_budget: int
) -> Iterator[tuple[Tensor, Tokens]]:
    """Right-padded batches of like length; nothing is masked: in a causal model no token sees the padding."""
    lengths = model.tokenize(prompts).lengths
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    groups: list[list[int]] = []
    for number in order:
        fits = groups and (len(groups[-1]) + 1) * lengths[number] <= token_budget
        if fits and lengths[number] <= 1.25 * lengths[groups[-1][0]]:
            groups[-1].append(number)
        else:
            groups.append([number])
    for group in groups:
        tokens = model.tokenize([prompts[number] for number in group], padding_side="right")
        ids = tokens.input_ids
        yield (
            torch.tensor(group),
            replace(
                tokens,
                attention_mask=torch.ones_like(ids),
                position_ids=torch.arange(ids.shape[1]).expand_as(ids),
            ),
        )


def _keep(streams: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    def keep(state: Tensor) -> None:
        streams[layer] = state.clone()

    return keep


def _is_exact(recording: Recording) -> bool:
    """Whether the run restarted at its deepest recorded block gives its own logits (first batch)."""
    batch, model = recording.batches[0], recording.model
    tolerance = _EXACT.get(model.dtype, 0.05)
    try:
        again = _run(model, batch, slice(0, 1), None, recording.layers[-1], recording.forms)[0]
    except (TypeError, RuntimeError, IndexError, AttributeError):
        return False  # a stack that hands more than the stream from block to block
    plain = recording.logits[batch.prompts]
    return bool((again - plain).abs().max() <= tolerance * plain.std().clamp(min=1e-6) + 1e-6)


def _steps(recording: Recording, variants: int, token_budget: int) -> Iterator[tuple[_Batch, slice]]:
    for batch in recording.batches:
        each = max(1, token_budget // batch.tokens.input_ids.numel())
        for first in range(0, variants, each):
            yield batch, slice(first, min(variants, first + each))


def _halving(
    recording: Recording, batch: _Batch, variants: slice, change: Change, start: int, measure: Measure
) -> Iterator[tuple[slice, Tensor]]:
    """The values of some variants, in halves where memory runs out."""
    model, forms = recording.model, recording.forms
    try:
        logits = _run(model, batch, variants, change, start, forms)
        values: Tensor | None = measure(logits, batch.prompts)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        values = None
    if values is not None:
        yield variants, values
        return
    release_cached_memory()
    if variants.stop - variants.start == 1:
        raise SteerlabError(
            f"{len(batch.prompts)} prompts of {batch.tokens.width} tokens do not fit in the memory of {model.device}; "
            "record them with a smaller token_budget."
        )
    middle = (variants.start + variants.stop) // 2
    for half in (slice(variants.start, middle), slice(middle, variants.stop)):
        yield from _halving(recording, batch, half, change, start, measure)


def _run(
    model: LanguageModel, batch: _Batch, variants: slice, change: Change | None, start: int, forms: Forms
) -> Float[Tensor, "variant prompt vocab"]:
    """Logits of a batch's last tokens under some variants, blocks before `start` left out."""
    n = variants.stop - variants.start
    with ExitStack() as stack:
        if start:
            stack.enter_context(_skipped(model, forms[:start]))
            entry = repeat(batch.streams[start], "prompt ... -> (variant prompt) ...", variant=n)
            tap = model.anatomy.tap(Site("resid_pre", start))
            stack.callback(attach(tap, model.frames, lambda _: entry).remove)
        if change is not None:
            stack.enter_context(model.steering(_AsEdit(change, variants, start)))
        logits = model.run(_repeated(batch.tokens, n), logits="last")
    assert logits is not None
    return rearrange(logits, "(variant prompt) vocab -> variant prompt vocab", variant=n)


class _AsEdit:
    """A change as an edit of the batch whose rows are variant by variant the prompts."""

    positions = All()

    def __init__(self, change: Change, variants: slice, start: int) -> None:
        self._change, self._variants = change, variants
        # What left the last skipped block is changed where it enters the first one that runs.
        moved = {Site("resid_pre", start): Site("resid_post", start - 1)} if start else {}
        self._named = {
            new: old for old in change.sites for new in [next((a for a, b in moved.items() if b == old), old)]
        }

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._named)

    def apply(self, state: Tensor, site: Site) -> Tensor:
        n = self._variants.stop - self._variants.start
        wide = rearrange(state, "(variant prompt) ... -> variant prompt ...", variant=n)
        new = self._change.apply(wide, self._named[site], self._variants)
        return rearrange(new, "variant prompt ... -> (variant prompt) ...")

    def check(self, model: LanguageModel) -> None:
        for site in self.sites:
            model.require(site)


def _repeated(tokens: Tokens, n: int) -> Tokens:
    return replace(
        tokens,
        input_ids=tokens.input_ids.repeat(n, 1),
        attention_mask=tokens.attention_mask.repeat(n, 1),
        position_ids=tokens.position_ids.repeat(n, 1),
        offsets=None,
        prompts=tokens.prompts * n,
        lengths=tokens.lengths * n,
    )


@contextmanager
def _noted(model: LanguageModel, forms: dict[int, int]) -> Iterator[None]:
    """Note how many things each block returns: 0 for a bare tensor."""

    def note(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            forms[layer] = 0 if isinstance(output, Tensor) else len(output)

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(model.anatomy.blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _skipped(model: LanguageModel, forms: Forms) -> Iterator[None]:
    """The first blocks hand on their input. They stay in the stack, which asks them for their attention types."""
    blocks: list[nn.Module] = model.anatomy.blocks[: len(forms)]
    # An offloading engine puts a forward of its own on the instance; it is put back.
    own = [block.__dict__.get("forward") for block in blocks]
    for block, form in zip(blocks, forms, strict=True):
        block.__dict__["forward"] = _identity(form)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward


def _identity(form: int) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, *[None] * (form - 1)) if form else hidden_states

    return forward
