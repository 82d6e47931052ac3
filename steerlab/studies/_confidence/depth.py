"""Behind a pair's confidence: what explains the entropy gap, frequency neurons, what fixed activations do, and
temperature.

Everything about neurons works on the last stream of some texts (`NeuronHead`): nothing is run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.neurons.effects import within
from steerlab.neurons.frequency import count_tokens, frequency_cosines, frequency_direction, frequency_effects
from steerlab.neurons.gap import Gap, entropy_gap
from steerlab.neurons.head import NeuronHead
from steerlab.neurons.weights import (
    Neurons,
    Rule,
    Spaces,
    layer_neurons,
    matched_neurons,
)
from steerlab.readouts.confidence import AnswerReading
from steerlab.record import Record, Role
from steerlab.statistics import Estimate, Number, brier_score, expected_calibration_error
from steerlab.studies._confidence.temperature import tempered_law

_TRIED = 48  # neurons whose frequency share is measured: those that lie most along the frequency direction
_STEPS = 9


class FrequencyRow(Record):
    """A neuron of the last layer along the frequency direction."""

    model: Role
    neuron: int
    cosine: Number
    total: Number
    share: Number
    kl_model_unigram: Number
    kl_unigram_model: Number


class FixedValues(Record):
    """Mean entropy with one neuron held at some values (quantiles of its own activations)."""

    model: Role
    neuron: int
    values: tuple[Number, ...]
    entropy: tuple[Number, ...]


class Tempered(Record):
    """Calibration on statements before and after one temperature, fitted on the other half of the subjects."""

    model: Role
    temperature: Number
    error: Estimate
    error_after: Estimate
    brier: Estimate
    brier_after: Estimate


class Depth(Record):
    """What lies behind a pair's confidence; `missing` says what the pair cannot take."""

    gap: Gap | None = None
    frequency: tuple[FrequencyRow, ...] = ()
    fixed: tuple[FixedValues, ...] = ()
    tempered: tuple[Tempered, ...] = ()
    missing: tuple[str, ...] = ()


def depth(
    models: Mapping[Role, LanguageModel],
    texts: Sequence[str],
    answers: Mapping[Role, AnswerReading],
    *,
    same_tokenizer: bool,
    randoms: int,
    rule: Rule = "published",
    seed: int = 0,
    known: Spaces | None = None,
) -> Depth:
    """Everything that this pair can take; `known`: output spaces that were made already, with the same seed."""
    known = known or Spaces(seed)
    missing: list[str] = []
    heads: dict[Role, NeuronHead] = {}
    chosen: dict[Role, tuple[Neurons, list[int]]] = {}
    for role, model in models.items():
        try:
            neurons = layer_neurons(model, model.n_layers - 1, known.of(model))
            chosen[role] = neurons, neurons.chosen(rule)
            heads[role] = NeuronHead(model, within(model, texts))
        except SteerlabError as error:
            missing.append(f"Neurons of the {role} model were not looked into: {error}")
            heads.pop(role, None)
    return Depth(
        gap=_gap(heads, chosen, same_tokenizer, randoms, missing, seed),
        frequency=tuple(row for role, head in heads.items() for row in frequency_rows(role, head, texts)),
        fixed=tuple(_fixed(role, head, chosen[role][1]) for role, head in heads.items() if chosen[role][1]),
        tempered=tuple(tempered(role, row, seed=seed) for role, row in answers.items()),
        missing=tuple(missing),
    )


def tempered(role: Role, reading: AnswerReading, *, seed: int) -> Tempered:
    """Two halves of the subjects, each with the temperature of the other; the mean temperature is reported."""
    true = np.clip(reading.p_true, 1e-12, 1 - 1e-12)
    scores = np.stack([np.log1p(-true), np.log(true)], axis=1)
    law, temperature = tempered_law(scores, reading.label.astype(np.int64), reading.subject, seed=seed)
    p = law[:, 1]

    def error(values: Float[np.ndarray, " row"]) -> Estimate:
        sure, right = np.maximum(values, 1 - values), (values > 0.5) == reading.label
        return expected_calibration_error(sure, right, reading.subject, seed=seed, draws=500)

    return Tempered(
        model=role,
        temperature=temperature,
        error=error(reading.p_true),
        error_after=error(p),
        brier=brier_score(reading.p_true, reading.label, reading.subject, seed=seed),
        brier_after=brier_score(p, reading.label, reading.subject, seed=seed),
    )


def frequency_rows(role: Role, head: NeuronHead, texts: Sequence[str]) -> list[FrequencyRow]:
    """The neurons that lie most along the frequency of the texts' tokens."""
    counts = count_tokens(head.model, texts)
    _, unit = frequency_direction(counts)
    along = np.abs(frequency_cosines(head, unit))
    tried = np.argsort(-along, kind="stable")[:_TRIED].tolist()
    effects = frequency_effects(head, counts, tried)
    return [
        FrequencyRow(
            model=role,
            neuron=tried[at],
            cosine=float(effects.cosine[at]),
            total=float(effects.total[at]),
            share=float(effects.share[at]),
            kl_model_unigram=float(effects.kl_model_unigram[at]),
            kl_unigram_model=float(effects.kl_unigram_model[at]),
        )
        for at in effects.candidates(5)
    ]


# -- private, in the order they are called --


def _gap(
    heads: Mapping[Role, NeuronHead],
    chosen: Mapping[Role, tuple[Neurons, list[int]]],
    same_tokenizer: bool,
    randoms: int,
    missing: list[str],
    seed: int,
) -> Gap | None:
    if len(heads) < 2:
        return None
    if not same_tokenizer:
        missing.append(
            "The entropy gap was not taken apart: the tokenizers differ, so tokens do not correspond."
        )
        return None
    base, post = heads["base"], heads["post"]
    n = len(chosen["base"][1])
    if base.acts.shape != post.acts.shape or not n:
        missing.append(
            "The entropy gap was not taken apart: the last layers differ in size, or no neuron stands out."
        )
        return None
    sets = {f"entropy neurons of {role}": members for role, (_, members) in chosen.items()}
    sets["all of the layer"] = list(range(base.n_neurons))
    norm = chosen["base"][0].norm
    draws = [
        matched_neurons(norm, chosen["base"][1], each=1, seed=seed + draw) for draw in range(4 * randoms)
    ]
    return entropy_gap(base, post, sets, draws, seed=seed)


def _fixed(role: Role, head: NeuronHead, candidates: Sequence[int]) -> FixedValues:
    """The candidate that writes most, held at quantiles of its own activations."""
    neuron = max(candidates, key=lambda number: float(head.w_out[number].norm()))
    values = np.quantile(head.acts[:, neuron].numpy(), np.linspace(0, 1, _STEPS))
    entropies = [float(head.entropy(head.ablated(neuron, value=float(value))).mean()) for value in values]
    return FixedValues(model=role, neuron=neuron, values=tuple(map(float, values)), entropy=tuple(entropies))
