"""Are a pair's entropy neurons the same ones, more than any neurons chosen by weights are?

Fine-tuning hardly moves weights, so any rule that ranks neurons by weights picks almost the same ones twice. The
overlap (intersection over union) of the published rule in the last layer therefore stands beside: random neurons of
like norm, the opposite rule (highest LogitVar), the same rule in other layers, the base with itself on the two halves
of the vocabulary, and rank correlations over all neurons. The candidates themselves are tested by mean ablation
beside random neurons of like norm. Intervals: over blocks of the vocabulary (overlaps), neurons (correlations) and
texts (effects).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.stats import rankdata

from steerlab.errors import ModelError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.neurons.ablation import Effects, ablation_effects
from steerlab.neurons.weights import (
    COUNT,
    Neurons,
    OutputSpace,
    Spaces,
    iou,
    layer_neurons,
    logit_variance,
    lowest,
    matched_neurons,
)
from steerlab.record import Record, Role
from steerlab.statistics import Estimate, bootstrap, bootstrap_mean

_DRAWS = 500
_POINTS = 1500  # neurons drawn in the scatter beside the candidates
_LAYERS = 6  # other layers at which the rule is tried
_SHARE = 0.1  # a smaller share through the norm is not what makes an entropy neuron, however certain
_FLOOR = 1e-4  # nats: below it the share that acts through the norm is a ratio of noise


class Candidate(Record):
    """A neuron with its weights' numbers; `shared`: chosen in both models."""

    neuron: int
    norm: float
    logit_var: float
    null_share: float
    shared: bool


class NeuronSet(Record):
    """One model's last layer: its candidates by the published rule and by null space, and a cloud of all neurons."""

    model: Role
    layer: int
    n_neurons: int
    n_eligible: int
    null_size: int
    candidates: list[Candidate]
    by_null_space: list[int]
    cloud_norm: list[float]
    cloud_logit_var: list[float]


class NeuronAgreement(Record):
    """A number between -1 (or 0) and 1 that says how alike the two models' neurons are, or a control of it."""

    name: str
    kind: Literal["effect", "control", "ceiling"]
    value: Estimate


class NeuronEffect(Record):
    """Mean ablation of single neurons: nats of |change in entropy| a token. through_norm: 1 - direct / total."""

    model: Role
    group: Literal["candidates", "random, like norm", "candidates - random"]
    n: int
    total: Estimate
    direct: Estimate
    through_norm: Estimate


class PairNeurons(Record):
    """Everything about entropy neurons of a pair; `notes` says what could not be computed, and why."""

    sets: list[NeuronSet] = Field(default_factory=list)
    agreements: list[NeuronAgreement] = Field(default_factory=list)
    effects: list[NeuronEffect] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def specific(self) -> bool:
        """True when the overlap's interval lies above every overlap of the controls."""
        overlaps = [row for row in self.agreements if row.name.startswith("overlap")]
        if not overlaps:
            return False
        controls = [overlap.value for overlap in overlaps[1:] if overlap.kind == "control"]
        return all(overlaps[0].value.low > max(row.value, row.high) for row in controls)

    def acts_through_norm(self, model: Role) -> bool:
        """True when the candidates act through the norm: a tenth or more, and more than random neurons do."""
        rows = {effect.group: effect for effect in self.effects if effect.model == model}
        difference = rows.get("candidates - random")
        if difference is None or rows["candidates"].total.value < _FLOOR:
            return False
        return bool(difference.through_norm.low > 0 and rows["candidates"].through_norm.low > _SHARE)


def compare_neurons(
    base: LanguageModel,
    post: LanguageModel,
    texts: Sequence[str],
    *,
    randoms: int,
    seed: int,
    known: Spaces | None = None,
) -> PairNeurons:
    """Candidates of each model, their overlap with its controls, and the causal test on `texts`.

    Args:
        randoms: random neurons tested for each candidate.
        known: output spaces that were made already, with the same seed.

    What a model cannot give is left out and noted.
    """
    known = known or Spaces(seed)
    models: dict[Role, LanguageModel] = {"base": base, "post": post}
    spaces: dict[Role, OutputSpace] = {}
    by_role: dict[Role, Neurons] = {}
    effects: list[NeuronEffect] = []
    notes: list[str] = []
    for role, model in models.items():
        try:
            space = known.of(model)
            neurons = layer_neurons(model, model.n_layers - 1, space)
            if not neurons.candidates():
                raise ModelError(
                    "All neurons of the last layer have the same output norm, so none stands out."
                )
            by_role[role], spaces[role] = neurons, space
            effects += candidate_effects(role, model, by_role[role], texts, randoms, seed)
        except SteerlabError as error:
            notes.append(f"{role}: {error}")
    agreements: list[NeuronAgreement] = []
    if len(by_role) == 2:
        if reason := _incomparable(base, post):
            notes.append(reason)
        else:
            agreements = _agreements(models, by_role, spaces, seed)
    shared = (
        set.intersection(*(set(neurons.candidates()) for neurons in by_role.values()))
        if agreements
        else set()
    )
    sets = [_set(role, neurons, spaces[role], shared, seed) for role, neurons in by_role.items()]
    return PairNeurons(sets=sets, agreements=agreements, effects=effects, notes=notes)


