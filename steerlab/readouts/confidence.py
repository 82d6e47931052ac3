"""How sure is a model, and is it right as often as it is sure?

On plain text: the entropy of the next-token law, its largest probability, and the calibration of that probability as
a forecast of the next token. On labelled statements ("... This statement is:"): the probability of one answer word
against the other (TRUE, FALSE), renormalised over the two, its calibration and Brier score. Intervals are over texts
and over statements' subjects.
Controls: a text's predictions against next tokens of other places and against a uniform law (a model that gains
nothing over these has not read the text), the calibration error a perfectly calibrated model would show on as many
answers, accuracy against always giving the more frequent answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import at_tokens, entropy, exact
from steerlab.progress import counting
from steerlab.readouts.questions import ANSWERS, Plan, answer_tokens, question
from steerlab.record import Record, Role
from steerlab.statistics import (
    Estimate,
    ReliabilityBin,
    bootstrap_mean,
    brier_score,
    calibration_null,
    expected_calibration_error,
    proportion,
    reliability_curve,
)

_BUDGET = 2048  # padded tokens of a forward pass
_BINS = 10
GAIN = 0.5  # nats a token that a model must gain over both controls to count as reading; trained ones gain several


class Calibration(Record):
    """Calibration error with equal-width and with adaptive bins, its floor, and the reliability curve.

    floor: the equal-width error of a perfectly calibrated model with the same confidences (mean, central 95 %).
    """

    error: Estimate
    adaptive: Estimate
    floor: Estimate
    curve: list[ReliabilityBin]


class TextConfidence(Record):
    """Next-token confidence on plain text. entropy, loss: nats a token. p_max: the largest probability.

    gain: nats a token by which the text's own next tokens are likelier than next tokens of other places, or than under
    a uniform law where that is less.
    """

    model: Role
    n_texts: int
    n_tokens: int
    vocab_size: int
    entropy: Estimate
    entropy_per_byte: Estimate
    p_max: Estimate
    loss: Estimate
    accuracy: Estimate
    gain: Estimate
    calibration: Calibration
    histogram_edges: list[float]
    histogram: list[float]

    @property
    def reads(self) -> bool:
        """True when the model predicts the text clearly better than the controls."""
        return self.gain.has_interval and self.gain.low > GAIN

    @property
    def untrained(self) -> bool:
        """True when the model neither reads the text nor prefers any tokens in it."""
        return untrained(self.gain, math.exp(self.entropy.value), self.vocab_size)


class AnswerConfidence(Record):
    """Confidence in the answer given. chance: share of the more frequent label. mass: P(TRUE) + P(FALSE)."""

    model: Role
    n: int
    accuracy: Estimate
    chance: float
    mass: Estimate
    confidence: Estimate
    brier: Estimate
    calibration: Calibration

    @property
    def above_chance(self) -> bool:
        """True when the interval of the accuracy lies above the more frequent label's share."""
        return self.accuracy.low > self.chance


@dataclass(frozen=True)
class TextReading:
    """Every predicted token of some texts: the text it is from and the law before it. Nats."""

    text: Int[np.ndarray, " token"]
    entropy: Float[np.ndarray, " token"]
    p_max: Float[np.ndarray, " token"]
    loss: Float[np.ndarray, " token"]
    loss_elsewhere: Float[np.ndarray, " token"]
    correct: Bool[np.ndarray, " token"]
    bytes: Int[np.ndarray, " text"]
    vocab_size: int

    def by_text(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " text"]:
        """Mean over the tokens of each text."""
        return np.asarray(np.bincount(self.text, weights=values) / np.bincount(self.text))

    def per_byte(self) -> Float[np.ndarray, " text"]:
        """Entropy of each text's tokens over its UTF-8 bytes."""
        return np.asarray(np.bincount(self.text, weights=self.entropy) / self.bytes)


