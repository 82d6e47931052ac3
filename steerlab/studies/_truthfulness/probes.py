"""Can truth be read off a state on topics the probe never saw, in this model and in the other one?

Probe: a direction d of the training topics, each topic centred by its own mean; for the difference of class means the
decision lies at the middle between the two class means along d. Every topic is held out in turn. A held-out state is
first moved by minus a mean, one of three: that of its own topic (uses the statements, not their labels, and hides a
shift between topics or models), that of the training topics in the model that is read, or that of the training topics
in the probe's model (the probe exactly as trained). The layer is chosen by leaving out each training topic in turn: the
earliest one within a standard error of the best. Control: all labels shuffled inside each topic, for fitting and for
judging alike. Source: Marks and Tegmark (2023).

Coordinates: standardised at the layers where one mean dominates the states (its share of their norm is 0.95 or more),
for there a few coordinates hold most of a plain difference; plain elsewhere. `coordinates=None` is this rule.

A difference in means is linear in the rows, so the probes of all folds, inner folds and shuffles are sums of the same
class sums by topic: the rows are multiplied once a layer. Other estimators are fitted on the centred rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.base import clone

from steerlab.directions import DifferenceInMeans, LinearDirection
from steerlab.directions.coordinates import Coordinates, chosen_coordinates, in_coordinates
from steerlab.readouts.agreement import Stack, States, centre, shuffled_labels
from steerlab.readouts.questions import Fold, Plan
from steerlab.record import Record
from steerlab.statistics import Estimate, proportion

Centring = Literal["own mean", "training mean, this model", "training mean, probe's model"]
Labels = Bool[np.ndarray, "draw row"]

OWN: Centring = "own mean"
AS_TRAINED: Centring = "training mean, probe's model"
_THIS: Centring = "training mean, this model"
_SHUFFLES, _SLOW_SHUFFLES, _SLOW_INNER = 100, 20, 3


class Accuracy(Record):
    """Share of held-out statements that a probe labels right, beside the same with shuffled labels.

    probe, states: which model the probe was fitted in and whose states it reads. centred_by: what held-out states were
    moved by. statements: "all" simple ones, "affirmed", "negated", "conjunction" or "disjunction". topic: "all" or one.
    layers: one for each fold.
    """

    probe: str
    states: str
    layers: tuple[int, ...]
    centred_by: Centring
    statements: str = "all"
    topic: str = "all"
    accuracy: Estimate
    control: Estimate

    @property
    def above_chance(self) -> bool:
        """True when the interval lies above one half and above all but the luckiest shuffled probes."""
        return self.accuracy.low > max(0.5, self.control.high)


@dataclass(frozen=True)
class Probe:
    """Directions [draw, width] with decision points and class gaps along them; draw 0 is the real one.

    thresholds, gaps: in units of state · direction. origin: the mean of the training topics.
    """

    directions: Float[np.ndarray, "draw width"]
    thresholds: Float[np.ndarray, " draw"]
    gaps: Float[np.ndarray, " draw"]
    origin: Float[np.ndarray, " width"]

    def projections(self, states: States) -> Float[np.ndarray, "row draw"]:
        """Signed distance from the decision point, in class gaps: about -1/2 for false and 1/2 for true."""
        scale = np.where(np.abs(self.gaps) > 1e-30, np.abs(self.gaps), 1e-30)
        scaled: Float[np.ndarray, "row draw"] = (states @ self.directions.T - self.thresholds) / scale
        return scaled


Fit = Callable[[tuple[str, ...]], Probe]


def fitter(
    states: States,
    plan: Plan,
    labels: Labels | None = None,
    estimator: LinearDirection | None = None,
    coordinates: Coordinates | None = None,
) -> Fit:
    """The function that fits the probe of some topics on `states` [row of the plan, width].

    labels: one probe for each draw of all rows' labels; the real ones by default. estimator: None is the difference in
    means, by class sums.
    """
    draws = plan.labels[None] if labels is None else labels
    found = coordinates or coordinates_at(states, plan)
    if _is_fast(estimator, coordinates):
        return _by_sums(states, plan, draws, standardised=found == "standardised")
    fitted = in_coordinates(estimator or DifferenceInMeans(), found)
    return lru_cache(maxsize=None)(_by_rows(states, plan, draws, fitted))


def coordinates_at(states: States, plan: Plan) -> Coordinates:
    """Standardised where one mean dominates the states of the simple statements, plain elsewhere."""
    return chosen_coordinates(states[plan.simple])


def choose_layer(states: Stack, plan: Plan, fold: Fold, estimator: LinearDirection | None = None) -> int:
    """The layer (index into `states`) at which truth is read best on training topics left out in turn."""
    inner = _inner_folds(fold, _is_fast(estimator, None))
    return _chosen([fitter(x, plan, None, estimator) for x in states], states, plan, fold, inner)


def choose_layers(
    states: Stack,
    plan: Plan,
    estimator: LinearDirection | None = None,
    coordinates: Coordinates | None = None,
) -> list[int]:
    """`choose_layer` for every fold of the plan; what the folds share is computed once."""
    fits = [fitter(x, plan, None, estimator, coordinates) for x in states]
    fast = _is_fast(estimator, coordinates)
    return [_chosen(fits, states, plan, fold, _inner_folds(fold, fast)) for fold in plan.folds]


def accuracy_by_layer(
    name: str,
    states: Stack,
    plan: Plan,
    *,
    seed: int,
    estimator: LinearDirection | None = None,
    coordinates: Coordinates | None = None,
) -> list[Accuracy]:
    """Held-out accuracy of a model's own probe at every layer, all folds together."""
    labels = _draws(plan, seed, _is_fast(estimator, coordinates))
    rows = []
    for layer, x in enumerate(states):
        fits = {layer: fitter(x, plan, labels, estimator, coordinates)}
        right = _held_out(fits, states, plan, [layer] * len(plan.folds), labels, OWN)
        rows.append(_accuracy((name, name, OWN), [layer] * len(plan.folds), right, plan, plan.simple))
    return rows