def candidate_effects(
    role: Role, model: LanguageModel, neurons: Neurons, texts: Sequence[str], randoms: int, seed: int
) -> list[NeuronEffect]:
    """The candidates' effects beside those of random neurons, and the difference of the shares through the norm."""
    candidates = neurons.candidates()
    if 2 * len(candidates) > len(neurons.norm):
        raise ModelError(f"{len(neurons.norm)} neurons are too few to set random ones beside the candidates.")
    others = matched_neurons(neurons.norm, candidates, each=randoms, seed=seed)
    measured = ablation_effects(
        model, [*candidates, *others], texts, description=f"ablating neurons of {role}"
    )
    parts = {
        "candidates": _part(measured, slice(0, len(candidates))),
        "random, like norm": _part(measured, slice(len(candidates), None)),
    }
    first, second = parts.values()
    rows = [
        NeuronEffect(
            model=role,
            group=name,
            n=part.total.shape[1],
            total=bootstrap_mean(part.total.mean(1), seed=seed),
            direct=bootstrap_mean(part.direct.mean(1), seed=seed),
            through_norm=bootstrap(_through_norm, part.total, part.direct, seed=seed, draws=_DRAWS),
        )
        for name, part in parts.items()
    ]
    difference = NeuronEffect(
        model=role,
        group="candidates - random",
        n=len(candidates),
        total=bootstrap_mean(first.total.mean(1) - second.total.mean(1), seed=seed),
        direct=bootstrap_mean(first.direct.mean(1) - second.direct.mean(1), seed=seed),
        through_norm=bootstrap(
            lambda a, b, c, d: _through_norm(a, b) - _through_norm(c, d),
            first.total,
            first.direct,
            second.total,
            second.direct,
            seed=seed,
            draws=_DRAWS,
        ),
    )
    return [*rows, difference]


def _incomparable(base: LanguageModel, post: LanguageModel) -> str | None:
    """Why neuron numbers of the two models do not mean the same, if so."""
    for what in ("n_layers", "d_model", "d_mlp", "vocab_size"):
        first, second = getattr(base, what), getattr(post, what)
        if first != second:
            return (
                f"The overlap of neurons is not defined for this pair: {what} is {first} in the base and {second} in "
                "the post-trained model, so neuron numbers do not correspond."
            )
    return None


def _agreements(
    models: dict[Role, LanguageModel],
    neurons: dict[Role, Neurons],
    spaces: dict[Role, OutputSpace],
    seed: int,
) -> list[NeuronAgreement]:
    base, post = neurons["base"], neurons["post"]
    weights = _block_weights(len(spaces["base"].counts), seed)
    drawn = {role: _drawn(model, neurons[role], spaces[role], weights) for role, model in models.items()}
    rows = [
        NeuronAgreement(name="overlap of the candidates", kind="effect", value=_overlap(base, post, drawn)),
        NeuronAgreement(
            name="overlap of random neurons of like norm",
            kind="control",
            value=_random_overlap(base, post, seed),
        ),
        NeuronAgreement(
            name="overlap by the opposite rule (highest LogitVar)",
            kind="control",
            value=_overlap(base, post, drawn, sign=-1),
        ),
        *_other_layers(models, spaces, weights),
    ]
    if len(spaces["base"].counts) > 1:
        halves = _halves(models["base"], base, spaces["base"], seed)
        rows.append(
            NeuronAgreement(
                name="overlap of base with itself, halves of the vocabulary", kind="ceiling", value=halves
            )
        )
    for name, first, second in (
        ("rank correlation of LogitVar, all neurons", base.logit_var, post.logit_var),
        ("rank correlation of the norm, all neurons", base.norm, post.norm),
    ):
        value = bootstrap(_rank_correlation, first, second, seed=seed, draws=_DRAWS)
        rows.append(NeuronAgreement(name=name, kind="control", value=value))
    return rows


def _overlap(
    base: Neurons, post: Neurons, drawn: dict[Role, Float[np.ndarray, "draw neuron"]], sign: int = 1
) -> Estimate:
    """Overlap by LogitVar, with the interval over resampled blocks of the vocabulary (the same in both models)."""
    eligible = base.eligible(), post.eligible()

    def overlap(first: Float[np.ndarray, " neuron"], second: Float[np.ndarray, " neuron"]) -> float:
        return iou(lowest(sign * first, eligible[0], COUNT), lowest(sign * second, eligible[1], COUNT))

    value = overlap(base.logit_var, post.logit_var)
    draws = np.array([overlap(*pair) for pair in zip(drawn["base"], drawn["post"], strict=True)])
    method = f"vocabulary resampled in blocks, {len(draws)} draws"
    return _around(value, draws, n=len(draws), method=method) if len(draws) else Estimate(value=value)


