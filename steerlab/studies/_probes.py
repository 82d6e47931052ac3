"""Can truth be read off a state on topics the probe never saw, in this model and in the other one?

Probe: difference of class means d of the training topics, each topic centred by its own mean, decision at the
middle between the two class means along d. A held-out state is first moved by minus the mean of its own topic
("recentred": uses the statements, not their labels) or by minus the mean of the training topics ("as trained").
The layer is chosen by leaving out each training topic in turn: the earliest one within a standard error of the
best. Control: all labels shuffled inside each topic, for fitting and for judging alike.
Source: Marks and Tegmark (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from steerlab.statistics import Estimate, proportion
from steerlab.studies._contrast import Stack, States, centre, contrast_weights, shuffled_labels
from steerlab.studies._prompts import Fold, Plan

SHUFFLES = 100


class Accuracy(BaseModel):
    """Share of held-out statements that a probe labels right, beside the same with shuffled labels.

    probe, states: which model the probe was fitted in and whose states it reads. statements: "all", "affirmed" or
    "negated". layers: one for each fold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    probe: str
    states: str
    layers: tuple[int, ...]
    recentred: bool
    statements: str
    accuracy: Estimate
    control: Estimate

    @property
    def above_chance(self) -> bool:
        """True when the interval lies above one half and above all but the luckiest shuffled probes."""
        return self.accuracy.low > max(0.5, self.control.high)


@dataclass(frozen=True)
class Probe:
    """Directions [draw, width] with their decision points [draw]; draw 0 is the real one, the others shuffled."""

    directions: Float[np.ndarray, "draw width"]
    thresholds: Float[np.ndarray, " draw"]
    origin: Float[np.ndarray, " width"]

    def projections(self, states: States) -> Float[np.ndarray, "row draw"]:
        """Signed distance from the decision point, in class gaps: about -1/2 for false and 1/2 for true."""
        scale = np.maximum((self.directions**2).sum(axis=1), 1e-30)
        scaled: Float[np.ndarray, "row draw"] = (states @ self.directions.T - self.thresholds) / scale
        return scaled


def fit_probe(
    states: States, plan: Plan, rows: NDArray[np.int64], labels: Bool[np.ndarray, "draw row"] | None = None
) -> Probe:
    """The probe of some rows of `states` [row of the plan, width], one for each draw of all rows' `labels`."""
    groups = plan.groups[rows]
    draws = (plan.labels[None] if labels is None else labels)[:, rows]
    x = centre(states[rows], groups)
    directions = contrast_weights(draws) @ x
    projections = x @ directions.T
    # the middle between the class means is the mean of all rows under weights that sum to 1/2 in each class
    halves = np.abs(contrast_weights(draws)) / 2
    means = [states[rows][groups == name].mean(axis=0, dtype=np.float64) for name in np.unique(groups)]
    return Probe(directions, np.einsum("dr,rd->d", halves, projections), np.mean(means, axis=0))


def choose_layer(states: Stack, plan: Plan, fold: Fold) -> int:
    """The layer (index into `states`) at which truth is read best on training topics left out in turn."""
    right = np.concatenate(
        [
            np.stack(
                [_right(fit_probe(x, plan, rest), x, plan, rows, recentred=True)[:, 0] for x in states],
                axis=1,
            )
            for rest, rows in _leave_one_out(plan, fold.train)
        ]
    )
    accuracy = right.mean(axis=0)
    best = float(accuracy.max())
    error = np.sqrt(best * (1 - best) / len(right))
    return int(np.flatnonzero(accuracy >= best - error)[0])


def accuracy_by_layer(
    name: str, states: Stack, plan: Plan, *, layers: Sequence[int], seed: int
) -> list[Accuracy]:
    """Held-out accuracy of a model's own probe at every layer, all folds together."""
    found = []
    for place, layer in enumerate(layers):
        right = _held_out(states, states, plan, [place] * len(plan.folds), recentred=True, seed=seed)
        found.append(_accuracy(name, name, [layer] * len(plan.folds), right, plan, recentred=True))
    return found


