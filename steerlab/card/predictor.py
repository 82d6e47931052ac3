"""Can one tell before steering whether it will work? Two readings of the training pairs, and how well they predict.

    agreement    = mean over pairs i of cos(p_i - n_i, mean of the other pairs' p - n)
    separability = (mean of p·v̂ - mean of n·v̂) / pooled standard deviation        v̂: the difference of the means

Braun et al. (2025, "Understanding (un)reliability of steering vectors in language models") find that both go with the
effect. Whether they do in this model is measured: a direction from the training pairs of each packaged contrast is
added one class gap strong where it works best, and the effect is the change of ln P(p) - ln P(n) of its test pairs,
nats a token. The correlation is Spearman's over contrasts, its interval Bonett and Wright's (2000): z = artanh r with
the standard error sqrt((1 + r² / 2) / (n - 3)). An interval that holds zero establishes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from steerlab.activations import Activations, capture
from steerlab.card.asking import Asked
from steerlab.card.effects import effect_of
from steerlab.datasets import ContrastSet, contrasts
from steerlab.directions import fit_direction
from steerlab.errors import DirectionError, SteerlabError
from steerlab.models import LanguageModel, Last, Prompt, Site
from steerlab.progress import track
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean
from steerlab.steering import Add

FEWEST = 14
"""Contrasts over which a correlation is reported."""
READINGS = ("agreement", "separability")


class Reading(Record):
    """What the training pairs of a contrast say at a site, and the effect of its direction, nats a token."""

    contrast: str
    site: str
    pairs: int
    agreement: float
    separability: float
    effect: Estimate | None = None


class Correlation(Record):
    """Of a reading with the effect, over contrasts."""

    reading: str
    value: Estimate

    @property
    def established(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.value.excludes(0.0)


class Predictor(Record):
    """The readings and effects of the packaged contrasts in one model, and how they go together."""

    model: str
    readings: list[Reading]
    correlations: list[Correlation]
    missing: dict[str, str]

    def __repr__(self) -> str:
        said = "; ".join(
            f"{one.reading} {one.value}{'' if one.established else ', not established'}"
            for one in self.correlations
        )
        return f"Predictor({len(self.readings)} contrasts; {said})"

    __str__ = __repr__


def predictor(
    model: LanguageModel, sets: Mapping[str, ContrastSet] | None = None, *, seed: int = 0
) -> Predictor:
    """Measure how well agreement and separability predict the effect in this model.

    Args:
        model: a loaded model.
        sets: matched contrasts by name, in splits; by default the packaged ones.
        seed: of folds and intervals.

    Raises:
        SteerlabError: fewer than 14 contrasts have a direction in this model.
    """
    given = contrasts() if sets is None else sets
    found: list[Reading] = []
    missing: dict[str, str] = {}
    for name, contrast in track(given.items(), "measuring the predictor", len(given)):
        try:
            found.append(_measured(model, name, contrast, seed))
        except SteerlabError as error:
            missing[name] = str(error)
    if len(found) < FEWEST:
        raise SteerlabError(
            f"A predictor needs {FEWEST} contrasts with a direction in the model, and {model.name} has {len(found)}; "
            f"{'; '.join(f'{name}: {why}' for name, why in missing.items()) or 'give more'}"
        )
    effects = [reading.effect.value for reading in found if reading.effect]
    return Predictor(
        model=model.name,
        readings=found,
        correlations=[
            Correlation(reading=name, value=spearman([getattr(one, name) for one in found], effects))
            for name in READINGS
        ],
        missing=missing,
    )


def reading(model: LanguageModel, name: str, contrast: ContrastSet, site: Site) -> Reading:
    """Agreement and separability of a contrast's training pairs at a site."""
    train = contrast.split("train")
    states = capture(model, [*train.positive, *train.negative], [site], positions=Last())
    return _read(name, site, states)


def spearman(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Estimate:
    """Spearman's correlation with Bonett and Wright's interval.

    Raises:
        ValueError: fewer than four rows.
    """
    if len(first) < 4:
        raise ValueError(f"an interval of a correlation needs four rows or more, got {len(first)}")
    r = float(stats.spearmanr(first, second).statistic)
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt((1 + r**2 / 2) / (len(first) - 3))
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    return Estimate(
        value=r,
        low=min(math.tanh(z - half), r),
        high=max(math.tanh(z + half), r),
        n=len(first),
        level=level,
        method="Spearman, Bonett and Wright",
    )


# -- private, in the order they are called --


def _measured(model: LanguageModel, name: str, contrast: ContrastSet, seed: int) -> Reading:
    train = contrast.split("train")
    texts, labels = [*train.positive, *train.negative], [1] * len(train.positive) + [0] * len(train.negative)
    states = capture(model, texts, "resid_post", positions=Last())
    direction = fit_direction(states, labels, model=model, groups=train.pairs, seed=seed)
    if direction.best is None:
        raise DirectionError("It has too few pairs to choose a layer.")
    found = _read(name, direction.best, states)
    test = contrast.split("test")
    asked = Asked([Prompt("") for _ in test.positive], list(test.positive), list(test.negative))
    effect = effect_of(model, asked, [Add(direction)], asked.log_odds(model)) / _tokens(model, asked)
    return found.model_copy(update={"effect": bootstrap_mean(effect, seed=seed)})


def _read(name: str, site: Site, states: Activations) -> Reading:
    rows = states[site].double()
    positive, negative = rows.chunk(2)
    return Reading(
        contrast=name,
        site=str(site),
        pairs=len(positive),
        agreement=agreement(positive - negative),
        separability=separability(positive, negative),
    )


def agreement(differences: Float[Tensor, "pair width"]) -> float:
    """Mean cosine of each pair's difference with the mean of the others'."""
    others = differences.sum(dim=0) - differences
    return float(torch.nn.functional.cosine_similarity(differences, others, dim=1).mean())


def separability(positive: Float[Tensor, "pair width"], negative: Float[Tensor, "pair width"]) -> float:
    """Distance of the class means along their difference, in pooled standard deviations."""
    gap = positive.mean(dim=0) - negative.mean(dim=0)
    unit = gap / gap.norm()
    along = (positive @ unit, negative @ unit)
    spread = torch.stack([of_class.var() for of_class in along]).mean().sqrt()
    return float(gap.norm() / spread)


def _tokens(model: LanguageModel, asked: Asked) -> Float[np.ndarray, " pair"]:
    """Mean number of tokens of the two texts of each pair."""
    towards, away = (np.array(model.lengths(texts), dtype=float) for texts in (asked.towards, asked.away))
    mean: Float[np.ndarray, " pair"] = (towards + away) / 2
    return mean
