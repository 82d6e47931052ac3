"""The log-probability of given answers, token by token: how likely a model is to go on as it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.models import LanguageModel, Tokens
from steerlab.models.laws import log_probability


def continuation_log_probability(
    model: LanguageModel, tokens: Tokens, starts: Sequence[int]
) -> Float[Tensor, " row"]:
    """ln P of each row's tokens from `starts` to its end, given those before; nats, float64, on the CPU.

    Args:
        tokens: padded on the right.
        starts: by row the first token that counts, at least 1.
    """
    each = token_log_probabilities(model, tokens, starts)
    return torch.stack([of_row.sum() for of_row in each])


def token_log_probabilities(
    model: LanguageModel, tokens: Tokens, starts: Sequence[int]
) -> list[Float[Tensor, " token"]]:
    """ln P of each row's tokens from `starts` to its end, one by one; as `continuation_log_probability`."""
    rows, columns = _counting(tokens, starts)
    hidden = model.last_hidden(tokens, rows, columns - 1)
    answers = tokens.input_ids[rows, columns]
    parts = [log_probability(logits, answers[some]).cpu() for some, logits in model.logits_in_slices(hidden)]
    found = torch.cat([torch.empty(0), *parts]).double()
    return [found[rows == row] for row in range(len(tokens))]


def _counting(tokens: Tokens, starts: Sequence[int]) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Row and column of each row's tokens from its start on."""
    place = torch.arange(tokens.width)[None]
    counts = (place >= torch.tensor(list(starts))[:, None]) & (place < torch.tensor(tokens.lengths)[:, None])
    rows, columns = counts.nonzero(as_tuple=True)
    return rows, columns
