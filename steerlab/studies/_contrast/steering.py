"""Does a direction of the contrast make its texts likelier, more than random directions do, and at what price?

Added is one class gap of the steered model at the layer chosen in the rest of a fold, at every token. On the fold's
held-out texts

    effect = mean over positive texts of the change of ln P(text) a token - the same of negative texts      (nats)

where a text of a matched pair counts from the first token in which the two differ, any other from its second token. So
a matched pair gives the change of ln P(positive) - ln P(negative). The other model's direction and the random ones have
the same length. Price: KL of the steered from the unsteered next-token law on plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.models import Edit, LanguageModel, Prompt, Site
from steerlab.models.batches import run_in_batches
from steerlab.progress import track
from steerlab.readouts.agreement import random_units
from steerlab.readouts.scoring import continuation_log_probability
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, but_for_rounding, mean_and_extremes
from steerlab.steering import Add
from steerlab.steering.price import side_effects
from steerlab.studies._contrast.reading import Reading, Rows, Texts

_BUDGET = 2048  # padded tokens in one pass
_RANDOM = "mean, least and greatest of {n} random directions of the same length"
Vector = NDArray[np.float64]


class Steering(Record):
    """What adding a direction does to the texts of a contrast, and its price.

    layers: one a fold. effect: nats a token, towards the positive class. control: of random directions of the same
    length. texts: held-out ones that were scored. kl: nats a token of plain text, with all texts' direction at the
    layer `priced_at`; random_kl likewise; None where no plain text was read.
    """

    direction: str
    model: str
    layers: tuple[int, ...]
    texts: int
    effect: Estimate
    control: Estimate
    priced_at: int
    kl: Estimate | None = None
    random_kl: Estimate | None = None

    @property
    def above_control(self) -> bool:
        """True when the interval lies above zero, and the value above every random direction."""
        return self.effect.low > 0 and self.effect.value > self.control.high


@dataclass(frozen=True)
class Steered:
    """Rows of a model that is steered: its cells, and by text the share of the effect of its own direction."""

    cells: list[Steering]
    rows: Rows
    own: Float[np.ndarray, " text"]


@dataclass(frozen=True)
class Dose:
    """How much is steered: groups of each class at most, random directions, passages and random directions priced."""

    groups: int
    randoms: int
    passages: int
    priced_randoms: int


def steer(
    target: Reading, other: Reading | None, texts: Texts, dose: Dose, plain_text: Sequence[str], seed: int
) -> Steered | None:
    """The target steered by its own direction, by the other model's (None: of another shape) and by random ones.

    None where no group has texts of two tokens.
    """
    starts = _starts(target, texts)
    chosen = [_some(test[starts[test] > 0], texts, dose.groups, seed) for _, test in texts.folds]
    rows = np.concatenate(chosen)
    if len(np.unique(texts.labels[rows])) < 2:
        return None
    sources = [target, *([other] if other is not None else [])]
    changes = np.zeros((len(sources) + dose.randoms, len(rows)))
    done = 0
    for fold, some in enumerate(
        track(chosen, f"steering {texts.contrast.name} in {target.role}", len(chosen))
    ):
        vectors = [_vector(source, target, fold) for source in sources]
        vectors += _randoms(target.folds[fold].class_gap[target.sites[fold]], target, dose.randoms, seed)
        prompts, begin = [target.prompts[row] for row in some], starts[some].tolist()
        plain = _log_probability(target.model, prompts, begin, None)
        for number, vector in enumerate(vectors):
            after = _log_probability(target.model, prompts, begin, _add(vector, target.sites[fold]))
            changes[number, done : done + len(some)] = but_for_rounding(after, plain) - plain
        done += len(some)
    shares = changes * _signs(texts.labels[rows])
    control = mean_and_extremes(shares[len(sources) :].mean(axis=1).tolist(), _RANDOM)
    priced = _prices(target, sources, dose, plain_text, seed)
    cells = [
        Steering(
            direction=source.role,
            model=target.role,
            layers=target.layers,
            texts=len(rows),
            effect=bootstrap_mean(shares[number], texts.groups[rows], seed=seed),
            control=control,
            priced_at=_best(target),
            **priced.get(source.role, {}),
        )
        for number, source in enumerate(sources)
    ]
    return Steered(cells, rows, shares[0])


# -- private, in the order they are called --


def _starts(target: Reading, texts: Texts) -> NDArray[np.int64]:
    """By text its first token that counts; 0 for the texts of a group of which one has none."""
    ids = [_ids(target.model, prompt) for prompt in target.prompts]
    starts = np.ones(len(ids), dtype=np.int64)
    for group in np.unique(texts.groups):
        rows = np.flatnonzero(texts.groups == group)
        if sorted(texts.labels[rows]) == [0, 1]:  # a matched pair
            first, second = (ids[row] for row in rows)
            starts[rows] = max(1, min(_common(first, second), len(first) - 1, len(second) - 1))
        if any(starts[row] >= len(ids[row]) for row in rows):
            starts[rows] = 0
    return starts


def _ids(model: LanguageModel, prompt: Prompt) -> list[int]:
    ids: list[int] = model.tokenize([prompt]).input_ids[0].tolist()
    return ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _some(rows: Rows, texts: Texts, groups: int, seed: int) -> Rows:
    """Rows of at most so many groups of either class, drawn by the seed, in their order."""
    counts, kept = {0: 0, 1: 0}, []
    names = np.unique(texts.groups[rows])
    for group in np.random.default_rng(seed).permutation(names):
        members = rows[texts.groups[rows] == group]
        kinds = set(texts.labels[members].tolist())
        if any(counts[kind] < groups for kind in kinds):
            kept.append(members)
            for kind in kinds:
                counts[kind] += 1
    return np.sort(np.concatenate(kept)) if kept else rows[:0]


def _vector(source: Reading, target: Reading, fold: int) -> Vector:
    """The source's direction at the target's site, as long as the target's class gap there."""
    site = target.sites[fold]
    vector = source.folds[fold][site].double().numpy()
    scaled: Vector = vector / np.linalg.norm(vector) * target.folds[fold].class_gap[site]
    return scaled