def transfer(
    readings: Mapping[str, Stack],
    plan: Plan,
    chosen: Mapping[str, Sequence[int]],
    *,
    seed: int,
    estimator: LinearDirection | None = None,
    coordinates: Coordinates | None = None,
) -> list[Accuracy]:
    """Every model's probe on every model's states, at the probe's chosen layers, with each centring.

    With the states' own mean also for affirmed, negated and joined statements apart, and for every topic.
    """
    labels = _draws(plan, seed, _is_fast(estimator, coordinates))
    cells = []
    for source in readings:
        at = chosen[source]
        fits = {
            layer: fitter(readings[source][layer], plan, labels, estimator, coordinates) for layer in set(at)
        }
        for target in readings:
            for centred_by in (OWN, _THIS, AS_TRAINED):
                if centred_by == _THIS and source == target:
                    continue
                right = _held_out(fits, readings[target], plan, at, labels, centred_by)
                what = (source, target, centred_by)
                cells.append(_accuracy(what, at, right, plan, plan.simple))
                if centred_by == OWN:
                    cells += [
                        _accuracy(what, at, right, plan, rows, statements=kind) for kind, rows in _kinds(plan)
                    ]
                    cells += [
                        _accuracy(what, at[n : n + 1], right, plan, _mask(plan, fold), topic=fold.test[0])
                        for n, fold in enumerate(plan.folds)
                    ]
    return cells


def held_out_projections(
    states: Stack,
    plan: Plan,
    chosen: Sequence[int],
    estimator: LinearDirection | None = None,
    coordinates: Coordinates | None = None,
) -> Float[np.ndarray, " row"]:
    """[row] where a held-out statement lies along the own probe's direction; NaN for joined statements."""
    places = np.full(len(plan.statements), np.nan)
    fits = {layer: fitter(states[layer], plan, None, estimator, coordinates) for layer in set(chosen)}
    for fold, layer in zip(plan.folds, chosen, strict=True):
        rows = plan.rows(fold.test)
        probe = fits[layer](fold.train)
        places[rows] = probe.projections(_moved(probe, states[layer], plan, rows, fold, OWN))[:, 0]
    return places


