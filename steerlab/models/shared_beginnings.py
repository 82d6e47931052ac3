"""Rows that begin alike: what they share is read once, and every row goes on from its keys and values.

Few-shot examples, a chat template's own words, and a prompt with many answers are read again in every row otherwise.
Whether going on is exact for a family is not assumed: the first batch of a model is read in both ways, and where they
differ, or the family keeps more than keys and values, rows are read whole from then on. Nothing is shared inside
`steering` and while states are read, where a pass belongs to whole rows.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.models.exactness import STRANGE
from steerlab.models.memory import is_out_of_memory
from steerlab.models.modes import evaluating
from steerlab.models.prompts import Tokens

if TYPE_CHECKING:
    from steerlab.models.passes import Passes

_LEAST, _SHARE = 256, 0.2  # tokens, and part of the batch's, that sharing has to save


@dataclass(frozen=True)
class Beginnings:
    """The first `column` tokens of every row: `firsts` are rows with the different ones, `of_row` says which one each
    row has."""

    column: int
    firsts: list[int]
    of_row: Int[Tensor, " row"]


def beginnings(tokens: Tokens, first: int) -> Beginnings | None:
    """The beginnings whose sharing saves most, and end before column `first`; None where that is little.

    Args:
        tokens: padded on the right.
        first: the first column whose state is asked for, so that every row goes on behind its beginning.
    """
    limit = min(first, min(tokens.lengths) - 1)
    if tokens.padding_side != "right" or limit < 1 or len(tokens) < 2:
        return None
    ids = tokens.input_ids[:, :limit].cpu().numpy()
    order = np.lexsort(ids.T[::-1])
    # tokens shared with the row before
    same = np.cumprod(ids[order[1:]] == ids[order[:-1]], axis=1).sum(axis=1)
    columns = np.arange(1, limit + 1)
    kinds = 1 + (same[None] < columns[:, None]).sum(axis=1)
    saved = (len(tokens) - kinds) * columns
    best = int(saved.argmax())
    if saved[best] < max(_LEAST, _SHARE * tokens.input_ids.numel()):
        return None
    starts = np.concatenate([[True], same < columns[best]])
    of_row = np.empty(len(order), dtype=np.int64)
    of_row[order] = np.cumsum(starts) - 1
    return Beginnings(int(columns[best]), order[starts].tolist(), torch.from_numpy(of_row))


def read_on(model: Passes, tokens: Tokens, shared: Beginnings) -> Float[Tensor, "row position width"] | None:
    """What the unembedding reads behind the shared beginnings; None where the family keeps no keys and values.

    Raises:
        RuntimeError, MemoryError: the batch does not fit into memory.
    """
    try:
        return _read_on(model, tokens, shared)
    except STRANGE as error:
        if is_out_of_memory(error):
            raise
        return None


# -- private, in the order they are called --


def _read_on(model: Passes, tokens: Tokens, shared: Beginnings) -> Float[Tensor, "row position width"] | None:
    from transformers import DynamicCache

    column, behind = shared.column, DynamicCache()
    _base(model, _cut(tokens.take(shared.firsts), column), 0, behind)
    if len(behind.layers) != model.n_layers:
        return None
    cache = DynamicCache()
    for layer, kept in enumerate(behind.layers):
        keys, values = getattr(kept, "keys", None), getattr(kept, "values", None)
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[2] != column or values is None:
            return None
        index = shared.of_row.to(keys.device)
        cache.update(keys[index], values[index], layer)
    return _base(model, tokens, column, cache)


def _cut(tokens: Tokens, column: int) -> Tokens:
    """The first tokens of every row."""
    ids = tokens.input_ids[:, :column]
    return Tokens(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=tokens.position_ids[:, :column],
        offsets=None,
        prompts=tokens.prompts,
        lengths=(column,) * len(tokens),
        padding_side="right",
    )


def _base(model: Passes, tokens: Tokens, column: int, cache: Any) -> Float[Tensor, "row position width"]:
    """The model without its unembedding over the tokens from a column on."""
    model.engine.check()
    inputs = tokens.to(model.device)
    arguments: dict[str, Any] = {"attention_mask": inputs.attention_mask, "past_key_values": cache}
    if model.takes_positions:
        arguments["position_ids"] = inputs.position_ids[:, column:]
    with ExitStack() as stack:
        for entered in (model.lock, torch.inference_mode(), evaluating(model.model)):
            stack.enter_context(entered)
        output = model.anatomy.base(
            input_ids=inputs.input_ids[:, column:], use_cache=True, return_dict=True, **arguments
        )
    found: Tensor = output.last_hidden_state
    return found
