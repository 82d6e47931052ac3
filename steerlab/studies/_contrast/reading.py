"""What is read of a contrast in one model: states at every layer, and directions of all texts and of every fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from steerlab.activations import Activations, capture
from steerlab.directions import Direction, fit_direction
from steerlab.directions.held_out import held_out_folds
from steerlab.errors import DatasetError
from steerlab.models import LanguageModel, Last, Prompt, Site
from steerlab.progress import track
from steerlab.readouts.agreement import Stack
from steerlab.readouts.contrasts import Contrast

Rows = NDArray[np.int64]
Folds = list[tuple[Rows, Rows]]


@dataclass(frozen=True)
class Texts:
    """The labelled texts of a contrast as arrays, and the folds that both models share.

    labels, groups: [text]. folds: rows to fit on and rows held out, groups whole.
    """

    contrast: Contrast
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    folds: Folds

    @classmethod
    def of(cls, contrast: Contrast, seed: int) -> Texts:
        """The arrays of a contrast."""
        labels, groups = np.asarray(contrast.data.labels), np.asarray(contrast.data.groups.numbers)
        return cls(contrast, labels, groups, held_out_folds(labels, groups.tolist(), seed=seed))


@dataclass(frozen=True)
class Reading:
    """One model's states of the texts, and its directions.

    stack: float32 [layer, text, width]. whole: fitted on all texts, with its held-out accuracies. folds: fitted on the
    rest of each fold, at the layer that works best there; nothing of the held-out texts is in them.
    """

    role: str
    model: LanguageModel
    prompts: list[Prompt]
    stack: Stack
    whole: Direction
    folds: tuple[Direction, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer chosen in each fold."""
        return tuple(site.layer or 0 for site in self.sites)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site chosen in each fold."""
        return tuple(direction.best for direction in self.folds if direction.best is not None)


def read(models: Mapping[str, LanguageModel], texts: Texts, seed: int) -> dict[str, Reading]:
    """The last token of every text at every layer, in each model.

    Raises:
        DatasetError: too few groups to choose a layer without the held-out ones.
        PromptError: a text that does not fit into a model's context.
        DirectionError: a layer at which both classes have one mean.
    """
    name = texts.contrast.name
    return {
        role: _read(role, model, texts, seed, f"reading {name} in {role}") for role, model in models.items()
    }


# -- private --


def _read(role: str, model: LanguageModel, texts: Texts, seed: int, progress: str) -> Reading:
    prompts = texts.contrast.prompts(model)
    states = capture(model, prompts, model.sites("resid_post"), positions=Last(), progress=progress)
    everything = np.arange(len(texts.labels))
    fitted = [
        _fitted(states, model, texts, rows, seed)
        for rows in track([everything, *(train for train, _ in texts.folds)], progress, 1 + len(texts.folds))
    ]
    if any(direction.best is None for direction in fitted):
        raise DatasetError(
            f"The contrast {texts.contrast.name!r} holds too few groups to choose a layer in the rest of every fold; "
            "give more, or smaller ones."
        )
    stack = np.stack([states[site].numpy() for site in states.sites])
    return Reading(role, model, prompts, stack, fitted[0], tuple(fitted[1:]))


def _fitted(states: Activations, model: LanguageModel, texts: Texts, rows: Rows, seed: int) -> Direction:
    """The default direction of some of the texts, with accuracies of folds inside them."""
    chosen = torch.from_numpy(rows)
    part = replace(
        states,
        states={site: of_site[chosen] for site, of_site in states.states.items()},
        example=torch.arange(len(rows)),
        position=states.position[chosen],
        n_prompts=len(rows),
        prompts_hash="",
        prompt_hashes=(),
    )
    return fit_direction(
        part,
        texts.labels[rows].tolist(),
        model=model,
        dataset_hash=texts.contrast.data.hash if len(rows) == len(texts.labels) else "",
        groups=texts.groups[rows].tolist(),
        seed=seed,
    )