# -- private, in the order they are called --


def _by_sums(states: States, plan: Plan, draws: Labels, *, standardised: bool) -> Fit:
    """Probes as sums over topics of the centred states' sums by class: [draw, topic, class, width].

    In standardised coordinates the difference is divided by the variance of the training topics' centred states.
    """
    topics = list(dict.fromkeys(plan.groups[plan.simple].tolist()))
    sums = np.zeros((len(draws), len(topics), 2, states.shape[1]))
    counts = np.zeros((len(draws), len(topics), 2))
    means, squares = np.zeros((2, len(topics), states.shape[1]))
    for place, topic in enumerate(topics):
        rows = plan.rows([topic])
        x = states[rows].astype(np.float64)
        means[place] = x.mean(axis=0)
        squares[place] = ((x - means[place]) ** 2).sum(axis=0)
        true = draws[:, rows].astype(np.float64)
        for side, weights in enumerate((1 - true, true)):
            sums[:, place, side] = weights @ (x - means[place])
            counts[:, place, side] = weights.sum(axis=1)

    def fit(groups: tuple[str, ...]) -> Probe:
        at = [topics.index(group) for group in groups]
        total = counts[:, at].sum(axis=1)[..., None]
        class_means = np.divide(
            sums[:, at].sum(axis=1), total, out=np.zeros_like(sums[:, 0]), where=total > 0
        )
        gap = class_means[:, 1] - class_means[:, 0]
        directions = gap
        if standardised:
            variance = squares[at].sum(axis=0) / counts[0, at].sum()
            directions = gap / np.where(variance > 0, variance, 1.0)
        thresholds = (directions * class_means.mean(axis=1)).sum(axis=1)
        return Probe(directions, thresholds, (directions * gap).sum(axis=1), means[at].mean(axis=0))

    return fit


def _by_rows(states: States, plan: Plan, draws: Labels, estimator: LinearDirection) -> Fit:
    """A clone of the estimator fitted on the centred rows for each draw; knows polarity where it asks for it."""

    def fit(groups: tuple[str, ...]) -> Probe:
        rows = plan.rows(groups)
        x = centre(states[rows], plan.groups[rows])
        kinds = plan.polarity[rows]
        both = 0 < int((kinds == 1).sum()) < len(kinds)
        extra = {"polarity": kinds} if both and "polarity" in signature(estimator.fit).parameters else {}
        models = [clone(estimator).fit(x, draw[rows], **extra) for draw in draws]
        directions = np.stack([model.direction_ for model in models]).astype(np.float64)
        gaps = [
            (x[draw[rows]].mean(axis=0) - x[~draw[rows]].mean(axis=0)) @ d
            for draw, d in zip(draws, directions, strict=True)
        ]
        origin = np.mean(
            [states[plan.rows([name])].mean(axis=0, dtype=np.float64) for name in groups], axis=0
        )
        return Probe(directions, np.array([-model.bias_ for model in models]), np.array(gaps), origin)

    return fit


def _inner_folds(fold: Fold, fast: bool) -> tuple[str, ...]:
    return fold.train if fast else fold.train[:_SLOW_INNER]


def _chosen(fits: Sequence[Fit], states: Stack, plan: Plan, fold: Fold, inner: Sequence[str]) -> int:
    right = np.concatenate([_inner_right(fits, states, plan, fold, out) for out in inner])
    accuracy = right.mean(axis=0)
    best = float(accuracy.max())
    error = np.sqrt(best * (1 - best) / len(right))
    return int(np.flatnonzero(accuracy >= best - error)[0])


