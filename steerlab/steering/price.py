"""The price of steering: change of loss and KL divergence on text unrelated to the direction.

On each text, at every token but the first, with p the unsteered and q the steered law of the next token:

    loss change  = log p(token) - log q(token)        nats a token, positive: steering makes the text less likely
    KL           = sum_v p(v) (log p(v) - log q(v))   nats a token, never negative

Both are ratios of sums over tokens, resampled by text. Without targets (`positions="last"`) only the law after each
prompt's last token is compared; this is the KL of Arditi et al. (2024), without their 1e-6 inside the logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from steerlab.errors import SteerlabError
from steerlab.models import Edit, LanguageModel, Prompt, Tokens
from steerlab.models.laws import at_tokens, kl
from steerlab.models.prompts import batches_by_length
from steerlab.progress import track
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean

Positions = Literal["all", "last"]


class SideEffects(Record):
    """The price of an intervention on unrelated text.

    loss: unsteered, nats a token. loss_change: steered minus unsteered. kl: of the steered from the unsteered law.
    `loss` and `loss_change` are None where only the last token was read. texts: what is resampled.
    """

    texts: int
    tokens: int
    loss: Estimate | None
    loss_change: Estimate | None
    kl: Estimate


def side_effects(
    model: LanguageModel,
    texts: Sequence[str | Prompt],
    interventions: Mapping[str, Sequence[Edit]],
    *,
    positions: Positions = "all",
    token_budget: int = 2048,
    seed: int = 0,
    progress: str | None = None,
) -> dict[str, SideEffects]:
    """The price of each of some interventions on the same texts; the unsteered law is computed once a batch.

    Args:
        interventions: by name, the edits that act together.
        positions: "all" for every token of plain text, "last" for the answer's first token after a prompt.
        token_budget: padded tokens in one forward pass.

    Raises:
        SteerlabError: no text has a token to predict.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in interventions}
    batches = batches_by_length(model.tokenize(texts).lengths, token_budget)
    for rows in track(batches, progress, len(batches)) if progress else batches:
        tokens = model.tokenize([texts[row] for row in rows], padding_side="right").of_rows(rows)
        plain = _law(model, tokens, positions)
        for name, edits in interventions.items():
            with model.steering(*edits):
                steered = _law(model, tokens, positions)
            parts[name].append(_compared(plain, steered, tokens, rows, positions))
    return {
        name: _summarised(torch.cat(columns, dim=1).numpy(), positions, seed)
        for name, columns in parts.items()
    }


# -- private, in the order they are called --


def _law(model: LanguageModel, tokens: Tokens, positions: Positions) -> Tensor:
    """Log-probabilities [batch, position, vocab] (one position for "last"), float32."""
    logits = model.run(tokens, logits=positions)
    assert logits is not None
    return (logits[:, None] if positions == "last" else logits).log_softmax(dim=-1)


def _compared(
    plain: Tensor, steered: Tensor, tokens: Tokens, rows: Sequence[int], positions: Positions
) -> Tensor:
    """[(text, KL, loss before, loss after), token] of one batch, float64 on the CPU."""
    divergence = kl(plain, steered)
    text = torch.tensor(rows)[:, None].expand(divergence.shape)
    if positions == "last":
        nothing = torch.full(divergence.shape, float("nan"), dtype=torch.float64)
        return torch.stack([text.double(), divergence.double().cpu(), nothing, nothing]).flatten(1)
    before, after = (-at_tokens(law[:, :-1], tokens.input_ids[:, 1:]) for law in (plain, steered))
    kept = tokens.attention_mask[:, 1:].bool()
    columns = (
        text[:, :-1].double(),
        *(value.double().cpu() for value in (divergence[:, :-1], before, after)),
    )
    return torch.stack([column[kept] for column in columns])


def _summarised(columns: np.ndarray, positions: Positions, seed: int) -> SideEffects:
    text, divergence, before, after = columns
    if not len(text):
        raise SteerlabError("No text has a second token, so there is nothing to predict; give longer texts.")
    known = positions == "all"
    return SideEffects(
        texts=len(np.unique(text)),
        tokens=len(text),
        loss=bootstrap_mean(before, text, seed=seed) if known else None,
        loss_change=bootstrap_mean(after - before, text, seed=seed) if known else None,
        kl=bootstrap_mean(divergence, text, seed=seed),
    )
