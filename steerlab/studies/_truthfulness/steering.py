"""Does a direction turn a model's answer?

Steering adds +v (false statements) or -v (true ones) at some tokens, in every layer of a window. v has the length
strength x class gap of the model that is steered, whichever model the direction comes from, and so have the random
directions of the control ("published": the length and the vector of the window's last layer in the direction's model).

Two normalisations of the shift of PD are in use, both given: "to certainty" divides by the way to PD = -1 or 1 (Du et
al., 2025), "to the other class" by the way to the mean PD of the unsteered statements of the other class (Marks and
Tegmark, 2023). 0 is no effect, 1 the whole way. Window and strength are chosen on training topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.directions import Direction
from steerlab.models import All, LanguageModel, Selector, Site
from steerlab.progress import track
from steerlab.readouts.agreement import random_units
from steerlab.readouts.questions import Plan
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap, mean_and_extremes
from steerlab.steering import Add
from steerlab.studies._truthfulness.answers import Examinee, Shifts

Normalisation = Literal["to certainty", "to the other class"]
NORMALISATIONS: tuple[Normalisation, ...] = ("to certainty", "to the other class")
Part = Literal["true", "false", "mean"]
Window = tuple[int, int]
Vectors = Float[np.ndarray, "layer width"]


class Steering(Record):
    """The share of the way to the other answer that a direction moves a model, beside random directions.

    place: which tokens. topics: those held out, one for each fold steered. layers, strength: the window (first and last
    layer) and the dose in class gaps of each.
    """

    direction: str
    model: str
    place: str
    normalisation: Normalisation
    topics: tuple[str, ...]
    layers: tuple[Window, ...]
    strength: tuple[float, ...]
    true_to_false: Estimate
    false_to_true: Estimate
    mean: Estimate
    control: Estimate

    @property
    def above_control(self) -> bool:
        """True when the interval lies above zero and above the random directions."""
        return self.mean.low > max(0.0, self.control.high)


@dataclass(frozen=True)
class Dose:
    """Layers `first`..`last` (both included) and the strength in class gaps."""

    window: Window
    strength: float

    @property
    def layers(self) -> range:
        """The layers of the window."""
        return range(self.window[0], self.window[1] + 1)


@dataclass(frozen=True)
class Rule:
    """How steering is done: where, how strongly, and on how much.

    folds: numbers of the folds that are steered. places: tokens by name. windows, strengths: what the dose is chosen
    from. shots: numbers of labelled lines to choose from. rows, choice_rows: statements of a fold's test and of its
    choice of dose. as_published: one vector, the last layer's, in the whole window, with the length it has in its own
    model.
    """

    folds: tuple[int, ...]
    places: Mapping[str, Selector]
    windows: tuple[Window, ...]
    strengths: tuple[float, ...]
    shots: tuple[int, ...]
    rows: int
    choice_rows: int
    randoms: int = 20
    as_published: bool = False
    seed: int = 0


def windows(n_layers: int, n: int) -> tuple[Window, ...]:
    """Windows of about a sixth of the depth that end between a sixth and three quarters of it."""
    length = max(1, round(n_layers / 6))
    ends = np.unique(np.linspace(length - 1, max(length - 1, int(0.75 * n_layers)), n).round().astype(int))
    return tuple((int(end) - length + 1, int(end)) for end in ends)


def steer_all(
    examinees: Sequence[Examinee], plan: Plan, shots: Sequence[int], rule: Rule, *, crossed: bool
) -> tuple[list[Steering], dict[str, list[Dose]]]:
    """Every direction in every model (only its own without `crossed`), and the doses by place, one for each fold."""
    chosen = [_choose_doses(examinees, plan, fold, shots[fold], rule) for fold in rule.folds]
    doses = {place: [of_place[place] for of_place in chosen] for place in rule.places}
    cells: dict[str, list[Steering]] = {place: [] for place in rule.places}
    for target in examinees:
        sources = [examinee for examinee in examinees if crossed or examinee is target]
        for place, own in _steer_one(target, sources, plan, shots, doses, rule).items():
            cells[place] += own
    return [cell for own in cells.values() for cell in own], doses


def normalised(
    kind: Normalisation,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    labels: NDArray[np.bool_],
    part: Part = "mean",
) -> float:
    """The normalised shift of PD [row] of true statements, of false ones, or the mean of both; NaN for one class."""
    true, false = labels.astype(bool), ~labels.astype(bool)
    if not true.any() or not false.any():
        return float("nan")
    start = before[true].mean(), before[false].mean()
    goal = (-1.0, 1.0) if kind == "to certainty" else (start[1], start[0])
    way = [to - at for to, at in zip(goal, start, strict=True)]
    if min(abs(step) for step in way) < 1e-9:
        return float("nan")
    shares = (after[true].mean() - start[0]) / way[0], (after[false].mean() - start[1]) / way[1]
    return float({"true": shares[0], "false": shares[1], "mean": np.mean(shares)}[part])


# -- private, in the order they are called --


def _choose_doses(
    examinees: Sequence[Examinee], plan: Plan, fold: int, shots: int, rule: Rule
) -> dict[str, Dose]:
    """At each place the window and the weakest strength whose effect on some training topics comes within a tenth of
    the best.

    The effect is the mean one of the models' own directions; a weaker edit costs less elsewhere.
    """
    options = [Dose(window, strength) for window, strength in product(rule.windows, rule.strengths)]
    if len(options) == 1:
        return dict.fromkeys(rule.places, options[0])
    train = plan.folds[fold].train
    judged, rest = train[: 1 + len(train) // 5], train[1 + len(train) // 5 :]
    rows = plan.balanced(judged, rule.choice_rows, rule.seed)
    asked = list(product(rule.places, options))
    effects = np.zeros(len(asked))
    for examinee in track(examinees, "choosing the truth dose", len(examinees)):
        own = vectors_of(examinee, examinee, rest, rule)
        variants = [
            (
                _shifts(dose.strength * inside(own, dose.window, rule), dose.window, plan, rows),
                rule.places[place],
            )
            for place, dose in asked
        ]
        before, after = examinee.steered(examinee.prompts(plan, rows, shots), variants)
        effects += [normalised("to certainty", before, steered, plan.labels[rows]) for steered in after]
    by_place = np.nan_to_num(effects, nan=-np.inf).reshape(len(rule.places), len(options))
    return {place: _weakest(options, own) for place, own in zip(rule.places, by_place, strict=True)}


def _weakest(options: Sequence[Dose], effects: Float[np.ndarray, " option"]) -> Dose:
    best = float(effects.max())
    near = np.flatnonzero(effects >= (0.9 * best if best > 0 else best)).tolist()
    return options[min(near, key=lambda number: (options[number].strength, -effects[number]))]


def vectors_of(source: Examinee, target: Examinee, groups: tuple[str, ...], rule: Rule) -> Vectors:
    """The source's direction at every layer, as long as the class gap along it (of the target, unless published)."""
    own = _own_vectors(source, groups)
    if source is target or rule.as_published:
        return own
    lengths = np.linalg.norm(own, axis=1, keepdims=True)
    gaps = np.linalg.norm(_own_vectors(target, groups), axis=1, keepdims=True)
    scaled: Vectors = own / np.maximum(lengths, 1e-30) * gaps
    return scaled


