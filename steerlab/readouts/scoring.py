"""The log-probability of given answers, token by token: how likely a model is to go on as it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.models import LanguageModel, Prompt, Tokens
from steerlab.models.batches import run_in_batches
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


def continuation_log_odds(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    towards: Sequence[str],
    away: Sequence[str],
    *,
    token_budget: int = 2048,
) -> Float[np.ndarray, " prompt"]:
    """ln P(towards) - ln P(away) of each prompt's two continuations, from the token on where they differ; nats.

    Raises:
        ValueError: other numbers of continuations than prompts.
    """
    sides = [
        [replace(prompt, text=prompt.text + text) for prompt, text in zip(prompts, texts, strict=True)]
        for texts in (towards, away)
    ]
    found = np.empty(len(prompts))
    ids = [model.token_ids(side) for side in sides]
    starts = [_parting(first, second) for first, second in zip(*ids, strict=True)]
    ends = [(first[start:], second[start:]) for first, second, start in zip(*ids, starts, strict=True)]
    lengths = [max(map(len, pair)) for pair in zip(*ids, strict=True)]

    def score(rows: list[int]) -> None:
        begin = [starts[row] for row in rows]
        first = model.tokenize([sides[0][row] for row in rows], padding_side="right").of_rows(rows)
        if all(len(end) == 1 for row in rows for end in ends[row]):
            found[rows] = _odds_of_tokens(
                model, first, begin, [(ends[row][0][0], ends[row][1][0]) for row in rows]
            )
            return
        second = model.tokenize([sides[1][row] for row in rows], padding_side="right").of_rows(rows)
        on, off = (continuation_log_probability(model, side, begin).numpy() for side in (first, second))
        found[rows] = on - off

    for alike in (True, False):  # where both are one token, one pass tells both
        chosen = [row for row, pair in enumerate(ends) if all(len(end) == 1 for end in pair) == alike]
        if chosen:
            run_in_batches(
                lambda batch, chosen=chosen: score([chosen[at] for at in batch]),  # type: ignore[misc]
                [lengths[row] for row in chosen],
                token_budget,
            )
    return found


def _parting(first: Sequence[int], second: Sequence[int]) -> int:
    """Where two texts part, at least 1 and with a token of each behind it."""
    shortest = min(len(first), len(second))
    same = next((at for at in range(shortest) if first[at] != second[at]), shortest)
    return max(1, min(same, shortest - 1))


def _odds_of_tokens(
    model: LanguageModel, tokens: Tokens, starts: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> Float[np.ndarray, " row"]:
    """ln P(one token) - ln P(another) of each row at its start: the difference of their logits."""
    rows, columns = torch.arange(len(tokens)), torch.tensor(list(starts))
    hidden = model.last_hidden(tokens, rows, columns - 1)
    on, off = torch.tensor(pairs).T
    parts = [
        logits.gather(1, torch.stack([on[some], off[some]], dim=1).to(logits.device)).double().cpu()
        for some, logits in model.logits_in_slices(hidden)
    ]
    both = torch.cat(parts)
    found: Float[np.ndarray, " row"] = (both[:, 0] - both[:, 1]).numpy()
    return found


def _counting(tokens: Tokens, starts: Sequence[int]) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Row and column of each row's tokens from its start on."""
    place = torch.arange(tokens.width)[None]
    counts = (place >= torch.tensor(list(starts))[:, None]) & (place < torch.tensor(tokens.lengths)[:, None])
    rows, columns = counts.nonzero(as_tuple=True)
    return rows, columns
