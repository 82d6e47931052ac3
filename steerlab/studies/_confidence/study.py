"""Did post-training change how sure the model is, is it still right as often as it is sure, and do neurons explain it?

Next-token entropy and calibration on plain texts (the same texts, no template, in both models); calibration of one
answer word against the other on labelled statements in one stated form; candidates for entropy neurons and their
overlap beside its nulls. Entropies are compared by text, answers by statement. "Not identified" stands where a model
does not read the texts, or answers at chance, or the change does not leave its null (the labels base and post swapped
at random text by text). Source for the question: Du et al., 2025 (arXiv 2504.02904), which measured the overlap only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steerlab.datasets import ChoiceQuestion, StatementSet, StudyData, choice_questions
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.neurons.overlap import compare_neurons
from steerlab.neurons.weights import Spaces
from steerlab.readouts.confidence import (
    AnswerConfidence,
    AnswerReading,
    TextConfidence,
    TextReading,
    answer_confidence,
    fitting,
    read_answers,
    read_texts,
    text_confidence,
)
from steerlab.readouts.questions import ANSWERS, answer_words, plan
from steerlab.record import Record, Role
from steerlab.registry import Preset, Size, check_options
from steerlab.results import Headline
from steerlab.studies._confidence.changes import Change, answer_changes, text_changes
from steerlab.studies._confidence.choices import Choices, choices_of_pair
from steerlab.studies._confidence.depth import depth
from steerlab.studies._confidence.result import ConfidenceResult
from steerlab.studies._confidence.sentences import answer_summary, depth_summary, neuron_summary, text_summary
from steerlab.studies._pair import LARGE, Models, Pair, amounts_note, amounts_of


class Budget(Record):
    """Texts read, statements of each topic, texts for the neurons' ablation and random neurons a candidate."""

    texts: int
    statements_a_topic: int
    ablation_texts: int
    randoms: int


BUDGETS: dict[str, Budget] = {
    "quick": Budget(texts=60, statements_a_topic=24, ablation_texts=10, randoms=2),
    LARGE: Budget(texts=40, statements_a_topic=8, ablation_texts=8, randoms=2),
    "full": Budget(texts=1000, statements_a_topic=200, ablation_texts=50, randoms=10),
}
_SHOTS = (0, 4)


# Long: a third or more of it documents its options.
def confidence(
    pair: Pair | Models,
    data: StudyData | StatementSet | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    plain_text: Sequence[str] | None = None,
    questions: Sequence[ChoiceQuestion] | None = None,
    answers: tuple[str, str] | None = None,
) -> ConfidenceResult:
    """Confidence of a pair of models on plain text, labelled statements and multiple choice, and entropy neurons.

    Args:
        pair: base and post, loaded.
        data: statements, or everything that studies read; None takes the packaged sets.
        size: "full" reads more texts and asks about more statements.
        preset: there is only "corrected".
        plain_text: texts read without a template; None takes those of `data`.
        questions: multiple choice (`datasets.read_multiple_choice`); by default made from the true statements, whose
            objects are the answers.
        answers: the words for true and false that statements are asked with, each one token in both models (with their
            space); by default the first of `readouts.questions.ANSWERS` that are.

    Raises:
        PromptError: fewer than two texts fit into both models, or named answers that are not single tokens.
        SteerlabError: an unknown size or preset.
    """
    check_options("The confidence study", size=size, preset=preset)
    pair = Pair.of(pair)
    amounts = amounts_of(size, pair)
    budget = BUDGETS[amounts]
    data = StudyData.of(data, "statements", pair.topics).with_own(plain_text=plain_text, questions=questions)
    models: dict[Role, LanguageModel] = {"base": pair.base, "post": pair.post}
    words = None if answers is None else answer_words(pair, answers)
    texts, readings = _read(models, data.plain_text, budget, seed)
    edges = np.linspace(0, max(float(reading.entropy.max()) for reading in readings.values()) + 1e-6, 33)
    on_texts = [text_confidence(role, reading, edges, seed=seed) for role, reading in readings.items()]
    asked, form, words = ask(models, data.labelled_statements, words, budget, seed)
    answered = [answer_confidence(role, reading, seed=seed) for role, reading in asked.items()]
    choices = _choices(models, data.labelled_statements, data.questions, budget, seed)
    changes = text_changes(readings, pair.same_tokenizer, seed) + answer_changes(asked, answered, seed)
    few = texts[: budget.ablation_texts]
    how: dict[str, Any] = {"randoms": budget.randoms, "seed": seed, "known": Spaces(seed)}
    neurons = compare_neurons(pair.base, pair.post, few, **how)
    behind = depth(models, few, asked, same_tokenizer=pair.same_tokenizer, **how)
    return ConfidenceResult(
        status="done" if _identified(on_texts, changes, answered) else "not identified",
        summary=[
            *text_summary(on_texts, changes),
            *answer_summary(answered, changes, form, words),
            *choices.sentences,
            *neuron_summary(neurons),
            *depth_summary(behind),
            *amounts_note(amounts),
        ],
        headline=Headline(
            what=f"post minus base, {changes[0].what}",
            value=changes[0].value,
            control=changes[0].control,
            control_name="base and post swapped at random",
        ),
        texts=on_texts,
        form=form,
        words=words,
        answers=answered,
        changes=changes,
        neurons=neurons,
        same_tokenizer=pair.same_tokenizer,
        choices=choices,
        depth=behind,
    )


