"""The log-probability of given answers, token by token: how likely a model is to go on as it is asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
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
    logits = model.run(tokens, logits="all")
    assert logits is not None
    of_token = log_probability(logits[:, :-1], tokens.input_ids[:, 1:]).double().cpu()
    place = torch.arange(1, tokens.width)[None]
    counts = (place >= torch.tensor(list(starts))[:, None]) & (place < torch.tensor(tokens.lengths)[:, None])
    return torch.where(counts, of_token, 0.0).sum(dim=1)
