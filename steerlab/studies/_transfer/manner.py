"""How far to turn without labels: does the target begin its answers as the unlocked source does?

The unlocked source answers a few dev questions; a strength is as good as the share of them that the steered target
begins with the same word. Where the locked target begins them so by itself, its manner says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np

from steerlab.models import Edit, LanguageModel
from steerlab.studies._transfer.writing import asked, repeated

QUESTIONS, TOKENS = 48, 16
SAME = 0.5  # share of questions that the locked target may begin as the unlocked source does

Score = Callable[[Sequence[Edit]], tuple[float, float]]


def manner_score(
    unlocked: LanguageModel,
    unlocked_texts: Sequence[str],
    target: LanguageModel,
    texts: Sequence[str],
    template: str,
) -> Score | None:
    """Share of answers that begin like the unlocked source's and of repeated text; None where manner tells nothing.

    Args:
        unlocked: the unlocked source model, and the texts it is asked with.
        target: the model to be unlocked, and the texts it is asked with: the same questions in the same order.
    """
    shown = list(unlocked_texts)[:QUESTIONS]
    wanted = [
        _opening(answer.text)
        for answer in unlocked.generate(asked(unlocked, shown, template), max_new_tokens=8)
    ]
    prompts = asked(target, list(texts)[:QUESTIONS], template)

    def score(edits: Sequence[Edit]) -> tuple[float, float]:
        with target.steering(*edits) if edits else nullcontext():
            answers = target.generate(prompts, max_new_tokens=TOKENS)
        alike = [_opening(answer.text) == word for answer, word in zip(answers, wanted, strict=True)]
        return float(np.mean(alike)), float(np.mean([repeated(answer.token_ids) for answer in answers]))

    return None if score(())[0] > SAME else score


def _opening(text: str) -> str:
    """The first word of an answer."""
    words = text.split()
    return words[0] if words else ""