def ask(
    models: dict[Role, LanguageModel],
    statements: StatementSet,
    words: tuple[str, str] | None,
    budget: Budget,
    seed: int,
) -> tuple[dict[Role, AnswerReading], str, tuple[str, str]]:
    """The models' answers in the form that labels two topics best (left out after), or why there are none."""
    asked_for = words or ANSWERS[0]
    try:
        asked_for = words or answer_words(models.values())
        chosen = plan(statements, per_topic=budget.statements_a_topic, held_out=len(statements), seed=seed)
        fold = chosen.folds[0]
        trial = chosen.balanced(fold.train, 2 * budget.statements_a_topic, seed)

        def accuracy(shots: int) -> float:
            return sum(
                float(read_answers(model, chosen, trial, shots, asked_for).correct.mean())
                for model in models.values()
            )

        shots = max(_SHOTS, key=accuracy)
        rows = chosen.rows(fold.test)
        readings = {
            role: read_answers(model, chosen, rows, shots, asked_for) for role, model in models.items()
        }
    except SteerlabError as error:
        return {}, f"not asked: {error}", asked_for
    form = "after four labelled statements of the topic" if shots else "the bare statement"
    return readings, form, asked_for


# -- private, in the order they are called --


def _read(
    models: dict[Role, LanguageModel], plain_text: Sequence[str], budget: Budget, seed: int
) -> tuple[list[str], dict[Role, TextReading]]:
    """The texts that fit into both models, and what each model makes of them."""
    texts = fitting(list(models.values()), list(dict.fromkeys(plain_text))[: budget.texts])
    if len(texts) < 2:
        raise PromptError(
            "Confidence needs at least two plain texts of two tokens that fit into both models; give shorter ones."
        )
    return texts, {
        role: read_texts(model, texts, seed=seed, description=f"confidence on text, {role}")
        for role, model in models.items()
    }


def _identified(
    on_texts: Sequence[TextConfidence], changes: Sequence[Change], answers: Sequence[AnswerConfidence]
) -> bool:
    """Whether a change on texts leaves its null, or both models answer above chance."""
    readable = not any(row.untrained for row in on_texts)
    changed = any(change.identified for change in changes if change.of == "texts")
    return (readable and changed) or (bool(answers) and all(row.above_chance for row in answers))


def _choices(
    models: dict[Role, LanguageModel],
    statements: StatementSet,
    questions: Sequence[ChoiceQuestion] | None,
    budget: Budget,
    seed: int,
) -> Choices:
    """Multiple choice of the caller's questions, or of those that the statements make."""
    if questions is not None:
        return choices_of_pair(models, questions, source="The caller's questions.", seed=seed)
    from_statements = choice_questions(statements, seed=seed)
    limit = 6 * budget.statements_a_topic
    if len(from_statements) > limit:
        from_statements = [
            from_statements[row]
            for row in np.sort(np.random.default_rng(seed).permutation(len(from_statements))[:limit])
        ]
    source = "True statements cut before their object, among objects of the same topic."
    return choices_of_pair(models, from_statements, source=source, seed=seed)
