"""Was the capability there before? If steering sharpens what the target can do, its samples reach as far, and its right
samples gain more probability than its wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from steerlab.datasets import Task
from steerlab.directions import Direction
from steerlab.models import Edit, LanguageModel, Prompt, Span, Tokens
from steerlab.readouts.scoring import continuation_log_probability
from steerlab.statistics import bootstrap_mean, proportion
from steerlab.studies._transfer.result import Sharpening
from steerlab.studies._transfer.unlock import turn

_TEMPERATURE = 0.8
_STEERED = "steered"


def sharpening(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    task: Task,
    direction: Direction,
    strength: float,
    *,
    steered: Bool[np.ndarray, " question"],
    k: int,
    seed: int,
) -> Sharpening:
    """k samples of the locked target a question, graded, and their log-probabilities without and with steering."""
    repeated = [prompt for prompt in prompts for _ in range(k)]
    samples = target.generate(
        repeated, max_new_tokens=task.max_new_tokens, do_sample=True, temperature=_TEMPERATURE, seed=seed
    )
    rows = [row for row in range(len(prompts)) for _ in range(k)]
    texts = [item.text for item in samples]
    right = np.array(task.take(rows).right(texts), dtype=bool)
    usable = np.array([bool(text.strip()) for text in texts])
    gain = np.full(len(texts), np.nan)
    indices = np.flatnonzero(usable)
    edits = turn(direction, strength, positions=Span(_STEERED))
    asked, replies = [repeated[row] for row in indices], [texts[row] for row in indices]
    gain[indices] = log_probability(target, asked, replies, edits) - log_probability(target, asked, replies)
    parts = {}
    for name, kept in (("correct", right & usable), ("wrong", ~right & usable)):
        if kept.any():
            parts[name] = bootstrap_mean(gain[kept], np.array(rows)[kept], seed=seed)
    by_question = right.reshape(len(prompts), k)
    return Sharpening(
        k=k,
        temperature=_TEMPERATURE,
        at_k=proportion(by_question.any(axis=1)),
        at_1=proportion(right, clusters=np.array(rows)),
        steered=proportion(steered),
        **parts,
    )


def log_probability(
    model: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[str], edits: Sequence[Edit] = ()
) -> Float[np.ndarray, " answer"]:
    """Log-probability of each answer behind its prompt, nats; edits act on the prompt's last token, span "steered"."""
    whole = [
        replace(
            prompt,
            text=prompt.text + answer,
            spans={_STEERED: (len(prompt.text) - 1, len(prompt.text))},
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    sums = np.zeros(len(whole))
    for start in range(0, len(whole), 64):
        batch = model.tokenize(whole[start : start + 64], padding_side="right")
        with model.steering(*edits) if edits else nullcontext():
            sums[start : start + 64] = continuation_log_probability(model, batch, _begins(batch)).numpy()
    return sums


def _begins(batch: Tokens) -> list[int]:
    """The first token of each answer: the first one that ends behind the prompt's last character."""
    starts = []
    for row, prompt in enumerate(batch.prompts):
        last = Span(_STEERED).resolve(batch, row)[-1]
        end = prompt.spans[_STEERED][1]
        assert batch.offsets is not None  # without offsets the span would not have been found
        starts.append(last if batch.offsets[row][last][1] > end else last + 1)
    return starts