def _inner_right(
    fits: Sequence[Fit], states: Stack, plan: Plan, fold: Fold, out: str
) -> Bool[np.ndarray, "row layer"]:
    rows = plan.rows([out])
    inner = Fold(tuple(name for name in fold.train if name != out), (out,))
    called_true = [
        (probe := fit(inner.train)).projections(_moved(probe, x, plan, rows, inner, OWN))[:, 0] > 0
        for fit, x in zip(fits, states, strict=True)
    ]
    right: Bool[np.ndarray, "row layer"] = np.stack(called_true, axis=1) == plan.labels[rows][:, None]
    return right


def _is_fast(estimator: LinearDirection | None, coordinates: Coordinates | None) -> bool:
    return coordinates != "winsorised" and (estimator is None or type(estimator) is DifferenceInMeans)


def _draws(plan: Plan, seed: int, fast: bool) -> Labels:
    """Row 0 the real labels; in the others all labels are shuffled, those that judge the held-out rows as well.

    A probe of shuffled labels may lie along the real direction, either way round, and must gain nothing by it.
    """
    n = _SHUFFLES if fast else _SLOW_SHUFFLES
    shuffled = shuffled_labels(plan.labels, plan.strata, np.random.default_rng(seed), n)
    return np.vstack([plan.labels[None], shuffled])


def _moved(
    probe: Probe, states: States, plan: Plan, rows: NDArray[np.int64], fold: Fold, centred_by: Centring
) -> States:
    if centred_by == OWN:
        return centre(states[rows], plan.strata[rows])
    origin = probe.origin
    if centred_by == _THIS:
        here = [states[plan.rows([name])].mean(axis=0, dtype=np.float64) for name in fold.train]
        origin = np.mean(here, axis=0)
    moved: States = states[rows].astype(np.float64) - origin
    return moved


def _held_out(
    fits: Mapping[int, Fit],
    target: Stack,
    plan: Plan,
    at: Sequence[int],
    labels: Labels,
    centred_by: Centring,
) -> Float[np.ndarray, "row draw"]:
    """[row of the plan, draw] 1 where the statement was labelled right by the probe that never saw its topic."""
    right = np.full((len(plan.statements), len(labels)), np.nan)
    for fold, layer in zip(plan.folds, at, strict=True):
        rows = np.concatenate([plan.rows(fold.test), plan.joined(fold.test)])
        probe = fits[layer](fold.train)
        called_true = probe.projections(_moved(probe, target[layer], plan, rows, fold, centred_by)) > 0
        right[rows] = called_true == labels[:, rows].T
    return right


def _kinds(plan: Plan) -> Iterator[tuple[str, Bool[np.ndarray, " row"]]]:
    """Affirmed and negated statements where there are both, and each kind of joined ones there is."""
    negated = plan.simple & (plan.polarity == -1)
    if 0 < int(negated.sum()) < int(plan.simple.sum()):
        yield "affirmed", plan.simple & ~negated
        yield "negated", negated
    for form in ("conjunction", "disjunction"):
        if (plan.forms == form).any():
            yield form, plan.forms == form


def _mask(plan: Plan, fold: Fold) -> Bool[np.ndarray, " row"]:
    mask = np.zeros(len(plan.statements), dtype=bool)
    mask[plan.rows(fold.test)] = True
    return mask


def _accuracy(
    what: tuple[str, str, Centring],
    layers: Sequence[int],
    right: Float[np.ndarray, "row draw"],
    plan: Plan,
    rows: Bool[np.ndarray, " row"],
    *,
    statements: str = "all",
    topic: str = "all",
) -> Accuracy:
    shuffled = right[rows, 1:].mean(axis=0)
    low, high = np.quantile(shuffled, [0.025, 0.975])
    probe, states, centred_by = what
    return Accuracy(
        probe=probe,
        states=states,
        layers=tuple(layers),
        centred_by=centred_by,
        statements=statements,
        topic=topic,
        accuracy=proportion(right[rows, 0], clusters=plan.clusters[rows]),
        control=Estimate(
            value=float(shuffled.mean()),
            low=min(float(low), float(shuffled.mean())),
            high=max(float(high), float(shuffled.mean())),
            n=len(np.unique(plan.clusters[rows])),
            method=f"{len(shuffled)} shuffles of the labels",
        ),
    )