def _random_overlap(base: Neurons, post: Neurons, seed: int) -> Estimate:
    """Overlap of as many neurons drawn at random from the eligible ones of each model."""
    rng = np.random.default_rng(seed)
    pools = [np.flatnonzero(model.eligible()) for model in (base, post)]
    draws = np.array(
        [iou(*(rng.permutation(pool)[:COUNT].tolist() for pool in pools)) for _ in range(_DRAWS)]
    )
    return _around(float(draws.mean()), draws, n=min(map(len, pools)), method=f"{_DRAWS} random sets")


def _other_layers(
    models: dict[Role, LanguageModel],
    spaces: dict[Role, OutputSpace],
    weights: Float[np.ndarray, "draw block"],
) -> list[NeuronAgreement]:
    """The published rule in earlier layers, at most six of them, where a layer has neurons of its own."""
    last = models["base"].n_layers - 1
    layers = sorted({round(place) for place in np.linspace(0, last - 1, min(_LAYERS, last))})
    rows = []
    for layer in layers:
        try:
            found = {role: layer_neurons(models[role], layer, spaces[role]) for role in models}
        except SteerlabError:
            continue
        drawn = {role: _drawn(models[role], found[role], spaces[role], weights) for role in models}
        name = f"overlap by the same rule in layer {layer}"
        rows.append(
            NeuronAgreement(name=name, kind="control", value=_overlap(found["base"], found["post"], drawn))
        )
    return rows


def _drawn(
    model: LanguageModel, neurons: Neurons, space: OutputSpace, weights: Float[np.ndarray, "draw block"]
) -> Float[np.ndarray, "draw neuron"]:
    """LogitVar by blocks of the vocabulary, of the eligible neurons; NaN for the others, which no rule takes."""
    eligible = neurons.eligible()
    values = np.full((len(weights), len(eligible)), np.nan)
    rows = model.w_into_stream(neurons.layer)[torch.from_numpy(eligible)]
    values[:, eligible] = logit_variance(rows, space, weights)
    return values


def _halves(model: LanguageModel, neurons: Neurons, space: OutputSpace, seed: int) -> Estimate:
    """How well the rule agrees with itself on disjoint halves of the vocabulary: the ceiling of any overlap."""
    rng = np.random.default_rng(seed)
    n_blocks = len(space.counts)
    weights = np.zeros((40, n_blocks))
    for row in range(0, len(weights), 2):
        half = rng.permutation(n_blocks)[: n_blocks // 2]
        weights[row, half] = 1
        weights[row + 1] = 1 - weights[row]
    eligible = neurons.eligible()
    picked = [lowest(values, eligible, COUNT) for values in _drawn(model, neurons, space, weights)]
    draws = np.array([iou(picked[row], picked[row + 1]) for row in range(0, len(picked), 2)])
    return _around(float(draws.mean()), draws, n=n_blocks, method=f"{len(draws)} random halves")


def _part(effects: Effects, columns: slice) -> Effects:
    return Effects(effects.total[:, columns], effects.direct[:, columns], effects.signed[:, columns])


def _through_norm(total: Float[np.ndarray, "text neuron"], direct: Float[np.ndarray, "text neuron"]) -> float:
    """1 - direct / total of the group as a whole; NaN where the total effect is too small to divide by."""
    whole = float(total.mean())
    return 1 - float(direct.mean()) / whole if whole > _FLOOR else float("nan")


def _rank_correlation(first: Float[np.ndarray, " neuron"], second: Float[np.ndarray, " neuron"]) -> float:
    ranks = rankdata(first), rankdata(second)
    if min(rank.std() for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _block_weights(blocks: int, seed: int) -> Float[np.ndarray, "draw block"]:
    """How often each block of the vocabulary was drawn; no draws where there is one block only."""
    if blocks < 2:
        return np.zeros((0, blocks))
    return (
        np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=200).astype(float)
    )


def _around(value: float, draws: Float[np.ndarray, " draw"], *, n: int, method: str) -> Estimate:
    """The central 95 % of the draws, widened to hold the value (an overlap of 1 is never exceeded by a draw)."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n, method=method)


def _set(role: Role, neurons: Neurons, space: OutputSpace, shared: set[int], seed: int) -> NeuronSet:
    cloud = np.random.default_rng(seed).permutation(len(neurons.norm))[:_POINTS]
    return NeuronSet(
        model=role,
        layer=neurons.layer,
        n_neurons=len(neurons.norm),
        n_eligible=int(neurons.eligible().sum()),
        null_size=space.null_size,
        candidates=[
            Candidate(
                neuron=number,
                norm=float(neurons.norm[number]),
                logit_var=float(neurons.logit_var[number]),
                null_share=float(neurons.null_share[number]),
                shared=number in shared,
            )
            for number in neurons.candidates()
        ],
        by_null_space=neurons.null_space_candidates(),
        cloud_norm=neurons.norm[cloud].tolist(),
        cloud_logit_var=neurons.logit_var[cloud].tolist(),
    )