def _randoms(length: float, target: Reading, n: int, seed: int) -> list[Vector]:
    """The same in every fold, as a real direction is nearly the same: others would average out over the folds."""
    return [unit * length for unit in random_units(target.model.d_model, n, seed)]


def _add(vector: Vector, site: Site) -> Add:
    return Add(torch.from_numpy(vector).float(), unit="raw", sites=site)


def _log_probability(
    model: LanguageModel, prompts: Sequence[Prompt], starts: Sequence[int], edit: Edit | None
) -> Float[np.ndarray, " prompt"]:
    """Mean ln P of each prompt's tokens from its start on; nats a token."""
    found, lengths = np.zeros(len(prompts)), model.lengths(prompts)

    def score(rows: list[int]) -> None:
        tokens = model.tokenize([prompts[row] for row in rows], padding_side="right").of_rows(rows)
        begin = [starts[row] for row in rows]
        with nullcontext() if edit is None else model.steering(edit):
            total = continuation_log_probability(model, tokens, begin).numpy()
        found[rows] = total / (np.asarray(tokens.lengths) - begin)

    run_in_batches(score, lengths, _BUDGET)
    return found


def _signs(labels: NDArray[np.int64]) -> Float[np.ndarray, " text"]:
    """Weights whose mean with values is the mean of positive rows minus the mean of negative ones."""
    positive = labels == 1
    n = len(labels)
    signs: Float[np.ndarray, " text"] = np.where(positive, n / positive.sum(), -n / (~positive).sum())
    return signs


def _best(reading: Reading) -> int:
    best = reading.whole.best
    assert best is not None  # `reading.read` refuses directions that know none
    return best.layer or 0


def _prices(
    target: Reading, sources: Sequence[Reading], dose: Dose, plain_text: Sequence[str], seed: int
) -> Mapping[str, dict[str, Estimate]]:
    """KL of all texts' directions at the target's best site, and of random ones of the same length."""
    if not plain_text:
        return {}
    site = Site("resid_post", _best(target))
    gap = target.whole.class_gap[site]
    units = {
        source.role: torch.nn.functional.normalize(source.whole[site].double(), dim=0).numpy()
        for source in sources
    }
    edits = {role: [_add(unit * gap, site)] for role, unit in units.items()}
    randoms = _randoms(gap, target, dose.priced_randoms, seed)
    edits |= {f"random {number}": [_add(vector, site)] for number, vector in enumerate(randoms)}
    found = side_effects(
        target.model, plain_text, edits, seed=seed, progress=f"price of steering in {target.role}"
    )
    random = mean_and_extremes(
        [found[f"random {number}"].kl.value for number in range(dose.priced_randoms)], _RANDOM
    )
    return {role: {"kl": found[role].kl, "random_kl": random} for role in units}
