"""Read states while a model runs over prompts, with the shortest forward passes that give them.

Prompts are sorted by length into batches of a token budget, the base model runs without its unembedding and only up
to the deepest site, and the selected tokens are picked inside the hook with one index per batch. When memory runs
out the budget halves and reading goes on. Batches are padded on the right: in a causal model nothing before the
padding can see it, so the attention needs no mask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from steerlab.activations._provenance import hashes
from steerlab.activations.moments import Label, Moments, plain_label
from steerlab.activations.rereading import Written, generations_in, read_again
from steerlab.activations.states import Activations
from steerlab.batching import tokens_of_a_batch
from steerlab.errors import ModelError, PromptError, SteerlabError, kind_of
from steerlab.models import (
    LanguageModel,
    Last,
    Prompt,
    PromptsGiven,
    SelectedTokens,
    Selector,
    Site,
    SitesGiven,
    Tokens,
    require_selector,
    sites_of,
)
from steerlab.models.batches import fits
from steerlab.models.memory import release_cached_memory
from steerlab.progress import track

_WINDOW = 2048  # prompts tokenised and sorted at a time, so that memory does not grow with their number


@overload
def capture(
    model: LanguageModel,
    prompts: PromptsGiven | Written,
    sites: SitesGiven,
    *,
    positions: Selector = ...,
    into: None = None,
    labels: None = None,
    by_position: bool = ...,
    token_budget: int = ...,
    progress: str | None = ...,
) -> Activations: ...


@overload
def capture(
    model: LanguageModel,
    prompts: PromptsGiven | Written,
    sites: SitesGiven,
    *,
    positions: Selector = ...,
    into: Moments,
    labels: Sequence[Label] | None = ...,
    by_position: bool = ...,
    token_budget: int = ...,
    progress: str | None = ...,
) -> Moments: ...


# Long: most of it documents its options.
def capture(
    model: LanguageModel,
    prompts: PromptsGiven | Written,
    sites: SitesGiven,
    *,
    positions: Selector = Last(),  # noqa: B008  # frozen
    into: Moments | None = None,
    labels: Sequence[Label] | None = None,
    by_position: bool = False,
    token_budget: int = 4096,
    progress: str | None = None,
) -> Activations | Moments:
    """States of the selected tokens of every prompt.

    Inside ``model.steering(...)`` the steered states are read.

    Args:
        prompts: one text, `Prompt` or conversation (a list of chat messages), or any number of them; or what
            `model.generate` gave, whose prompts and written tokens are read again (``positions=Generated()``).
        sites: where to read: "resid_post" (every layer), "resid_post.5", a `Site`, TransformerLens' name
            ("blocks.5.hook_resid_post"), or a list of them.
        positions: which tokens of each prompt; one that picks several gives several rows a prompt.
        into: stream into these `Moments` and keep no rows.
        labels: with ``into``, the class of each prompt (any hashable; None: one class).
        by_position: with ``into``, every token position is a class of its own: (label, -1) is the last token of
            the prompts of a class, (label, -2) the one before.
        token_budget: padded tokens in one forward pass; halved whenever memory runs out.
        progress: name of a progress bar; None shows none.

    Returns:
        `Activations` with rows in prompt order, float32 on the CPU, or ``into``.

    Raises:
        ModelError: ``model`` is none.
        SiteError: the model has no such site.
        PromptError: a prompt is empty or too long, or ``positions`` picks nothing.
        SteerlabError: labels do not fit the prompts, second moments exceed their budget, or one prompt
            alone does not fit in memory. ``into`` then holds the batches read so far.
    """
    if not isinstance(model, LanguageModel):
        raise ModelError(
            f"States are read from a model of sl.load, not from {kind_of(model)}; give it first."
        )
    wanted = sites_of(model, sites)
    budget = tokens_of_a_batch(token_budget)
    if written := generations_in(prompts):
        if into is not None:
            raise SteerlabError(
                "What was generated is read into rows; leave into out, and update Moments with them."
            )
        _check((), wanted, positions, into, labels, token_budget)
        return read_again(model, written, wanted, positions, budget)
    prompts = model.as_prompts(prompts)  # type: ignore[arg-type]  # the other kind has gone
    _check(prompts, wanted, positions, into, labels, token_budget)
    parts = _shown(_read(model, prompts, wanted, positions, budget), progress, len(prompts))
    if into is None:
        read = _assembled(parts, wanted, model, len(prompts))
        return replace(read, positions=repr(positions), **hashes(prompts))
    given: list[Label] = [None] * len(prompts) if labels is None else [plain_label(label) for label in labels]
    into.belongs_to(model)
    if not by_position:
        into.reserve({site: model.width(site) for site in wanted}, classes=len({*given, *into.labels}))
    for part in parts:
        rows = zip(part.example.tolist(), part.from_end.tolist(), strict=True)
        into.update(part.states, [(given[i], place) if by_position else given[i] for i, place in rows])
    into.came_from(prompts, positions, given)
    return into


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of one batch: their states by site, and for each its number, prompt and token index, both ways."""

    states: dict[Site, Tensor]
    row: Tensor
    example: Tensor
    position: Tensor
    from_end: Tensor
    n_prompts: int


def _check(
    prompts: Sequence[str | Prompt],
    sites: Sequence[Site],
    positions: Selector,
    into: Moments | None,
    labels: Sequence[Label] | None,
    token_budget: int,
) -> None:
    if not sites:
        raise SteerlabError("Capturing needs at least one site, for example 'resid_post'.")
    require_selector(positions)
    if into is not None and not isinstance(into, Moments):
        raise SteerlabError(
            f"States are streamed into Moments, not into {kind_of(into)}; give into=sl.Moments()."
        )
    if labels is not None and into is None:
        raise SteerlabError("Labels are used with into=Moments(...); without it give them to the estimator.")
    if labels is not None and len(labels) != len(prompts):
        raise SteerlabError(
            f"{len(prompts)} prompts came with {len(labels)} labels; give one label a prompt."
        )
    if token_budget < 1:
        raise SteerlabError(f"The token budget is {token_budget}; it must be at least 1.")


