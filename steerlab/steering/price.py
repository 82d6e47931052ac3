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
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import at_tokens, kl
from steerlab.progress import counting
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
    listed, lengths = list(texts), model.lengths(texts)
    parts: dict[str, dict[int, Tensor]] = {name: {} for name in interventions}

    def read(rows: list[int]) -> None:
        tokens = model.tokenize([listed[row] for row in rows], padding_side="right").of_rows(rows)
        where = _places(tokens, positions)
        plain = model.last_hidden(tokens, *where)
        for name, edits in interventions.items():
            with model.steering(*edits):
                steered = model.last_hidden(tokens, *where)
            parts[name][rows[0]] = _compared(model, plain, steered, tokens, where)

    with counting(progress, len(listed)) as done:
        run_in_batches(read, lengths, token_budget, done=done)
    return {
        name: _summarised(torch.cat([*of_batch.values()], dim=1).numpy(), positions, seed)
        for name, of_batch in parts.items()
    }


# -- private, in the order they are called --


def _places(tokens: Tokens, positions: Positions) -> tuple[Tensor, Tensor]:
    """Row and column of every token whose law is compared, of a batch padded on the right."""
    if positions == "last":
        return torch.arange(len(tokens)), torch.tensor(tokens.lengths) - 1
    rows, columns = tokens.attention_mask[:, 1:].nonzero(as_tuple=True)
    return rows, columns


def _compared(
    model: LanguageModel, plain: Tensor, steered: Tensor, tokens: Tokens, where: tuple[Tensor, Tensor]
) -> Tensor:
    """[(text, KL, loss before, loss after), token] of one batch, float64 on the CPU; no losses behind a text's end."""
    rows, columns = where
    follows = columns + 1 < torch.tensor(tokens.lengths)[rows]
    target = tokens.input_ids[rows, (columns + 1).clamp(max=tokens.width - 1)]
    found = [torch.empty(3, 0, dtype=torch.float64)]
    slices = zip(model.logits_in_slices(plain), model.logits_in_slices(steered), strict=True)
    for (some, before), (_, after) in slices:
        laws = (before.log_softmax(dim=-1), after.log_softmax(dim=-1))
        columns_ = (kl(*laws), *(-at_tokens(law, target[some]) for law in laws))
        found.append(torch.stack([column.double().cpu() for column in columns_]))
    divergence, *losses = torch.cat(found, dim=1)
    text = torch.tensor(tokens.rows)[rows].double()
    return torch.stack([text, divergence, *(loss.where(follows, torch.nan) for loss in losses)])


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
