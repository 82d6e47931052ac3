"""Confidence on multiple choice: is the chosen answer right as often as its probability says?

A question's answers are scored as its continuations ("continuations": the summed log-probability of the tokens behind
what the answers have in common with the question) or by their letters ("letters": answers listed as A), B), ..., the
letter asked for), normalised over the answers. The form with which the models answer best is chosen on some subjects
and measured on the others. One temperature for each model says how much of the miscalibration is a matter of scale
(`temperature`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from steerlab.datasets.multiple_choice import LETTERS, ChoiceQuestion
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import exact
from steerlab.readouts.confidence import Calibration, calibration
from steerlab.readouts.scoring import continuation_log_probability
from steerlab.record import Record, Role
from steerlab.statistics import Estimate, Number, bootstrap_mean, percent, proportion
from steerlab.studies._confidence.changes import Change, choice_changes
from steerlab.studies._confidence.temperature import law_at, tempered_law

Form = Literal["continuations", "letters"]
FEWEST = 20  # measured questions
_BUDGET = 2048  # padded tokens of one pass


@dataclass(frozen=True, eq=False)
class ChoiceReading:
    """A model's log-probabilities of the answers [question, choice] (-inf where a question has fewer), which is right,
    and the subject's number."""

    scores: Float[np.ndarray, "question choice"]
    right: Int[np.ndarray, " question"]
    subject: Int[np.ndarray, " question"]

    def law(self, temperature: float = 1.0) -> Float[np.ndarray, "question choice"]:
        """Probabilities, normalised over the answers."""
        return law_at(self.scores, temperature)


class ChoiceConfidence(Record):
    """Confidence of one model in the answers it chooses. chance: mean of one over the number of answers.

    brier: mean over questions of the squared distance between the law and the right answer (0 to 2). after: calibration
    with the temperature of the other half of the subjects; temperature: the mean of both.
    """

    model: Role
    n: int
    accuracy: Estimate
    chance: float
    confidence: Estimate
    brier: Estimate
    brier_after: Estimate
    calibration: Calibration
    after: Calibration
    temperature: Number

    @property
    def above_chance(self) -> bool:
        """Whether the interval of the accuracy lies above guessing."""
        return self.accuracy.low > self.chance


class Choices(Record):
    """Multiple choice of a pair: how it was asked, both models' confidence, or why it was not asked."""

    form: str
    source: str
    answers: tuple[ChoiceConfidence, ...]
    sentences: tuple[str, ...]
    changes: tuple[Change, ...] = ()


