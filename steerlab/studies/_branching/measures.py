"""The numbers of a branching study: one model in one rendering, and paired ratios between two of them.

All intervals are over prompts (cluster bootstrap, every sample of a drawn prompt with it); ratios are paired by
prompt. Logarithms are averaged, exponentials taken last. The estimators are in `estimators`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from steerlab.readouts.sampling import Trajectories
from steerlab.record import Record, Role
from steerlab.statistics import (
    Estimate,
    Number,
    bootstrap,
    bootstrap_curve,
    bootstrap_mean,
    but_for_rounding,
    paired_difference,
    proportion,
)
from steerlab.studies._branching import estimators

TURN = "\nUser:"  # where the next turn of a plain rendering begins: the first answer ends with it
LOOPING = 0.5  # a sequence with this share of repeated 4-grams runs in a loop


class Measured(Record):
    """One model in one rendering. Intervals are over prompts; entropies are nats, factors their exponentials.

    factor: exp of the mean over prompts of log BF. factor_mean: mean of BF over prompts. factor_tokens: every token
    counts the same. factor_surprisal: the same from surprisals. untruncated: BF before truncation. first_answer: BF
    up to the next turn marker. unlooped: BF of the sequences without loops. total: nats an output. length: steps an
    output. ended: share that ended by themselves. kept: tokens kept by the truncation. repetition: share of repeated
    4-grams in the last 64 tokens. martingale_z: check of the record. curve, alive: local BF and share of sequences
    alive by position; cohort: the same over the sequences of at least as many steps as it is long.
    """

    model: Role
    rendering: Literal["chat", "plain", "raw"]
    n_prompts: int
    n_sequences: int
    n_tokens: int
    factor: Estimate
    factor_mean: Estimate
    factor_tokens: Estimate
    factor_surprisal: Estimate
    untruncated: Estimate
    first_answer: Estimate
    unlooped: Estimate
    total: Estimate
    length: Estimate
    ended: Estimate
    kept: Estimate
    repetition: Estimate
    nats_per_byte: Estimate
    martingale_z: Number
    curve: list[Estimate]
    alive: list[float]
    cohort: list[Estimate]
    cohort_size: int

    @property
    def name(self) -> str:
        """Model and rendering in words."""
        return f"{self.model}, {'raw text' if self.rendering == 'raw' else self.rendering + ' rendering'}"


class Contrast(Record):
    """A paired ratio of branching factors, same prompts on both sides; 1 is no difference."""

    name: str
    kind: Literal["effect", "control", "other"]
    ratio: Estimate


@dataclass(frozen=True)
class Sampled:
    """What one model wrote in one rendering, with the tokenizer that reads it."""

    tokenizer: Any
    trajectories: Trajectories
    seed: int

    def by_prompt(self, values: Float[np.ndarray, "sequence step"]) -> Float[np.ndarray, " prompt"]:
        """Log factor of each prompt."""
        return estimators.by_prompt(estimators.sequence_means(values), self.trajectories.prompt)

    def texts(self) -> list[str]:
        """The outputs as text, special tokens left out."""
        return [self._decode(tokens) for tokens in self._tokens]

    @cached_property
    def first_answers(self) -> Trajectories:
        """The sequences up to the token that completes the next turn's marker."""
        return self.trajectories.cut(np.array([self._first_answer(tokens) for tokens in self._tokens]))

    @cached_property
    def repetition(self) -> Float[np.ndarray, " sequence"]:
        """Share of repeated 4-grams near the end of each sequence."""
        return estimators.repetition_rate(self._tokens)

    @cached_property
    def _tokens(self) -> list[list[int]]:
        rows = zip(self.trajectories.tokens, self.trajectories.lengths, strict=True)
        return [row[:length].tolist() for row, length in rows]

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _first_answer(self, tokens: list[int]) -> int:
        """Steps up to the first prefix whose text holds the marker; all of them when none does."""
        if TURN not in self._decode(tokens):
            return len(tokens)
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if TURN in self._decode(tokens[:middle]) else (middle + 1, high)
        return low


