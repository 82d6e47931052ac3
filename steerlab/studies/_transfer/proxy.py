"""Logit arithmetic: the target's logits plus what unlocking changed in the source's. No map, but one vocabulary.

    logits = logits_T + β (logits_unlocked − logits_locked)

Source: proxy tuning (Liu et al., 2024, arXiv 2401.08565).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from steerlab.models import Generation, LanguageModel, Prompt, Tokens


def same_vocabulary(first: LanguageModel, second: LanguageModel) -> bool:
    """Whether the two models' tokens are the same."""
    return bool(first.tokenizer.get_vocab() == second.tokenizer.get_vocab())


def arithmetic(
    target: LanguageModel,
    locked: LanguageModel,
    unlocked: LanguageModel,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    beta: float = 1.0,
) -> list[Generation]:
    """Greedy answers of the three models together; whole forward passes, without a cache."""
    tokens = target.tokenize(list(prompts), padding_side="left")
    written = torch.empty(len(prompts), 0, dtype=torch.long)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    ends = torch.tensor(_end_tokens(target))
    for _ in range(max_new_tokens):
        parts = [model.logits(tokens) for model in (target, unlocked, locked)]
        chosen = (parts[0] + beta * (parts[1] - parts[2])).argmax(dim=-1).cpu()
        written = torch.cat([written, chosen[:, None]], dim=1)
        ended |= torch.isin(chosen, ends)
        if bool(ended.all()):
            break
        tokens = _longer(tokens, chosen)
    return [_generation(target, row.tolist(), ends.tolist()) for row in written]


def _end_tokens(model: LanguageModel) -> list[int]:
    ends = model.source.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _longer(tokens: Tokens, chosen: torch.Tensor) -> Tokens:
    column = torch.ones_like(chosen)[:, None]
    return replace(
        tokens,
        input_ids=torch.cat([tokens.input_ids, chosen[:, None]], dim=1),
        attention_mask=torch.cat([tokens.attention_mask, column], dim=1),
        position_ids=torch.cat([tokens.position_ids, tokens.position_ids[:, -1:] + 1], dim=1),
        lengths=tuple(length + 1 for length in tokens.lengths),
        offsets=None,
    )


def _generation(model: LanguageModel, ids: list[int], ends: list[int]) -> Generation:
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[: stop + 1]
    text = model.tokenizer.decode(kept, skip_special_tokens=True)
    return Generation(text=text, token_ids=tuple(kept), finished=stop is not None)