@dataclass(frozen=True)
class AnswerReading:
    """[row] P(TRUE) over P(TRUE) + P(FALSE), that sum, the label and the subject's number."""

    p_true: Float[np.ndarray, " row"]
    mass: Float[np.ndarray, " row"]
    label: Bool[np.ndarray, " row"]
    subject: Int[np.ndarray, " row"]

    @property
    def confidence(self) -> Float[np.ndarray, " row"]:
        """Probability of the answer that is given."""
        return np.asarray(np.maximum(self.p_true, 1 - self.p_true))

    @property
    def correct(self) -> Bool[np.ndarray, " row"]:
        """Whether the answer that is given is right."""
        return np.asarray((self.p_true > 0.5) == self.label)


def fitting(models: Sequence[LanguageModel], texts: Sequence[str]) -> list[str]:
    """The texts, each cut (halved) until it fits into every model's context; those of less than two tokens left out."""
    fits = []
    for text in texts:
        while text and not all(_fits(model, text) for model in models):
            text = text[: len(text) // 2]
        if text.strip() and all(model.lengths([text])[0] >= 2 for model in models):
            fits.append(text)
    return fits


def read_texts(model: LanguageModel, texts: Sequence[str], *, seed: int, description: str) -> TextReading:
    """Run `texts` through the model and keep a few numbers of each predicted token."""
    lengths = model.lengths(texts)
    elsewhere = _elsewhere(model, texts, lengths, seed)
    columns: list[torch.Tensor] = [torch.empty(6, 0)] * len(texts)

    def read(chosen: list[int]) -> None:
        tokens = model.tokenize([texts[number] for number in chosen], padding_side="right")
        rows, places = tokens.attention_mask[:, 1:].nonzero(as_tuple=True)
        hidden = model.last_hidden(tokens, rows, places)
        target = tokens.input_ids[rows, places + 1]
        other = torch.cat([elsewhere[number] for number in chosen])
        parts = [_facts(logits, target[some], other[some]) for some, logits in model.logits_in_slices(hidden)]
        number = torch.tensor(chosen)[rows].double()
        found = torch.cat([number[None], torch.cat(parts, dim=1)])
        for row, text in enumerate(chosen):
            columns[text] = found[:, rows == row]

    with counting(description, len(texts)) as done:
        run_in_batches(read, lengths, _BUDGET, done=done)
    text, h, p_max, loss, loss_elsewhere, correct = torch.cat(columns, dim=1).numpy()
    size = np.array([len(text.encode()) for text in texts])
    return TextReading(
        text.astype(np.int64),
        h,
        p_max.clip(0, 1),
        loss,
        loss_elsewhere,
        correct > 0.5,
        size,
        model.vocab_size,
    )


def text_confidence(
    model: Role, reading: TextReading, edges: Float[np.ndarray, " edge"], *, seed: int
) -> TextConfidence:
    """Every number of one model on plain text; `edges`: bins of the entropy histogram, common to both models."""
    counts, _ = np.histogram(reading.entropy, bins=edges)
    return TextConfidence(
        model=model,
        n_texts=len(reading.bytes),
        n_tokens=len(reading.text),
        vocab_size=reading.vocab_size,
        entropy=bootstrap_mean(reading.entropy, reading.text, seed=seed),
        entropy_per_byte=bootstrap_mean(reading.per_byte(), seed=seed),
        p_max=bootstrap_mean(reading.p_max, reading.text, seed=seed),
        loss=bootstrap_mean(reading.loss, reading.text, seed=seed),
        accuracy=proportion(reading.correct, clusters=reading.text),
        gain=_gain(reading, seed),
        calibration=calibration(reading.p_max, reading.correct, reading.text, seed=seed),
        histogram_edges=edges.tolist(),
        histogram=(counts / len(reading.entropy)).tolist(),
    )


def reading_gain(model: LanguageModel, texts: Sequence[str], *, seed: int, description: str) -> Estimate:
    """Nats a token by which `texts`' own next tokens are likelier than by the controls: none in an untrained model."""
    fits = fitting([model], texts)
    if not fits:
        return Estimate(value=float("nan"))
    return _gain(read_texts(model, fits, seed=seed, description=description), seed)


def untrained(gain: Estimate, factor: float, vocab_size: int) -> bool:
    """No gain on real text and a law that spreads (exp of its entropy: `factor`) over a tenth of the vocabulary.

    A trained model that meets foreign text may gain nothing either, but it has clear, if wrong, expectations.
    """
    return not gain.low > GAIN and factor > vocab_size / 10


def read_answers(
    model: LanguageModel,
    plan: Plan,
    rows: Int[np.ndarray, " row"],
    shots: int,
    words: tuple[str, str] = ANSWERS[0],
) -> AnswerReading:
    """Ask about some rows of the plan for one of two words, with `shots` labelled lines before each."""
    true, false = answer_tokens(model, words)
    prompts = [
        question(plan.statements[row], plan.examples[str(plan.groups[row])][:shots], words, order=1 + row)
        for row in rows.tolist()
    ]
    law = model.logits(prompts, reduce=lambda logits: exact(logits).log_softmax(-1)[:, [true, false]])
    odds, mass = law[:, 0] - law[:, 1], law.exp().sum(-1)
    return AnswerReading(odds.sigmoid().numpy(), mass.numpy(), plan.labels[rows], plan.clusters[rows])


def answer_confidence(model: Role, reading: AnswerReading, *, seed: int) -> AnswerConfidence:
    """Every number of one model on labelled statements."""
    subject, share = reading.subject, float(reading.label.mean())
    return AnswerConfidence(
        model=model,
        n=len(reading.label),
        accuracy=proportion(reading.correct, clusters=subject),
        chance=max(share, 1 - share),
        mass=bootstrap_mean(reading.mass, subject, seed=seed),
        confidence=bootstrap_mean(reading.confidence, subject, seed=seed),
        brier=brier_score(reading.p_true, reading.label, subject, seed=seed),
        calibration=calibration(reading.confidence, reading.correct, subject, seed=seed),
    )


def calibration(
    confidence: Float[np.ndarray, " row"],
    correct: Bool[np.ndarray, " row"],
    clusters: Int[np.ndarray, " row"],
    *,
    seed: int,
) -> Calibration:
    """Calibration errors with intervals, their floor and the reliability curve, ten bins."""
    null = calibration_null(confidence, bins=_BINS, seed=seed)
    low, high = np.quantile(null, [0.025, 0.975])
    return Calibration(
        error=expected_calibration_error(confidence, correct, clusters, bins=_BINS, seed=seed),
        adaptive=expected_calibration_error(
            confidence, correct, clusters, bins=_BINS, adaptive=True, seed=seed, draws=500
        ),
        floor=Estimate(
            value=float(null.mean()),
            low=float(low),
            high=float(high),
            n=len(confidence),
            method=f"{len(null)} draws of right answers with the stated confidence, seed {seed}",
        ),
        curve=reliability_curve(confidence, correct, clusters, bins=_BINS),
    )


def _gain(reading: TextReading, seed: int) -> Estimate:
    """The smaller of the gains over other places' tokens and over a uniform law."""
    controls = (reading.loss_elsewhere, np.full(len(reading.loss), math.log(reading.vocab_size)))
    gains = [bootstrap_mean(control - reading.loss, reading.text, seed=seed) for control in controls]
    return min(gains, key=lambda gain: gain.value)


def _fits(model: LanguageModel, text: str) -> bool:
    try:
        model.tokenize([text])
    except PromptError:
        return False
    return True


def _elsewhere(
    model: LanguageModel, texts: Sequence[str], lengths: Sequence[int], seed: int
) -> list[Int[Tensor, " token"]]:
    """For each predicted token of each text a predicted token of a random place of all texts."""
    targets = torch.cat([model.tokenize([text]).input_ids[0, 1:] for text in texts])
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    return list(targets[order].split([length - 1 for length in lengths]))


def _facts(
    logits: Float[Tensor, "token vocab"], target: Int[Tensor, " token"], other: Int[Tensor, " token"]
) -> Float[Tensor, "5 token"]:
    """Entropy, largest probability, loss, loss of another place's token, and whether the likeliest is right."""
    law = logits.log_softmax(-1)
    best = law.max(-1)
    right = (best.indices.cpu() == target).double()
    values = (entropy(law), best.values.exp(), -at_tokens(law, target), -at_tokens(law, other))
    return torch.stack([*(value.cpu().double() for value in values), right])
