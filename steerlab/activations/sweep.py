"""Many variants of one forward pass, each recomputed only from where it differs.

A change at block l leaves everything before block l as it was. `record` runs prompts once and keeps the residual
stream at the input of some blocks; `sweep` restarts the stack from there for any number of variants: the blocks
before l do nothing, the kept stream enters block l, and the variants of all prompts are rows of one batch.

    recording = record(model, prompts, layers=range(model.n_layers))
    scores = sweep(recording, PerVariant(...), variants=40, measure=lambda logits, prompts: ...)

What a variant does is a `Change`: it sees the states as [variant, prompt, position, width] and the numbers of both.
The unembedding runs at each prompt's last token only. Whether restarting is exact for a family is not assumed:
`record` restarts once at every kept block without a change and compares the logits; blocks where they differ are not
restarted from, and `Recording.restarts` and a warning in the log say so.

Executed token-layers: sum over sweeps of variants x tokens x (n_layers - start), against variants x tokens x n_layers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.activations._restart import Batch, Change, Forms, forms_noted, restarted, steered_before
from steerlab.batching import tokens_of_a_batch
from steerlab.errors import PromptError, SteeringError, SteerlabError
from steerlab.models import LanguageModel, Prompt, Site, Tokens
from steerlab.models.batches import batches_by_length, fits
from steerlab.models.memory import is_out_of_memory, release_cached_memory
from steerlab.progress import track

TOKEN_BUDGET = 8192
_LIKE_LENGTH = 1.25  # longest over shortest prompt of a batch
_EXACT = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the logits' spread; half precision rounds by shape
_log = logging.getLogger(__name__)

Measure = Callable[[Float[Tensor, "variant prompt vocab"], Int[Tensor, " prompt"]], Tensor]


@dataclass(frozen=True, eq=False)
class Recording:
    """One plain run of some prompts, to restart from.

    Attributes:
        model: whose run it was.
        batches: the prompts in batches, with their streams.
        logits: after each prompt's last token [prompt, vocab], float32 on the model's device.
        layers: blocks to restart from, ascending: those whose input was kept and from which restarting is exact.
        forms: how many things each block returns (0: a bare tensor), which a skipped block must return as well.
        restarts: whether restarting gave the run's own logits at every kept block.
    """

    model: LanguageModel
    batches: tuple[Batch, ...]
    logits: Float[Tensor, "prompt vocab"]
    layers: tuple[int, ...]
    forms: Forms
    restarts: bool
    _steered: Mapping[int, frozenset[int]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Prompts of the recording."""
        return len(self.logits)

    @property
    def tokens(self) -> int:
        """Padded tokens of all prompts."""
        return sum(batch.tokens.input_ids.numel() for batch in self.batches)

    def start(self, sites: Sequence[Site]) -> int:
        """The deepest block from which a change at `sites` can be run; 0 runs the whole stack."""
        needed = min(first_block(site, self.model.n_layers) for site in sites)
        return max((layer for layer in self.layers if layer <= needed), default=0)


