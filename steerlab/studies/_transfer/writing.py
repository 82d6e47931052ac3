"""Answers of a model to questions, steered or forced, and what can be said of them without a reader."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from steerlab.datasets.tasks import Task
from steerlab.models import Edit, Generation, LanguageModel, Prompt

_WINDOW = 4  # tokens; an answer repeats itself where most such windows have been written before


@dataclass(frozen=True)
class Written:
    """What was written [question]: texts, whether right, whether unlocked, share of repeated windows, tokens."""

    texts: tuple[str, ...]
    right: Bool[np.ndarray, " question"]
    behaves: Bool[np.ndarray, " question"]
    repeats: Float[np.ndarray, " question"]
    length: Float[np.ndarray, " question"]
    generations: tuple[Generation, ...]


def write(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    task: Task,
    edits: Sequence[Edit] = (),
    *,
    least: float = 0.0,
) -> Written:
    """Greedy answers. `least`: tokens from which an answer counts as unlocked where the task does not say how it
    begins."""
    with model.steering(*edits) if edits else nullcontext():
        answers = model.generate(list(prompts), max_new_tokens=task.max_new_tokens)
    return judged(answers, task, least=least)


def judged(
    answers: Sequence[Generation], task: Task, *, least: float = 0.0, opening: Sequence[str] = ()
) -> Written:
    """Generations graded; `opening` is text that was forced before each."""
    before = list(opening) or [""] * len(answers)
    texts = tuple(start + answer.text for start, answer in zip(before, answers, strict=True))
    length = np.array([len(answer.token_ids) for answer in answers], dtype=np.float64)
    behaves = task.behaves(texts) if task.behaviour is not None else (length >= least).tolist()
    return Written(
        texts=texts,
        right=np.array(task.right(texts), dtype=bool),
        behaves=np.array(behaves, dtype=bool),
        repeats=np.array([repeated(answer.token_ids) for answer in answers]),
        length=length,
        generations=tuple(answers),
    )


def repeated(ids: Sequence[int]) -> float:
    """Share of windows of four tokens that stood earlier in the answer."""
    windows = [tuple(ids[start : start + _WINDOW]) for start in range(len(ids) - _WINDOW + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def asked(model: LanguageModel, texts: Sequence[str], template: str) -> list[Prompt]:
    """Questions as the model is asked them."""
    return [model.instruction_prompt(text, template=template) for text in texts]  # type: ignore[arg-type]
