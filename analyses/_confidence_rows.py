"""The rows of `real_confidence.py`: one model's neurons, calibration and branching factor by the studies' functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from _part_files import Row

from steerlab.datasets import StatementSet
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.models.prompts import Template
from steerlab.neurons.effects import within
from steerlab.neurons.frequency import count_tokens, frequency_effects
from steerlab.neurons.head import NeuronHead
from steerlab.neurons.overlap import NeuronEffect, candidate_effects
from steerlab.neurons.weights import Neurons, Spaces, layer_neurons, matched_neurons
from steerlab.readouts.confidence import (
    Calibration,
    answer_confidence,
    calibration,
    fitting,
    read_texts,
    text_confidence,
)
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.questions import spoken
from steerlab.record import Role
from steerlab.statistics import Estimate, bootstrap_mean, proportion
from steerlab.studies._branching.measures import Measured, Sampled, halves, measure, ratio
from steerlab.studies._branching.single import sampled
from steerlab.studies._confidence.depth import frequency_rows, tempered
from steerlab.studies._confidence.study import Budget, ask
from steerlab.studies._confidence.temperature import law_at, tempered_law

Rendering = Literal["chat", "plain", "raw"]
_CONTROLS = 20  # random neurons beside frequency neurons, of which there are few
_ROLE: Role = "base"  # the studies' functions name the model by its role in a pair


def estimate(name: str, given: Estimate) -> Row:
    """The columns of a number: its value, the ends of its interval, and how many units are behind it."""
    numbers = {name: given.value, f"{name}_low": given.low, f"{name}_high": given.high}
    shown = {key: "" if math.isnan(value) else f"{value:.5g}" for key, value in numbers.items()}
    return {**shown, f"{name}_n": given.n}


# -- neurons --


def neuron_rows(
    model: LanguageModel, texts: Sequence[str], budget: Budget, spaces: Spaces, seed: int
) -> Iterator[Row]:
    """Entropy neurons by weights and by ablation, then frequency neurons; what the model cannot give, and why."""
    neurons = layer_neurons(model, model.n_layers - 1, spaces.of(model))
    yield from _by_weights(neurons, spaces.of(model).null_size, budget, seed)
    few = within(model, fitting([model], texts)[: budget.ablation_texts])
    try:
        effects = candidate_effects(_ROLE, model, neurons, few, budget.randoms, seed)
    except SteerlabError as error:
        yield {"quantity": "ablation of single neurons", "reason": str(error)}
    else:
        yield from _by_ablation(effects, neurons)
    try:
        yield from _by_frequency(NeuronHead(model, few), neurons, few, seed)
    except SteerlabError as error:
        yield {"quantity": "frequency neurons", "reason": str(error)}


def _by_weights(neurons: Neurons, null_size: int, budget: Budget, seed: int) -> Iterator[Row]:
    """LogitVar and null-space share of the candidates by either rule, beside random neurons of like norm."""
    for rule, chosen in (
        ("lowest LogitVar", neurons.candidates()),
        ("largest null-space share", neurons.null_space_candidates()),
    ):
        others = matched_neurons(neurons.norm, chosen, each=budget.randoms, seed=seed)
        for quantity, values in (
            ("LogitVar", neurons.logit_var),
            (f"share in the null space of {null_size} directions", neurons.null_share),
        ):
            yield {
                "quantity": quantity,
                "neurons": _named(neurons, chosen),
                "rule": rule,
                **estimate("value", bootstrap_mean(values[chosen], seed=seed)),
                **estimate("control", bootstrap_mean(values[others], seed=seed)),
                "interval_over": "neurons",
            }


def _by_ablation(effects: Sequence[NeuronEffect], neurons: Neurons) -> Iterator[Row]:
    """Effects of mean ablation on the entropy; the last row is the difference of the shares."""
    candidates, random, difference = effects
    common = {"neurons": _named(neurons, neurons.candidates()), "rule": "lowest LogitVar"}
    common |= {"interval_over": "texts"}
    for quantity, field in (
        ("total effect on the entropy (nats a token)", "total"),
        ("direct effect on the entropy (nats a token)", "direct"),
        ("share of the effect through the norm", "through_norm"),
    ):
        values = (getattr(effect, field) for effect in (candidates, random))
        pair = [estimate(name, value) for name, value in zip(("value", "control"), values, strict=True)]
        yield {"quantity": quantity, **common, **pair[0], **pair[1]}
    yield {
        "quantity": "share of the effect through the norm, candidates - random",
        **common,
        **estimate("value", difference.through_norm),
    }


def _by_frequency(head: NeuronHead, neurons: Neurons, texts: Sequence[str], seed: int) -> Iterator[Row]:
    """The study's candidates along the frequency of the texts' tokens, beside random neurons of like norm."""
    chosen = [row.neuron for row in frequency_rows(_ROLE, head, texts)]
    if not chosen:
        yield {"quantity": "frequency neurons", "reason": "No neuron moves the law towards frequent tokens."}
        return
    others = matched_neurons(neurons.norm, chosen, each=_CONTROLS // len(chosen), seed=seed)
    counts = count_tokens(head.model, texts)
    found, random = (frequency_effects(head, counts, some) for some in (chosen, others))
    for quantity, values, control in (
        ("|cosine with the frequency direction|", np.abs(found.cosine), np.abs(random.cosine)),
        ("|change of the loss| (nats a token)", found.total, random.total),
        ("share of it along the frequency direction", found.share, random.share),
        (
            "|change of KL(model, unigram)| (nats a token)",
            np.abs(found.kl_model_unigram),
            np.abs(random.kl_model_unigram),
        ),
    ):
        yield {
            "quantity": quantity,
            "neurons": _named(neurons, chosen),
            "rule": "frequency",
            **estimate("value", _mean_of_known(values, seed)),
            **estimate("control", _mean_of_known(control, seed)),
            "interval_over": "neurons",
        }


def _named(neurons: Neurons, chosen: Sequence[int]) -> str:
    return " ".join(f"{neurons.layer}.{number}" for number in chosen)


def _mean_of_known(values: np.ndarray, seed: int) -> Estimate:
    known = values[~np.isnan(values)]
    return bootstrap_mean(known, seed=seed) if len(known) else Estimate(value=math.nan)


# -- calibration --


def calibration_rows(
    model: LanguageModel, texts: Sequence[str], statements: StatementSet, budget: Budget, seed: int
) -> Iterator[Row]:
    """Calibration on plain text and on statements, with what one temperature of the other half leaves of it."""
    fits = fitting([model], texts)[: budget.texts]
    reading = read_texts(model, fits, seed=seed, description="reading texts")
    edges = np.linspace(0, float(reading.entropy.max()) + 1e-6, 33)
    on_text = text_confidence(_ROLE, reading, edges, seed=seed)
    yield {
        "on": "next tokens of plain texts",
        "n": on_text.n_tokens,
        **estimate("accuracy", on_text.accuracy),
        **estimate("confidence", on_text.p_max),
        **_errors(on_text.calibration),
        **estimate("entropy", on_text.entropy),
        "reason": "" if on_text.reads else "these texts are foreign to the model",
    }
    yield _tempered_text(model, within(model, fits[: 2 * budget.ablation_texts]), seed)
    asked, form, words = ask({_ROLE: model}, statements, None, budget, seed)
    if not asked:
        yield {"on": "statements", "reason": f"{form}"}
        return
    answers, after = (
        answer_confidence(_ROLE, asked[_ROLE], seed=seed),
        tempered(_ROLE, asked[_ROLE], seed=seed),
    )
    at_chance = "" if answers.above_chance else "accuracy at chance: calibration is not identified"
    yield {
        "on": f"statements ({form}, {spoken(words)} asked for)",
        "n": answers.n,
        "chance": f"{answers.chance:.5g}",
        **estimate("accuracy", answers.accuracy),
        **estimate("confidence", answers.confidence),
        **_errors(answers.calibration),
        "temperature": f"{after.temperature:.5g}",
        **estimate("error_after", after.error_after),
        "reason": at_chance,
    }


def _errors(found: Calibration) -> Row:
    return {
        **estimate("error", found.error),
        **estimate("adaptive", found.adaptive),
        **estimate("floor", found.floor),
    }


def _tempered_text(model: LanguageModel, texts: Sequence[str], seed: int) -> Row:
    """One temperature on the texts whose logits fit into memory: fitted on half of them, used on the other half."""
    logits, target, text = _logits(model, texts)
    law, temperature = tempered_law(logits, target, text, seed=seed)
    before, after = (
        calibration(of.max(axis=1).clip(0, 1), of.argmax(axis=1) == target, text, seed=seed)
        for of in (law_at(logits), law)
    )
    right = logits.argmax(axis=1) == target
    return {
        "on": f"next tokens of the first {len(texts)} plain texts, one temperature for half of them",
        "n": len(target),
        **estimate("accuracy", proportion(right, clusters=text)),
        **_errors(before),
        "temperature": f"{temperature:.5g}",
        **estimate("error_after", after.error),
    }


def _logits(model: LanguageModel, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[token, vocab] logits before every next token of the texts, that token, and its text."""
    scores, target, text = [], [], []
    for number, one in enumerate(texts):
        tokens = model.tokenize([one])
        places = torch.arange(tokens.lengths[0] - 1)
        hidden = model.last_hidden(tokens, torch.zeros_like(places), places)
        scores += [logits.cpu().numpy() for _, logits in model.logits_in_slices(hidden)]
        target.append(tokens.input_ids[0, 1 : tokens.lengths[0]].cpu().numpy())
        text.append(np.full(len(places), number))
    return np.concatenate(scores), np.concatenate(target), np.concatenate(text)


