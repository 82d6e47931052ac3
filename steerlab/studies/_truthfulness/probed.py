"""What probes say of both models' states: by layer, on each other's states, and whose direction holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerlab.activations import Activations
from steerlab.directions import LinearDirection
from steerlab.directions.coordinates import Coordinates
from steerlab.models import LanguageModel
from steerlab.progress import track
from steerlab.readouts.agreement import Stack
from steerlab.readouts.questions import Plan
from steerlab.studies._truthfulness.geometry import agreements, points
from steerlab.studies._truthfulness.probes import (
    OWN,
    Accuracy,
    accuracy_by_layer,
    choose_layers,
    coordinates_at,
    transfer,
)
from steerlab.studies._truthfulness.reasons import reasons_of
from steerlab.studies._truthfulness.steering import Window


@dataclass(frozen=True)
class Probed:
    """What probes say of both models' states.

    stacks: states by model. layers: of each model's probe, by fold. by_layer, cells: accuracies. has_direction: whose
    own probe is above chance on held-out statements. comparable: whether one model's probe fits the other's states.
    coordinates: of the probes; None chooses them at each layer.
    """

    stacks: dict[str, Stack]
    layers: dict[str, list[int]]
    by_layer: list[Accuracy]
    cells: list[Accuracy]
    has_direction: dict[str, bool]
    comparable: bool
    coordinates: Coordinates | None

    def fields(self, used: Plan, estimator: LinearDirection | None, seed: int) -> dict[str, Any]:
        """The fields of the result: what leans on a direction only where there is one."""
        own = {name: stack for name, stack in self.stacks.items() if self.has_direction[name]}
        both = self.comparable and all(self.has_direction.values())
        return {
            "chosen": {name: tuple(layers) for name, layers in self.layers.items()},
            "by_layer": tuple(self.by_layer),
            "transfer": tuple(
                cell for cell in self.cells if cell.probe == cell.states or self.has_direction[cell.probe]
            ),
            "agreement": agreements(self.stacks, used, seed, estimator) if both else (),
            "points": points(own, used, self.layers, estimator, self.coordinates),
            "coordinates": {
                name: tuple(self.coordinates or coordinates_at(x, used) for x in stack)
                for name, stack in self.stacks.items()
            },
            "reasons": tuple(
                row
                for name, stack in self.stacks.items()
                if not self.has_direction[name]
                for row in reasons_of(name, stack, used, seed)
            ),
        }


def probed_states(
    models: Mapping[str, LanguageModel],
    read: Mapping[str, Activations],
    used: Plan,
    fixed: Mapping[str, Window],
    estimator: LinearDirection | None,
    coordinates: Coordinates | None,
    missing: dict[str, str],
    seed: int,
) -> Probed:
    """Probes by layer, and every probe on every model's held-out states."""
    stacks = {
        name: np.stack([states[site].numpy() for site in states.sites]) for name, states in read.items()
    }
    comparable = _comparable(models, missing)
    fit: dict[str, Any] = {"estimator": estimator, "coordinates": coordinates}
    layers = {
        name: [fixed[name][1]] * len(used.folds) if name in fixed else choose_layers(stack, used, **fit)
        for name, stack in stacks.items()
    }
    by_layer = [
        row
        for name, stack in track(stacks.items(), "probing truth by layer", len(stacks))
        for row in accuracy_by_layer(name, stack, used, seed=seed, **fit)
    ]
    groups = [stacks] if comparable else [{name: stack} for name, stack in stacks.items()]
    cells = [cell for group in groups for cell in transfer(group, used, layers, seed=seed, **fit)]
    has_direction = {
        cell.probe: cell.above_chance
        for cell in cells
        if (cell.probe, cell.centred_by, cell.statements, cell.topic) == (cell.states, OWN, "all", "all")
    }
    return Probed(stacks, layers, by_layer, cells, has_direction, comparable, coordinates)


def _comparable(models: Mapping[str, LanguageModel], missing: dict[str, str]) -> bool:
    """Whether one model's directions fit the other; says why not in `missing`."""
    base, post = models["base"], models["post"]
    if (base.d_model, base.n_layers) == (post.d_model, post.n_layers):
        return True
    missing["comparison"] = (
        f"The models differ in shape (width {base.d_model} and {post.d_model}, {base.n_layers} and {post.n_layers} "
        "layers), so cosines and the transfer of probes and steering between them were not run; each was studied alone."
    )
    return False
