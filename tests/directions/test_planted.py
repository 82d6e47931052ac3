"""Every estimator against a direction written into a model's weights.

Object words of the planted model carry +1 (good) or -1 (bad) along the truth axis and nothing else that differs; random
maps from the words before them add noise, in the axis as elsewhere, of which some dimensions hold much more than
others. States are read at the object. In one member of each pair an extra word plays the part of "not".
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.base import clone
from studies import planted_models as planted

from steerlab.activations import Activations, capture
from steerlab.directions import (
    Ccs,
    DifferenceInMeans,
    Lda,
    LinearDirection,
    LogisticProbe,
    MassMean,
    PcaReader,
    Ttpd,
    fit_direction,
)
from steerlab.models import LanguageModel, Site

FIRST, LAST = Site("resid_post", 0), Site("resid_post", planted.LAYERS - 1)
CONTEXT = (*planted.SUBJECTS, *planted.TOPICS, *planted.THINGS, *planted.HARMLESS)
CHANCE = 0.25  # 95 of 100 random directions of this width lie below

# The least cosine with the axis at the first and the last layer. Those that find the shift of the means find the axis;
# discriminants find Σ⁻¹ of it, and Adam's steps are of one size in every coordinate (cosine √(2/π) with a round one).
BOUNDS: list[tuple[LinearDirection, float, float]] = [
    (DifferenceInMeans(), 0.99, 0.99),
    (MassMean(), 0.99, 0.99),
    (MassMean(tilt=True), 0.75, 0.4),
    (Lda(), 0.8, 0.45),
    (Lda("oas"), 0.8, 0.45),
    (LogisticProbe(), 0.8, 0.65),
    (LogisticProbe(standardise=False), 0.95, 0.65),
    (LogisticProbe(solver="adamw", standardise=False), 0.7, 0.6),
    (PcaReader(), 0.99, 0.98),
    (PcaReader("shuffled"), 0.99, 0.98),
    (Ccs(), 0.6, 0.55),
    (Ccs(1, fit_intercept=False, standardise=False, weight_decay=0.1), 0.7, 0.55),
    (Ttpd(), 0.99, 0.99),
]


class Read(NamedTuple):
    states: Activations
    labels: list[int]
    pairs: list[int]
    polarity: list[int]


@cache
def model() -> LanguageModel:
    made, axis = planted.planted(), planted.truth_axis()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        embedding = made.model.model.embed_tokens.weight
        objects = [planted.WORDS.index(word) for word in (*planted.GOOD, *planted.BAD)]
        truth, shared = embedding[objects] @ axis, embedding[objects].mean(0)
        embedding[objects] = shared - (shared @ axis) * axis + truth[:, None] * axis
        for layer in made.model.model.layers:
            read = torch.randn(planted.WIDTH - 2, planted.WIDTH, generator=generator) / planted.WIDTH**0.5
            layer.self_attn.v_proj.weight[2:] = read - (read @ axis)[:, None] * axis
            written = torch.randn(planted.WIDTH, planted.WIDTH - 2, generator=generator)
            layer.self_attn.o_proj.weight[:, 2:] = 2.0 * written / planted.WIDTH**0.5
    return made


@cache
def read(seed: int, n: int = 200) -> Read:
    """`n` pairs; half of their words before the object are shared."""
    random = np.random.default_rng(seed)
    texts, labels, pairs, polarity = [], [], [], []
    for pair in range(n):
        shared = random.choice(CONTEXT, 3)
        for label in (1, 0):
            negated = label == pair % 2
            own = random.choice(CONTEXT, 3)
            object_ = random.choice(planted.GOOD if label else planted.BAD)
            texts.append(" ".join([*shared, *own, *(["do"] if negated else []), object_]))
            labels.append(label)
            pairs.append(pair)
            polarity.append(-1 if negated else 1)
    return Read(capture(model(), texts, [FIRST, LAST]), labels, pairs, polarity)


def cosines(estimator: LinearDirection) -> list[float]:
    data = read(0)
    found = fit_direction(
        data.states, data.labels, estimator, pairs=data.pairs, polarity=data.polarity
    ).unit()
    return [float(found[site] @ planted.truth_axis()) for site in found.sites]


@pytest.mark.parametrize(("estimator", "first", "last"), BOUNDS, ids=lambda value: str(value))
def test_the_planted_direction_is_found(estimator: LinearDirection, first: float, last: float) -> None:
    found = cosines(estimator)
    assert min(first, last) > CHANCE
    assert found[0] > first
    assert found[1] > last


@pytest.mark.parametrize("estimator", [estimator for estimator, _, _ in BOUNDS], ids=str)
def test_what_was_learnt_tells_new_statements(estimator: LinearDirection) -> None:
    data, new = read(0), read(1)
    given = {"pairs": data.pairs, "polarity": data.polarity}
    takes = type(estimator).fit.__kwdefaults__ or {}
    fitted = clone(estimator).fit(
        data.states[LAST], data.labels, **{name: x for name, x in given.items() if name in takes}
    )
    assert fitted.score(new.states[LAST].numpy(), new.labels) > 0.9


def test_ordered_pairs_with_their_mean_removed_lose_it() -> None:
    assert max(map(abs, cosines(PcaReader("ordered")))) < CHANCE