def _own_vectors(source: Examinee, groups: tuple[str, ...]) -> Vectors:
    """At every layer ((mean of true - mean of false) . u) u, with u the source's direction at length one."""
    probes = [fit(groups) for fit in source.fits]
    vectors: Vectors = np.stack(
        [
            probe.directions[0] * probe.gaps[0] / max(float((probe.directions[0] ** 2).sum()), 1e-30)
            for probe in probes
        ]
    )
    return vectors


def inside(vectors: Vectors, window: Window, rule: Rule) -> Vectors:
    """The vectors of a window's layers: each layer's own, or the last one's throughout."""
    first, last = window
    if rule.as_published:
        return np.repeat(vectors[last : last + 1], last - first + 1, axis=0)
    return vectors[first : last + 1]


def _shifts(vectors: Vectors, window: Window, plan: Plan, rows: NDArray[np.int64]) -> Shifts:
    """The vectors [layer of the window, width] of every statement: subtracted from true, added to false ones."""
    signs = np.where(plan.labels[rows], -1.0, 1.0)[:, None]
    return {
        Site("resid_post", layer): torch.from_numpy(signs * vector).float()
        for layer, vector in zip(range(window[0], window[1] + 1), vectors, strict=True)
    }


def _steer_one(
    target: Examinee,
    sources: Sequence[Examinee],
    plan: Plan,
    shots: Sequence[int],
    doses: Mapping[str, Sequence[Dose]],
    rule: Rule,
) -> dict[str, list[Steering]]:
    """Every direction in one model, by place; all of a fold's variants share one run of its prompts."""
    before, all_rows = [], []
    after: dict[str, list[Float[np.ndarray, "variant row"]]] = {place: [] for place in doses}
    for step, number in enumerate(track(rule.folds, f"steering {target.name}", len(rule.folds))):
        fold = plan.folds[number]
        rows = plan.balanced(fold.test, rule.rows, rule.seed)
        vectors = [vectors_of(source, target, fold.train, rule) for source in sources]
        vectors += random_vectors(target, fold.train, rule, number)
        variants = [
            (
                _shifts(
                    dose[step].strength * inside(own, dose[step].window, rule), dose[step].window, plan, rows
                ),
                rule.places[place],
            )
            for place, dose in doses.items()
            for own in vectors
        ]
        start, steered = target.steered(target.prompts(plan, rows, shots[number]), variants)
        all_rows.append(rows)
        before.append(start)
        for place, own in zip(doses, np.split(steered, len(doses)), strict=True):
            after[place].append(own)
    return {
        place: _cells(
            target,
            sources,
            plan,
            place,
            own,
            np.concatenate(before),
            np.concatenate(after[place], axis=1),
            np.concatenate(all_rows),
            rule,
        )
        for place, own in doses.items()
    }


