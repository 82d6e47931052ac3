"""What steering refusal costs elsewhere: plain text, the next word after harmless prompts, and a labelled task.

Each model under its own direction (the dose of the study) and under random directions of the same length: loss and KL
on plain passages at every token, KL of the answer's first token on harmless prompts, and how many statements the model
labels right after "This statement is:" with examples. The edits act at every token, as they do in the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steerlab.datasets import StatementSet
from steerlab.errors import SteerlabError
from steerlab.models import Edit, LanguageModel, Prompt
from steerlab.readouts.questions import answer_tokens, answer_words, plan, question
from steerlab.record import Record
from steerlab.statistics import Estimate, mean_and_extremes, proportion
from steerlab.steering.price import SideEffects, side_effects

_SHOTS = 4


class InterventionPrice(Record):
    """The price of one intervention in one model.

    direction: "own", or "random" (mean of several, from the least to the greatest). loss_change, kl: nats a token of
    plain text. prompt_kl: nats, at the last token of harmless prompts. task: share of statements labelled right;
    None where the model does not label above chance when it is not steered.
    """

    model: str
    intervention: Literal["none", "ablation", "addition"]
    direction: Literal["none", "own", "random"]
    loss_change: Estimate | None = None
    kl: Estimate | None = None
    prompt_kl: Estimate | None = None
    task: Estimate | None = None


@dataclass(frozen=True)
class Task:
    """Questions about statements with their answers; `tokens` are those of the two words."""

    prompts: tuple[Prompt, ...]
    labels: tuple[bool, ...]
    clusters: tuple[int, ...]
    tokens: tuple[int, int]

    @classmethod
    def of(cls, model: LanguageModel, statements: StatementSet, n: int, seed: int) -> Task:
        """Balanced statements behind four labelled ones of their topic. Raises `SteerlabError` where it cannot be."""
        words = answer_words([model])
        used = plan(statements, per_topic=max(8, n // 4), held_out=None, seed=seed, shots=_SHOTS)
        rows = used.balanced(tuple(dict.fromkeys(used.groups.tolist())), n, seed)
        prompts = [
            question(used.statements[row], used.examples[str(used.groups[row])], words, order=1 + row)
            for row in rows.tolist()
        ]
        return cls(
            tuple(prompts),
            tuple(bool(used.labels[row]) for row in rows),
            tuple(int(used.clusters[row]) for row in rows),
            answer_tokens(model, words),
        )

    def accuracy(self, model: LanguageModel) -> Estimate:
        """Share of statements labelled right, as the model stands."""
        true, false = self.tokens
        answers = model.logits(self.prompts, reduce=lambda logits: logits[:, true] > logits[:, false]).numpy()
        return proportion(answers == np.array(self.labels), clusters=np.array(self.clusters))


def prices(
    name: str,
    model: LanguageModel,
    own: Mapping[str, Edit],
    random: Mapping[str, Sequence[Edit]],
    *,
    texts: Sequence[str],
    harmless: Sequence[Prompt],
    statements: StatementSet | None,
    rows: int,
    seed: int,
    missing: dict[str, str],
) -> tuple[InterventionPrice, ...]:
    """Prices of a model's own direction and of random ones, by intervention ("ablation", "addition").

    What cannot be measured is said in `missing`.
    """
    conditions: dict[tuple[str, str, int], list[Edit]] = {
        (kind, "own", 0): [edit] for kind, edit in own.items()
    }
    conditions |= {
        (kind, "random", draw): [edit] for kind, edits in random.items() for draw, edit in enumerate(edits)
    }
    named = {"/".join(map(str, key)): edits for key, edits in conditions.items()}
    bar = f"price of steering in {name}"
    text = side_effects(model, texts, named, seed=seed, progress=bar) if texts else {}
    prompt = side_effects(model, harmless, named, positions="last", seed=seed)
    plain, task = _task(name, model, statements, rows, seed, missing)
    labelled = {key: _steered(model, task, edits) for key, edits in named.items()} if task else {}
    priced = [InterventionPrice(model=name, intervention="none", direction="none", task=plain)]
    for kind in own:
        for direction in ("own", "random"):
            keys = ["/".join(map(str, key)) for key in conditions if key[:2] == (kind, direction)]
            priced.append(
                InterventionPrice(
                    model=name,
                    intervention=kind,
                    direction=direction,
                    loss_change=_over(text, keys, lambda price: price.loss_change),
                    kl=_over(text, keys, lambda price: price.kl),
                    prompt_kl=_over(prompt, keys, lambda price: price.kl),
                    task=_pooled([labelled[key] for key in keys]) if labelled else None,
                )
            )
    return tuple(priced)


# -- private, in the order they are called --


def _task(
    name: str,
    model: LanguageModel,
    statements: StatementSet | None,
    rows: int,
    seed: int,
    missing: dict[str, str],
) -> tuple[Estimate | None, Task | None]:
    """The unsteered accuracy, and the task where it lies above chance."""
    if not statements:
        return None, None
    try:
        task = Task.of(model, statements, rows, seed)
        plain = task.accuracy(model)
    except SteerlabError as error:
        missing[f"task {name}"] = f"The labelled task was not measured in the {name} model: {error}"
        return None, None
    if plain.low <= max(np.mean(task.labels), 1 - np.mean(task.labels)):
        missing[f"task {name}"] = (
            f"The {name} model labels statements at chance ({plain}), so what steering does to that was not measured."
        )
        return plain, None
    return plain, task


def _steered(model: LanguageModel, task: Task, edits: Sequence[Edit]) -> Estimate:
    with model.steering(*edits):
        return task.accuracy(model)


def _over(
    measured: Mapping[str, SideEffects], keys: Sequence[str], pick: Callable[[SideEffects], Estimate | None]
) -> Estimate | None:
    values = [value for key in keys if key in measured and (value := pick(measured[key])) is not None]
    return _pooled(values) if values else None


def _pooled(values: Sequence[Estimate]) -> Estimate:
    """One estimate as it is; of several the mean, from the least to the greatest."""
    if len(values) == 1:
        return values[0]
    return mean_and_extremes(
        [value.value for value in values],
        "mean, least and greatest of {n} random directions of the same length",
    )