def record(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    layers: Iterable[int] = (),
    *,
    token_budget: int = TOKEN_BUDGET,
) -> Recording:
    """Run the prompts once and keep the stream that enters the blocks `layers`.

    Inside `model.steering(...)` the steered run is kept; sweep it inside the same context.

    Memory: prompts x positions x d_model for each layer, in the model's dtype and on its device.

    Args:
        token_budget: padded tokens of one batch (at least one prompt); halved when memory runs out.

    Raises:
        PromptError: no prompt.
        SiteError: a layer the model has not.
        SteerlabError: one prompt does not fit in memory.
    """
    if isinstance(prompts, str | Prompt) or not prompts:
        raise PromptError("Prompts come as a list with at least one prompt; put a single one in brackets.")
    kept = tuple(sorted(set(layers)))
    for layer in kept:
        model.require(Site("resid_pre", layer))
    logits = torch.empty(len(prompts), model.vocab_size, device=model.device)
    forms: dict[int, int] = {}
    with forms_noted(model, forms):
        batches = tuple(_recorded(model, prompts, kept, token_budget, logits))
    recording = Recording(
        model,
        batches,
        logits,
        kept,
        tuple(forms[layer] for layer in range(model.n_layers)),
        restarts=True,
        _steered={layer: steered_before(model, layer) for layer in kept},
    )
    exact = tuple(layer for layer in kept if not layer or _is_exact(recording, layer))
    if exact != kept:
        _log.warning(
            "%s hands more than the residual stream from block to block, so %d of %d kept blocks cannot be restarted "
            "from; changes there run from an earlier block.",
            model.architecture,
            len(kept) - len(exact),
            len(kept),
        )
    return replace(recording, layers=exact, restarts=exact == kept)


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
        token_budget: padded tokens of one batch (at least one row); halved when memory runs out.
        progress: name of a progress bar.

    Raises:
        SteeringError: the change begins before `start`, `start` was not recorded, or the blocks left out are steered
            otherwise than when they were recorded.
        SteerlabError: no variant, or one variant of one prompt does not fit in memory.
    """
    model = recording.model
    if variants < 1:
        raise SteerlabError(f"A sweep of {variants} variants has nothing to run; give at least one.")
    for site in change.sites:
        model.require(site)
    begin = _begin(recording, change, start)
    steps = list(_steps(recording, variants, tokens_of_a_batch(token_budget)))
    results: Tensor | None = None
    with torch.inference_mode():
        for batch, share in track(steps, progress, len(steps)) if progress else steps:
            for part, prompts, values in _halving(recording, batch, share, change, begin, measure):
                if results is None:
                    results = torch.empty((variants, len(recording), *values.shape[2:]), dtype=values.dtype)
                results[part, prompts] = values.cpu()
    assert results is not None
    return results


def first_block(site: Site, n_layers: int) -> int:
    """The first block that must run again when `site` changes; the last block for what comes after it."""
    if site.layer is None:
        return 0 if site.name == "embed" else n_layers - 1
    # What leaves a block enters the next one, so the block itself need not run again.
    return min(site.layer + (site.name == "resid_post"), n_layers - 1)


# -- private, in the order they are called --


def _recorded(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    layers: Sequence[int],
    token_budget: int,
    logits: Tensor,
) -> Iterator[Batch]:
    """The batches with their streams; their logits go into the rows of `logits`."""
    groups = batches_by_length(model.lengths(prompts), tokens_of_a_batch(token_budget), stretch=_LIKE_LENGTH)
    waiting = deque(group[::-1] for group in reversed(groups))  # the longest prompt comes last
    while waiting:
        group = waiting.popleft()
        tokens = model.tokenize([prompts[number] for number in group], padding_side="right").unmasked()
        streams: dict[int, Tensor] = {}
        reads = {Site("resid_pre", layer): _keep(streams, layer) for layer in layers}
        found: list[Tensor] = []
        if fits(partial(_read_last, model, tokens, reads, found)):
            numbers, last_logits = torch.tensor(group), found[0]
            logits[numbers.to(logits.device)] = last_logits
            yield Batch(numbers, tokens, streams)
            continue
        streams.clear()
        release_cached_memory()
        if len(group) == 1:
            raise SteerlabError(
                f"Prompt {group[0]} with {tokens.width} tokens does not fit in the memory of {model.device} even "
                "alone; shorten it or load the model in a smaller dtype."
            )
        waiting.extendleft((group[len(group) // 2 :], group[: len(group) // 2]))


def _read_last(
    model: LanguageModel, tokens: Tokens, reads: Mapping[Site, Callable[[Tensor], None]], found: list[Tensor]
) -> None:
    logits = model.run(tokens, read=reads, logits="last")
    assert logits is not None
    found.append(logits)


def _keep(streams: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    def keep(state: Tensor) -> None:
        streams[layer] = state.clone()

    return keep


def _is_exact(recording: Recording, layer: int) -> bool:
    """Whether the run of the longest prompt, restarted at a block, gives its own logits."""
    batch, model = recording.batches[-1].part(slice(-1, None)), recording.model
    try:
        hidden = restarted(model, batch, slice(0, 1), None, layer, recording.forms)[0]
        again = torch.cat([logits for _, logits in model.logits_in_slices(hidden)])
    except (TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return False  # a stack that hands more than the stream from block to block
    plain = recording.logits[batch.prompts.to(recording.logits.device)]
    error_size = (again - plain).square().mean().sqrt()
    return bool(error_size <= _EXACT.get(model.dtype, 0.05) * plain.std().clamp(min=1e-6))


def _begin(recording: Recording, change: Change, start: int | None) -> int:
    """The block to restart from, proved to lie before the change and behind nothing that is steered anew."""
    model = recording.model
    latest = recording.start(change.sites)
    begin = latest if start is None else start
    if begin > latest:
        first = min(change.sites, key=lambda site: first_block(site, model.n_layers))
        raise SteeringError(
            f"The change at {first} lies before block {begin}, where the sweep is to restart; restart at {latest} or "
            "earlier."
        )
    if begin and begin not in recording.layers:
        raise SteeringError(
            f"The stream entering block {begin} was not kept; record(..., layers=[{begin}]), or restart at 0."
        )
    if begin and steered_before(model, begin) != recording._steered[begin]:
        raise SteeringError(
            f"Blocks before {begin} are steered otherwise than when they were recorded, and a sweep leaves them out; "
            "record inside the same model.steering(...) context."
        )
    return begin


def _steps(recording: Recording, variants: int, token_budget: int) -> Iterator[tuple[Batch, slice]]:
    for batch in recording.batches:
        size = max(1, token_budget // batch.tokens.input_ids.numel())
        for first in range(0, variants, size):
            yield batch, slice(first, min(variants, first + size))


def _measured(
    model: LanguageModel,
    hidden: Float[Tensor, "variant prompt width"],
    prompts: Int[Tensor, " prompt"],
    measure: Measure,
) -> Float[Tensor, "variant prompt *value"]:
    """The measure of some variants at a time, or of some prompts of one where even those have too many logits."""
    together = max(1, model.rows_at_once // len(prompts))
    measured = []
    for some in hidden.split(together):
        n, flat = len(some), rearrange(some, "variant prompt width -> (variant prompt) width")
        parts = [
            measure(
                rearrange(logits, "(variant prompt) vocab -> variant prompt vocab", variant=n), prompts[which]
            )
            for which, logits in (
                (slice(None) if n > 1 else rows, logits) for rows, logits in model.logits_in_slices(flat)
            )
        ]
        measured.append(torch.cat(parts, dim=1))
    return torch.cat(measured)


def _halving(
    recording: Recording, batch: Batch, variants: slice, change: Change, start: int, measure: Measure
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(variants, prompts, values), in halves where memory runs out: of the variants, then of the prompts."""
    found: list[Tensor] = []

    def run() -> None:
        hidden = restarted(recording.model, batch, variants, change, start, recording.forms)
        found.append(_measured(recording.model, hidden, batch.prompts, measure))

    if fits(run):
        yield variants, batch.prompts, found[0]
        return
    n, rows = variants.stop - variants.start, len(batch.prompts)
    if n == rows == 1:
        raise SteerlabError(
            f"Prompt {int(batch.prompts[0])} with {batch.tokens.width} tokens does not fit in the memory of "
            f"{recording.model.device} even alone; shorten it or load the model in a smaller dtype."
        )
    middle = variants.start + n // 2
    halves = (
        [(batch, slice(variants.start, middle)), (batch, slice(middle, variants.stop))]
        if n > 1
        else [(batch.part(slice(0, rows // 2)), variants), (batch.part(slice(rows // 2, rows)), variants)]
    )
    for part, part_variants in halves:
        yield from _halving(recording, part, part_variants, change, start, measure)