def transfer(
    readings: dict[str, Stack], plan: Plan, chosen: dict[str, list[int]], *, layers: Sequence[int], seed: int
) -> list[Accuracy]:
    """Every model's probe on every model's states, at the probe's chosen layers, both ways of centring.

    A model's probe on its own states is also shown for affirmed and negated statements apart.
    """
    found = []
    for source, target in [(a, b) for a in readings for b in readings]:
        at = [layers[place] for place in chosen[source]]
        for recentred in (True, False):
            right = _held_out(
                readings[source], readings[target], plan, chosen[source], recentred=recentred, seed=seed
            )
            found.append(_accuracy(source, target, at, right, plan, recentred=recentred))
            if source == target and recentred:
                found += [
                    _accuracy(source, target, at, right, plan, recentred=True, polarity=sign)
                    for sign in (1, -1)
                    if 0 < sum(np.array(plan.statements.polarity) == sign) < len(plan.statements)
                ]
    return found


def held_out_projections(states: Stack, plan: Plan, chosen: list[int]) -> Float[np.ndarray, " row"]:
    """[row] where a held-out statement lies along the own probe's direction; NaN for rows never held out."""
    found = np.full(len(plan.statements), np.nan)
    for fold, place in zip(plan.folds, chosen, strict=True):
        rows = plan.rows(fold.test)
        probe = fit_probe(states[place], plan, plan.rows(fold.train))
        found[rows] = probe.projections(_moved(probe, states[place], plan, rows, recentred=True))[:, 0]
    return found


# -- private, in the order they are called --


def _leave_one_out(plan: Plan, groups: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return [(plan.rows([name for name in groups if name != out]), plan.rows([out])) for out in groups]


def _moved(probe: Probe, states: States, plan: Plan, rows: NDArray[np.int64], *, recentred: bool) -> States:
    return (
        centre(states[rows], plan.groups[rows])
        if recentred
        else states[rows].astype(np.float64) - probe.origin
    )


def _right(
    probe: Probe,
    states: States,
    plan: Plan,
    rows: NDArray[np.int64],
    labels: Bool[np.ndarray, "draw row"] | None = None,
    *,
    recentred: bool,
) -> Bool[np.ndarray, "row draw"]:
    said = probe.projections(_moved(probe, states, plan, rows, recentred=recentred)) > 0
    true = (plan.labels[None] if labels is None else labels)[:, rows]
    right: Bool[np.ndarray, "row draw"] = said == true.T
    return right


def _held_out(
    source: Stack, target: Stack, plan: Plan, places: Sequence[int], *, recentred: bool, seed: int
) -> Float[np.ndarray, "row draw"]:
    """[row of the plan, draw] 1 where the statement was labelled right, NaN where it was never held out.

    Draw 0 has the real labels; in the others all labels are shuffled, those that judge the held-out rows as well: a
    probe of shuffled labels may lie along the real direction, either way round, and must gain nothing by it.
    """
    shuffled = shuffled_labels(plan.labels, plan.groups, np.random.default_rng(seed), SHUFFLES)
    labels = np.vstack([plan.labels[None], shuffled])
    found = np.full((len(plan.statements), 1 + SHUFFLES), np.nan)
    for fold, place in zip(plan.folds, places, strict=True):
        rows = plan.rows(fold.test)
        probe = fit_probe(source[place], plan, plan.rows(fold.train), labels)
        found[rows] = _right(probe, target[place], plan, rows, labels, recentred=recentred)
    return found


def _accuracy(
    probe: str,
    states: str,
    layers: Sequence[int],
    right: Float[np.ndarray, "row draw"],
    plan: Plan,
    *,
    recentred: bool,
    polarity: int = 0,
) -> Accuracy:
    rows = ~np.isnan(right[:, 0])
    if polarity:
        rows &= np.array(plan.statements.polarity) == polarity
    shuffled = right[rows, 1:].mean(axis=0)
    low, high = np.quantile(shuffled, [0.025, 0.975])
    return Accuracy(
        probe=probe,
        states=states,
        layers=tuple(layers),
        recentred=recentred,
        statements={0: "all", 1: "affirmed", -1: "negated"}[polarity],
        accuracy=proportion(right[rows, 0], clusters=plan.clusters[rows]),
        control=Estimate(
            value=float(shuffled.mean()),
            low=min(float(low), float(shuffled.mean())),
            high=max(float(high), float(shuffled.mean())),
            n=len(np.unique(plan.clusters[rows])),
            method=f"{SHUFFLES} shuffles of the labels",
        ),
    )