def _read(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    sites: Sequence[Site],
    positions: Selector,
    token_budget: int,
) -> Iterator[_Part]:
    """Batch after batch; the longest prompts of a window first, so that memory runs out early if at all."""
    rows_before = 0
    for start in range(0, len(prompts), _WINDOW):
        tokens, selection = _tokenised(model, prompts[start : start + _WINDOW], positions, start)
        counts = torch.bincount(selection.rows, minlength=len(tokens))
        bounds = [0, *counts.cumsum(0).tolist()]
        # Prompts of which nothing is wanted need no forward pass.
        waiting = deque(
            sorted(
                (i for i in range(len(tokens)) if bounds[i] < bounds[i + 1]), key=lambda i: -tokens.lengths[i]
            )
        )
        while waiting:
            longest = tokens.lengths[waiting[0]]
            batch = [waiting[i] for i in range(min(len(waiting), max(1, token_budget // longest)))]
            chosen = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in batch])
            rows = torch.repeat_interleave(torch.arange(len(batch)), counts[batch])
            states = _forward(model, _cut(tokens, batch), rows, selection.indices[chosen], sites)
            if states is None:
                token_budget = _halved(model, start + batch[0], len(batch), longest)
                continue
            for _ in batch:
                waiting.popleft()
            yield _Part(
                states=states,
                row=rows_before + chosen,
                example=start + selection.rows[chosen],
                position=selection.indices[chosen],
                from_end=selection.indices[chosen] - torch.tensor(tokens.lengths)[selection.rows[chosen]],
                n_prompts=len(batch),
            )
        rows_before += bounds[-1]
    if not rows_before:
        raise PromptError(f"{positions} picks no token of any prompt; choose positions inside the prompts.")


def _tokenised(
    model: LanguageModel, prompts: Sequence[str | Prompt], positions: Selector, start: int
) -> tuple[Tokens, SelectedTokens]:
    try:
        tokens = model.tokenize(prompts, padding_side="right").of_rows(range(start, start + len(prompts)))
        return tokens, tokens.select(positions)
    except PromptError as error:
        if not start:
            raise
        raise PromptError(f"Among the prompts from number {start} on: {error}") from error


def _cut(tokens: Tokens, batch: list[int]) -> Tokens:
    """Some prompts of a right-padded batch, cut to the longest of them, without a mask."""
    part = tokens.take(batch)
    return replace(part, input_ids=part.input_ids[:, : max(part.lengths)]).unmasked()


def _forward(
    model: LanguageModel, tokens: Tokens, rows: Tensor, columns: Tensor, sites: Sequence[Site]
) -> dict[Site, Tensor] | None:
    """The wanted tokens' states of one batch by site, or None when memory ran out."""
    states: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Callable[[Tensor], None]:
        def keep(state: Tensor) -> None:
            states[site] = state

        return keep

    at = (rows.to(model.device), columns.to(model.device))
    if not fits(lambda: model.run(tokens, read={site: keeper(site) for site in sites}, at=at)):
        states.clear()
        release_cached_memory()
        return None
    return {site: states[site] for site in sites}


def _halved(model: LanguageModel, prompt: int, size: int, longest: int) -> int:
    """The token budget after a batch that did not fit."""
    if size == 1:
        raise SteerlabError(
            f"Prompt {prompt} with {longest} tokens does not fit in the memory of {model.device} even alone; "
            "shorten it, read fewer sites, or load the model in a smaller dtype."
        )
    return size * longest // 2


def _shown(parts: Iterator[_Part], description: str | None, total: int) -> Iterator[_Part]:
    """The parts, with a progress bar that counts prompts when a description is given."""
    if description is None:
        yield from parts
        return
    steps = (part if first else None for part in parts for first in (True, *[False] * (part.n_prompts - 1)))
    for step in track(steps, description, total):
        if step is not None:
            yield step


def _assembled(
    parts: Iterator[_Part], sites: Sequence[Site], model: LanguageModel, n_prompts: int
) -> Activations:
    """All rows in prompt order; site by site, so that no more than one site is held twice."""
    collected = [_on_cpu(part) for part in parts]
    order = torch.cat([part.row for part in collected])
    total = len(order)

    def in_order(pieces: list[Tensor]) -> Tensor:
        joined = torch.cat(pieces)
        return torch.empty_like(joined).index_copy_(0, order, joined)

    states = {site: in_order([part.states.pop(site) for part in collected]) for site in sites}
    assert all(len(rows) == total for rows in states.values())
    return Activations(
        states=states,
        example=in_order([part.example for part in collected]),
        position=in_order([part.position for part in collected]),
        n_prompts=n_prompts,
        model_name=model.name,
        fingerprint=model.fingerprint,
    )


def _on_cpu(part: _Part) -> _Part:
    """The part as float32 on the CPU: one copy for all sites of a device."""
    by_device: dict[torch.device, list[Site]] = {}
    for site, state in part.states.items():
        by_device.setdefault(state.device, []).append(site)
    states: dict[Site, Tensor] = {}
    for together in by_device.values():
        widths = [part.states[site].shape[1] for site in together]
        joined = torch.cat([part.states[site] for site in together], dim=1).float().cpu()
        pieces: tuple[Tensor, ...] = torch.split(joined, widths, dim=1)
        states |= dict(zip(together, pieces, strict=True))
    return replace(part, states={site: states[site] for site in part.states})