def choices_of_pair(
    models: Mapping[Role, LanguageModel], questions: Sequence[ChoiceQuestion], *, source: str, seed: int
) -> Choices:
    """Ask both models, in the form that they answer better with on a third of the subjects, and measure on the
    others."""
    subjects = np.unique([question.subject or question.text for question in questions], return_inverse=True)[
        1
    ]
    order = np.random.default_rng(seed).permutation(len(np.unique(subjects)))
    trial = np.isin(subjects, order[: len(order) // 3])
    tried = [question for question, chosen in zip(questions, trial, strict=True) if chosen]
    kept = [question for question, chosen in zip(questions, trial, strict=True) if not chosen]
    if len(kept) < FEWEST:
        return _not_asked(source, f"{len(questions)} questions are too few (at least {FEWEST} to measure).")
    best: tuple[float, Form] | None = None
    failed = ""
    forms: tuple[Form, ...] = ("continuations", "letters")
    for form in forms:
        try:
            share = min(_right(read_choices(model, tried, form)) for model in models.values())
        except SteerlabError as error:
            failed = str(error)
            continue
        if best is None or share > best[0]:
            best = share, form
    if best is None:
        return _not_asked(source, failed)
    try:
        readings = {role: read_choices(model, kept, best[1]) for role, model in models.items()}
    except SteerlabError as error:
        return _not_asked(source, str(error))
    answers = tuple(choice_confidence(role, reading, seed=seed) for role, reading in readings.items())
    changes = choice_changes(
        {role: reading.law() for role, reading in readings.items()},
        readings["base"].right,
        readings["base"].subject,
        above_chance=all(row.above_chance for row in answers),
        seed=seed,
    )
    return Choices(
        form=best[1],
        source=source,
        answers=answers,
        sentences=(_said(answers, best[1]),),
        changes=tuple(changes),
    )


def read_choices(
    model: LanguageModel, questions: Sequence[ChoiceQuestion], form: Form = "continuations"
) -> ChoiceReading:
    """Log-probability of every answer.

    Raises:
        PromptError: letters that are no single tokens, an answer that is the beginning of another, or a question beyond
            the context.
    """
    subjects = np.unique([question.subject or question.text for question in questions], return_inverse=True)[
        1
    ]
    width = max(len(question.choices) for question in questions)
    scores = np.full((len(questions), width), -np.inf)
    score = _letters if form == "letters" else _continuations
    for row, values in enumerate(score(model, questions)):
        scores[row, : len(values)] = values
    return ChoiceReading(
        scores, np.array([question.right for question in questions]), subjects.astype(np.int64)
    )


def choice_confidence(role: Role, reading: ChoiceReading, *, seed: int) -> ChoiceConfidence:
    """Every number of one model."""
    law, subject = reading.law(), reading.subject
    after, temperature = tempered_law(reading.scores, reading.right, subject, seed=seed)
    correct = law.argmax(axis=1) == reading.right
    return ChoiceConfidence(
        model=role,
        n=len(law),
        accuracy=proportion(correct, clusters=subject),
        chance=float(np.mean(1 / np.isfinite(reading.scores).sum(axis=1))),
        confidence=bootstrap_mean(law.max(axis=1), subject, seed=seed),
        brier=bootstrap_mean(_brier(law, reading.right), subject, seed=seed),
        brier_after=bootstrap_mean(_brier(after, reading.right), subject, seed=seed),
        calibration=calibration(law.max(axis=1).clip(0, 1), correct, subject, seed=seed),
        after=calibration(after.max(axis=1).clip(0, 1), correct, subject, seed=seed),
        temperature=temperature,
    )


# -- private, in the order they are called --


def _not_asked(source: str, why: str) -> Choices:
    sentence = f"Multiple choice was not asked: {why}"
    return Choices(form="not asked", source=source, answers=(), sentences=(sentence,))


def _right(reading: ChoiceReading) -> float:
    return float((reading.scores.argmax(axis=1) == reading.right).mean())


def _brier(
    law: Float[np.ndarray, "question choice"], right: Int[np.ndarray, " question"]
) -> Float[np.ndarray, " q"]:
    wanted = np.zeros_like(law)
    wanted[np.arange(len(law)), right] = 1
    return np.asarray(((law - wanted) ** 2).sum(axis=1))


def _said(answers: Sequence[ChoiceConfidence], form: str) -> str:
    at_chance = [row.model for row in answers if not row.above_chance]
    if at_chance:
        shown = ", ".join(f"{row.model} {row.accuracy:%}, chance {percent(row.chance)}" for row in answers)
        return f"Calibration on multiple choice is not identified for {' and '.join(at_chance)}: at chance ({shown})."
    base, post = answers
    return (
        f"On {base.n} multiple-choice questions ({form}) accuracy is {base.accuracy:%} base and {post.accuracy:%} "
        f"post, calibration error {base.calibration.error:.3f} and {post.calibration.error:.3f}; with one temperature "
        f"({base.temperature:.2f} and {post.temperature:.2f}) {base.after.error:.3f} and {post.after.error:.3f}."
    )


def _letters(model: LanguageModel, questions: Sequence[ChoiceQuestion]) -> list[Float[np.ndarray, " choice"]]:
    most = max(len(question.choices) for question in questions)
    ids = [model.token_id(f" {letter}") for letter in LETTERS[:most]]
    prompts = [
        "\n".join(
            [
                question.text,
                *(f"{letter}) {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)),
                "Answer:",
            ]
        )
        for question in questions
    ]
    law = model.logits(prompts, reduce=lambda logits: exact(logits).log_softmax(dim=-1)[:, ids]).numpy()
    return [row[: len(question.choices)] for row, question in zip(law, questions, strict=True)]


def _continuations(
    model: LanguageModel, questions: Sequence[ChoiceQuestion]
) -> list[Float[np.ndarray, " choice"]]:
    texts = [f"{question.text} {choice}" for question in questions for choice in question.choices]
    owner = [number for number, question in enumerate(questions) for _ in question.choices]
    lengths = model.lengths(texts)
    starts = _starts(model, questions)
    scores = np.zeros(len(texts))

    def read(batch: list[int]) -> None:
        tokens = model.tokenize([texts[row] for row in batch], padding_side="right")
        scores[batch] = continuation_log_probability(model, tokens, [starts[owner[row]] for row in batch])

    run_in_batches(read, lengths, _BUDGET)
    ends = np.cumsum([len(question.choices) for question in questions])[:-1]
    return list(np.split(scores, ends))


def _starts(model: LanguageModel, questions: Sequence[ChoiceQuestion]) -> list[int]:
    """The token behind what all answers of a question have in common."""
    starts = []
    for question in questions:
        tokens = model.tokenize(
            [f"{question.text} {choice}" for choice in question.choices], padding_side="right"
        )
        rows = [row[:length].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]
        same = 0
        while all(same < len(row) for row in rows) and len({row[same] for row in rows}) == 1:
            same += 1
        if any(same == len(row) for row in rows):
            raise PromptError(
                f"An answer to {question.text[:60]!r} is the beginning of another one, so they cannot be told apart; "
                "score by letters, or end the answers with a full stop."
            )
        starts.append(same)
    return starts