def _cells(
    target: Examinee,
    sources: Sequence[Examinee],
    plan: Plan,
    place: str,
    doses: Sequence[Dose],
    start: Float[np.ndarray, " row"],
    steered: Float[np.ndarray, "variant row"],
    rows: NDArray[np.int64],
    rule: Rule,
) -> list[Steering]:
    labels, clusters = plan.labels[rows], plan.clusters[rows]
    cells = []
    for (source, end), kind in product(zip(sources, steered, strict=False), NORMALISATIONS):
        true, false, mean = (
            _estimate(kind, part, start, end, labels, clusters, rule.seed) for part in _PARTS
        )
        null = [normalised(kind, start, after, labels) for after in steered[len(sources) :]]
        cells.append(
            Steering(
                direction=source.name,
                model=target.name,
                place=place,
                normalisation=kind,
                topics=tuple(plan.folds[number].test[0] for number in rule.folds),
                layers=tuple(dose.window for dose in doses),
                strength=tuple(dose.strength for dose in doses),
                true_to_false=true,
                false_to_true=false,
                mean=mean,
                control=mean_and_extremes(
                    null, "mean, least and greatest of {n} random directions of the same length"
                ),
            )
        )
    return cells


_PARTS: tuple[Part, ...] = ("true", "false", "mean")


def random_vectors(target: Examinee, groups: tuple[str, ...], rule: Rule, number: int) -> list[Vectors]:
    """One random direction for all layers, as alike from layer to layer as a real one is; the target's class gaps."""
    gaps = np.linalg.norm(_own_vectors(target, groups), axis=1, keepdims=True)
    units = random_units(target.model.d_model, rule.randoms, rule.seed + number)
    return [unit * gaps for unit in units]


def _estimate(
    kind: Normalisation,
    part: Part,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    labels: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    seed: int,
) -> Estimate:
    def effect(start: NDArray[np.float64], end: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
        return normalised(kind, start, end, truth, part)

    return bootstrap(effect, before, after, labels, clusters=clusters, seed=seed, draws=500)


def added(model: LanguageModel, vectors: Vectors, dose: Dose, sign: float) -> Add:
    direction = Direction(
        vectors={
            Site("resid_post", layer): torch.from_numpy(row).float()
            for layer, row in zip(dose.layers, vectors, strict=True)
        },
        model_name=model.name,
        fingerprint=model.fingerprint,
    )
    return Add(direction, strength=sign * dose.strength, unit="raw", layers="all", positions=All())
