"""Directions of all simple statements of the truthfulness study: how alike the two models' are, where held-out
statements lie along them, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from steerlab.activations import Activations
from steerlab.datasets import StatementSet
from steerlab.directions import DifferenceInMeans, Direction, LinearDirection, fit_direction
from steerlab.directions.coordinates import Coordinates
from steerlab.models import LanguageModel
from steerlab.readouts.agreement import Agreement, Fit, Stack, agreement_by_layer, centre
from steerlab.readouts.agreement import difference_in_means as by_weights
from steerlab.readouts.questions import Plan
from steerlab.studies._truthfulness.probes import held_out_projections
from steerlab.studies._truthfulness.result import Point


def agreements(
    stacks: Mapping[str, Stack], used: Plan, seed: int, estimator: LinearDirection | None
) -> tuple[Agreement, ...]:
    rows = np.flatnonzero(used.simple)
    groups = used.groups[rows]
    centred = {
        name: np.stack([centre(states[rows], groups) for states in stack]) for name, stack in stacks.items()
    }
    fast = estimator is None or type(estimator) is DifferenceInMeans
    return tuple(
        agreement_by_layer(
            centred["base"],
            centred["post"],
            used.labels[rows],
            clusters=used.clusters[rows],
            strata=groups,
            layers=range(len(centred["base"])),
            seed=seed,
            draws=200 if fast else 20,
            splits=30 if fast else 10,
            fit=by_weights if estimator is None or fast else refitted(estimator, used.polarity[rows]),
        )
    )


def refitted(estimator: LinearDirection, polarity: NDArray[np.int64]) -> Fit:
    """The estimator on the rows of each draw, as often as they were drawn."""
    knows = "polarity" in signature(estimator.fit).parameters and len(np.unique(polarity)) == 2

    def fit(
        states: NDArray[np.float64], labels: NDArray[np.bool_], counts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        truth = np.broadcast_to(labels, counts.shape)
        drawn = [np.repeat(np.arange(len(states)), count.astype(int)) for count in counts]
        return np.stack(
            [
                clone(estimator)
                .fit(states[rows], truth[number][rows], **({"polarity": polarity[rows]} if knows else {}))
                .direction_
                for number, rows in enumerate(drawn)
            ]
        )

    return fit


def points(
    stacks: Mapping[str, Stack],
    used: Plan,
    at: Mapping[str, Sequence[int]],
    estimator: LinearDirection | None,
    coordinates: Coordinates | None,
) -> tuple[Point, ...]:
    """Held-out statements along the directions of the models that have one."""
    lying = {
        name: held_out_projections(stack, used, at[name], estimator, coordinates)
        for name, stack in stacks.items()
    }
    if not lying:
        return ()
    return tuple(
        Point(
            topic=str(used.groups[row]),
            true=bool(used.labels[row]),
            negated=used.statements[row].polarity < 0,
            cluster=int(used.clusters[row]),
            places={name: round(float(along[row]), 4) for name, along in lying.items()},
        )
        for row in np.flatnonzero(used.simple).tolist()
    )


def direction(
    read: Activations, model: LanguageModel, used: Plan, estimator: LinearDirection | None
) -> Direction:
    """The direction of all simple statements at every layer, topics moved onto their common mean."""
    rows = np.flatnonzero(used.simple)
    groups = used.groups[rows]
    states = {}
    for site, all_rows in read.states.items():
        raw = all_rows.numpy()[rows]
        states[site] = torch.from_numpy(centre(raw, groups) + raw.mean(axis=0, dtype=np.float64)).float()
    part = replace(
        read,
        states=states,
        example=torch.arange(len(rows)),
        position=read.position[torch.from_numpy(rows)],
        n_prompts=len(rows),
        prompts_hash="",
        prompt_hashes=(),
    )
    return fit_direction(
        part,
        used.labels[rows].tolist(),
        estimator or DifferenceInMeans(),
        model=model,
        dataset_hash=StatementSet(used.statements[row] for row in rows.tolist()).hash,
        polarity=used.polarity[rows].tolist() if len(np.unique(used.polarity[rows])) == 2 else None,
        hold_out=False,
    )