def measure(model: Role, rendering: Literal["chat", "plain", "raw"], record: Sampled) -> Measured:
    """Every number of one model in one rendering."""
    runs, seed = record.trajectories, record.seed
    entropy, prompt = runs.entropy, runs.prompt
    logs = record.by_prompt(entropy)
    steps = runs.lengths
    # each token a row, its prompt its cluster: means over rows are ratios of sums
    of_token = np.repeat(prompt, steps)
    there = ~np.isnan(entropy)
    cohort_size = estimators.largest_cohort(entropy)
    cohort = estimators.cohort(entropy, cohort_size)
    return Measured(
        model=model,
        rendering=rendering,
        n_prompts=len(logs),
        n_sequences=len(runs),
        n_tokens=int(steps.sum()),
        factor=bootstrap_mean(logs, seed=seed).transform(math.exp),
        factor_mean=bootstrap_mean(np.exp(logs), seed=seed),
        factor_tokens=bootstrap_mean(entropy[there], of_token, seed=seed).transform(math.exp),
        factor_surprisal=bootstrap_mean(runs.surprisal[there], of_token, seed=seed).transform(math.exp),
        untruncated=bootstrap_mean(record.by_prompt(runs.untruncated), seed=seed).transform(math.exp),
        first_answer=bootstrap_mean(record.by_prompt(record.first_answers.entropy), seed=seed).transform(
            math.exp
        ),
        unlooped=_unlooped(record),
        total=bootstrap_mean(np.nansum(entropy, axis=1), prompt, seed=seed),
        length=bootstrap_mean(steps, prompt, seed=seed),
        ended=proportion(runs.ended, clusters=prompt),
        kept=bootstrap_mean(runs.kept[there], of_token, seed=seed),
        repetition=_mean_of_known(record.repetition, prompt, seed),
        nats_per_byte=_per_byte(record),
        martingale_z=estimators.martingale_z(entropy, runs.surprisal),
        curve=local_curve(entropy, prompt, seed),
        alive=(estimators.alive(entropy) / len(runs)).tolist(),
        cohort=local_curve(entropy[cohort, :cohort_size], prompt[cohort], seed),
        cohort_size=int(cohort.sum()),
    )


def ratio(
    first: Float[np.ndarray, " prompt"], second: Float[np.ndarray, " prompt"], *, seed: int
) -> Estimate:
    """Ratio of two branching factors from their log factors by prompt, paired."""
    return paired_difference(first, second, seed=seed).transform(math.exp)


def per_byte_ratio(first: Sampled, second: Sampled) -> Estimate:
    """Ratio of the entropies per UTF-8 byte, paired by prompt."""
    (a_nats, a_bytes), (b_nats, b_bytes) = (_nats_and_bytes(record) for record in (first, second))
    return bootstrap(
        lambda a, b, c, d: float(a.sum() / b.sum() / (c.sum() / d.sum())),
        *(but_for_rounding(a_nats, b_nats), a_bytes, b_nats, b_bytes),
        seed=first.seed,
    )


def halves(record: Sampled) -> Estimate:
    """The ratio of a model against itself: its even against its odd samples of each prompt."""
    runs = record.trajectories
    even = runs.sample % 2 == 0
    if even.all():
        return Estimate(value=math.nan)
    means = estimators.sequence_means(runs.entropy)
    first, second = (estimators.by_prompt(means[half], runs.prompt[half]) for half in (even, ~even))
    return ratio(first, second, seed=record.seed)


def local_curve(
    values: Float[np.ndarray, "sequence step"], prompt: Int[np.ndarray, " sequence"], seed: int
) -> list[Estimate]:
    """The local branching factor of the sequences still running, by position."""
    return [point.transform(math.exp) for point in bootstrap_curve(values, prompt, seed=seed, draws=1000)]


def _unlooped(record: Sampled) -> Estimate:
    keep = ~(record.repetition >= LOOPING)  # too short to repeat anything counts as no loop
    if not keep.any():
        return Estimate(value=math.nan)
    runs = record.trajectories
    logs = estimators.by_prompt(estimators.sequence_means(runs.entropy[keep]), runs.prompt[keep])
    return bootstrap_mean(logs, seed=record.seed).transform(math.exp)


def _mean_of_known(
    values: Float[np.ndarray, " sequence"], prompt: Int[np.ndarray, " sequence"], seed: int
) -> Estimate:
    known = ~np.isnan(values)
    return (
        bootstrap_mean(values[known], prompt[known], seed=seed) if known.any() else Estimate(value=math.nan)
    )


def _per_byte(record: Sampled) -> Estimate:
    return bootstrap(lambda a, b: float(a.sum() / b.sum()), *_nats_and_bytes(record), seed=record.seed)


def _nats_and_bytes(record: Sampled) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """Entropy and bytes written, summed (as means over its samples) by prompt; an empty text counts as one byte."""
    prompt = record.trajectories.prompt
    size = np.array([max(1, len(text.encode())) for text in record.texts()], dtype=np.float64)
    nats = np.nansum(record.trajectories.entropy, axis=1)
    return estimators.by_prompt(nats, prompt), estimators.by_prompt(size, prompt)
