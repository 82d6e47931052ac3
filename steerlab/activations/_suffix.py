"""One plain run of some prompts, kept so that a changed run can begin at any block and any token of it.

What lies before a token or before a block is not touched by a change there. `keep` stores the stream that enters some
blocks and every block's keys and values; `finish` runs the blocks from `start` on over the tokens from `column` on.
Nothing here knows what is patched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from steerlab.activations._restart import Forms, forms_noted, rows_of, skipped
from steerlab.models import LanguageModel, Site, Tokens
from steerlab.models.edits import Edit
from steerlab.models.exactness import STRANGE
from steerlab.models.hooks import attach
from steerlab.models.memory import is_out_of_memory
from steerlab.models.metering import patching
from steerlab.models.modes import evaluating

#: How much of a run is left out: tokens and blocks before the change, only blocks, or nothing.
Mode: TypeAlias = Literal["suffix", "restart", "whole"]
#: Start of a run that leaves nothing out, the embedding included.
WHOLE = -1
_KeyValues: TypeAlias = "tuple[tuple[Tensor, Tensor], ...]"


@dataclass(frozen=True, eq=False)
class Kept:
    """A plain run.

    Attributes:
        tokens: prompts of one length.
        first: the first token whose streams were kept.
        streams: for some blocks what enters them [row, position from `first`, d_model]; n_layers names what leaves
            the last one.
        normed: the final norm's output at the last token.
        forms: how many things each block returns.
        keys_values: by block [row, head, position, width of a head]; None where the family keeps none.
    """

    tokens: Tokens
    first: int
    streams: Mapping[int, Float[Tensor, "row position d_model"]]
    normed: Float[Tensor, "row d_model"]
    forms: Forms
    keys_values: _KeyValues | None


def keep(
    model: LanguageModel,
    tokens: Tokens,
    starts: Sequence[int],
    first: int,
    edit: Edit | None = None,
    *,
    cached: bool = True,
) -> Kept:
    """Run prompts of one length under `edit`, keeping what `finish` needs to begin at `starts` from `first` on."""
    streams: dict[int, Tensor] = {}
    forms: dict[int, int] = {}
    cache = DynamicCache() if cached else None

    def kept(start: int) -> Any:
        def visit(state: Tensor) -> None:
            streams[start] = state[:, first:].clone()

        return visit

    with ExitStack() as stack:
        stack.enter_context(forms_noted(model, forms))
        if edit is not None:
            stack.enter_context(model.steering(edit))
        for start in starts:
            if start != WHOLE:
                tap = model.anatomy.tap(_entry(start, model.n_layers))
                stack.callback(attach(tap, model.frames, kept(start)))
        try:
            normed = _base(model, tokens, 0, cache)
        except STRANGE as error:
            if cache is None or is_out_of_memory(error):
                raise
            normed = None  # a family with a cache of its own kind
    if normed is None:
        return keep(model, tokens, starts, first, edit, cached=False)
    order = tuple(forms[layer] for layer in range(model.n_layers))
    return Kept(tokens, first, streams, normed, order, _keys_values(cache, model.n_layers))


def finish(
    model: LanguageModel,
    kept: Kept,
    rows: Int[Tensor, " row"],
    start: int,
    column: int,
    edit: Edit | None,
) -> Float[Tensor, "row d_model"]:
    """The final norm's output at the last token of kept runs that differ by `edit` from `start` and `column` on.

    Args:
        rows: which kept prompt each row is.
        column: the first token that is run; it is 0 for runs without kept keys and values.
    """
    tokens = rows_of(kept.tokens, rows.tolist())
    with ExitStack() as stack:
        stack.enter_context(model.lock)
        stack.enter_context(patching())
        if start != WHOLE:
            stack.enter_context(skipped(model, kept.forms[:start]))
            entry = kept.streams[start][rows.to(kept.streams[start].device), column - kept.first :]
            # After the hooks that are there: what an outer steering does here is in the kept stream already.
            tap = model.anatomy.tap(_entry(start, model.n_layers))
            stack.callback(attach(tap, model.frames, lambda _: entry))
        if edit is not None:
            stack.enter_context(model.steering(edit))
        return _base(model, tokens, column, _prefix(kept, rows, max(start, 0), column))


# -- private --


def _entry(start: int, n_layers: int) -> Site:
    return Site("resid_pre", start) if start < n_layers else Site("resid_post", n_layers - 1)


def _base(
    model: LanguageModel, tokens: Tokens, column: int, cache: DynamicCache | None
) -> Float[Tensor, "row d_model"]:
    """The model without its unembedding over the tokens from `column` on."""
    model.engine.check()
    inputs = tokens.to(model.device)
    arguments: dict[str, Any] = {"attention_mask": inputs.attention_mask, "use_cache": cache is not None}
    if cache is not None:
        arguments["past_key_values"] = cache
    if model.takes_positions:
        arguments["position_ids"] = inputs.position_ids[:, column:]
    base = model.anatomy.base
    with model.lock, torch.inference_mode(), evaluating(model.model), ExitStack() as stack:
        stack.enter_context(model.frames.of(tokens))
        stack.enter_context(model.frames.watch(base))
        output = base(input_ids=inputs.input_ids[:, column:], return_dict=True, **arguments)
        normed: Tensor = output.last_hidden_state[:, -1]
    return normed


def _keys_values(cache: DynamicCache | None, n_layers: int) -> _KeyValues | None:
    layers = [] if cache is None else cache.layers
    keys = [getattr(layer, "keys", None) for layer in layers]
    if len(layers) != n_layers or not all(isinstance(key, Tensor) and key.dim() == 4 for key in keys):
        return None
    return tuple((layer.keys, layer.values) for layer in layers)


def _prefix(kept: Kept, rows: Int[Tensor, " row"], start: int, column: int) -> DynamicCache | None:
    """Keys and values of what lies before `column`, for the blocks that run."""
    if column == 0 or kept.keys_values is None:
        return None
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(kept.keys_values):
        if layer < start:
            # Never asked for but for its length, which tells the model where the sequence stands.
            empty = keys.new_zeros(1, 1, column, 1)
            cache.update(empty, empty, layer)
        else:
            index = rows.to(keys.device)
            cache.update(keys[index, :, :column], values[index, :, :column], layer)
    return cache
