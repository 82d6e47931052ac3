"""How sure one model is by itself, of plain text and of its labels of statements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steerlab.datasets import StudyData
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.readouts.confidence import AnswerReading, fitting, read_answers, read_texts
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.readouts.questions import Plan, answer_words, plan
from steerlab.registry import Size
from steerlab.studies._confidence.study import BUDGETS
from steerlab.studies._pair import Pair, amounts_of


def stage(model: LanguageModel, data: StudyData, *, size: Size = "quick", seed: int = 0) -> list[Reading]:
    """Entropy, loss and largest probability of each plain text, and the Brier score of each labelled statement.

    Raises:
        PromptError: no text of two tokens fits into this model.
    """
    budget = BUDGETS[amounts_of(size, Pair(model, model))]
    texts = fitting([model], list(dict.fromkeys(data.plain_text))[: budget.texts])
    if not texts:
        raise PromptError(f"No plain text of two tokens fits into {model.name}.")
    return [
        *_on_texts(model, texts, seed),
        *_on_statements(model, data, budget.statements_a_topic, seed),
    ]


# -- private, in the order they are called --


def _on_texts(model: LanguageModel, texts: Sequence[str], seed: int) -> list[Reading]:
    read = read_texts(model, texts, seed=seed, description="confidence on text")
    units = unit_names(texts)
    measured = (
        ("entropy of the next token", "nats", read.entropy),
        ("loss", "nats", read.loss),
        ("largest probability", "", read.p_max),
    )
    return [
        Reading.of(
            Quantity(study="confidence", of="plain text", measure=measure, unit=unit, per_token=True),
            units,
            read.by_text(values),
        )
        for measure, unit, values in measured
    ]


def _on_statements(model: LanguageModel, data: StudyData, per_topic: int, seed: int) -> list[Reading]:
    """The squared error of P(true) over both answers."""
    quantity = Quantity(study="confidence", of="labels of statements", measure="Brier score")
    try:
        words = answer_words([model])
        statements = data.labelled_statements
        used = plan(statements, per_topic=per_topic, held_out=len(statements), seed=seed)
        rows = used.rows(used.folds[0].test)
        answers, shots = _asked(model, used, rows, words)
    except SteerlabError as error:
        return [Reading.absent(quantity, str(error))]
    squared = (answers.p_true - answers.label) ** 2
    units = unit_names([used.statements[int(row)].text for row in rows])
    how = f"{shots} labelled lines, {words[0].strip()} or {words[1].strip()}"
    return [Reading.of(quantity, units, squared, answers.subject, how)]


def _asked(
    model: LanguageModel, used: Plan, rows: NDArray[np.int64], words: tuple[str, str]
) -> tuple[AnswerReading, int]:
    """The answers after four labelled lines, or after none where four leave no room."""
    try:
        return read_answers(model, used, rows, 4, words), 4
    except PromptError:
        return read_answers(model, used, rows, 0, words), 0