# -- branching --


def branching_rows(
    model: LanguageModel,
    prompts: Sequence[str],
    renderings: Mapping[Rendering, Template],
    *,
    samples: int,
    steps: int,
    seed: int,
) -> list[Row]:
    """The branching factor in each rendering, beside the model against itself and against the first rendering."""
    records = {
        rendering: Sampled(
            model.tokenizer,
            sampled(
                model,
                prompts,
                template=template,
                samples=samples,
                max_new_tokens=steps,
                law=SamplingLaw(),
                seed=seed,
                description=f"sampling, {rendering}",
            ),
            seed,
        )
        for rendering, template in renderings.items()
    }
    logs = {name: record.by_prompt(record.trajectories.entropy) for name, record in records.items()}
    first = next(iter(logs))
    return [
        {
            **_measured_columns(measure(_ROLE, rendering, record)),
            **estimate("itself", halves(record)),
            **(
                {}
                if rendering == first
                else estimate("over_first", ratio(logs[rendering], logs[first], seed=seed))
            ),
        }
        for rendering, record in records.items()
    ]


def _measured_columns(found: Measured) -> Row:
    return {
        "rendering": found.rendering,
        "n_prompts": found.n_prompts,
        "n_sequences": found.n_sequences,
        "n_tokens": found.n_tokens,
        **estimate("factor", found.factor),
        **estimate("untruncated", found.untruncated),
        **estimate("nats_per_byte", found.nats_per_byte),
        **estimate("length", found.length),
        **estimate("ended", found.ended),
        "martingale_z": f"{found.martingale_z:.3g}",
    }
