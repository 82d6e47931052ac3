"""Rendered prompts of two kinds, their states after the instruction, and vectors as directions of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.activations import Activations, Moments, capture
from steerlab.directions import Direction, SiteStatistics
from steerlab.errors import PromptError
from steerlab.models import AfterInstruction, LanguageModel, Last, Prompt, Selector, Site

Stack: TypeAlias = Float[np.ndarray, "layer position width"]


@dataclass(frozen=True)
class Split:
    """Rendered prompts of one split."""

    harmful: list[Prompt]
    harmless: list[Prompt]

    @property
    def prompts(self) -> list[Prompt]:
        """Harmful ones first."""
        return self.harmful + self.harmless

    @property
    def kinds(self) -> tuple[list[Prompt], list[Prompt]]:
        """Harmful and harmless ones."""
        return self.harmful, self.harmless

    @property
    def labels(self) -> NDArray[np.bool_]:
        """True for harmful."""
        return np.array([True] * len(self.harmful) + [False] * len(self.harmless))


@dataclass(frozen=True)
class ClassMeans:
    """Mean states of the two kinds at every layer and token after the instruction, counted back from the last."""

    harmful: Stack
    harmless: Stack

    @property
    def differences(self) -> Stack:
        """Mean of harmful minus mean of harmless."""
        difference: Stack = self.harmful - self.harmless
        return difference

    def last(self, n: int) -> ClassMeans:
        """The last positions only."""
        return ClassMeans(self.harmful[:, -n:], self.harmless[:, -n:])


@dataclass(frozen=True)
class Reading:
    """States after the instruction [layer, prompt, position, width], positions counted back from the last token."""

    states: Float[np.ndarray, "layer prompt position width"]
    labels: NDArray[np.bool_]

    @property
    def n_positions(self) -> int:
        """Positions read; index -1 is the prompt's last token."""
        return int(self.states.shape[2])

    def means(self) -> ClassMeans:
        """Mean states of harmful and of harmless prompts, in float64."""
        exact = self.states.astype(np.float64)
        return ClassMeans(exact[:, self.labels].mean(axis=1), exact[:, ~self.labels].mean(axis=1))

    def differences(self) -> Stack:
        """Mean of harmful minus mean of harmless, in float64."""
        return self.means().differences


def read(
    model: LanguageModel,
    split: Split,
    positions: Selector | None = None,
    progress: str | None = None,
    site: str = "resid_post",
) -> Reading:
    """States of every layer at the tokens after the instruction (the last token where there are none)."""
    sites = model.sites(site)
    try:
        acts = capture(
            model, split.prompts, sites, positions=positions or AfterInstruction(), progress=progress
        )
    except PromptError:
        if positions is not None:
            raise
        acts = capture(model, split.prompts, sites, positions=Last(), progress=progress)
    return Reading(_from_the_end(acts, sites), split.labels)


def class_means(
    model: LanguageModel, split: Split, *, site: str = "resid_post", progress: str | None = None
) -> ClassMeans:
    """Mean states of the two kinds at every layer and token after the instruction, in one pass.

    Only class means are kept (float64). Positions are counted from the end; those that some prompt lacks are left out.
    """
    sites, labels = model.sites(site), split.labels.tolist()

    def streamed(positions: Selector) -> Moments:
        return capture(
            model,
            split.prompts,
            sites,
            positions=positions,
            into=Moments(),
            labels=labels,
            by_position=True,
            progress=progress,
        )

    try:
        moments = streamed(AfterInstruction())
    except PromptError:
        moments = streamed(Last())
    kinds = {kind: split.labels.tolist().count(kind) for kind in (True, False)}
    known = {place for label in moments.labels if isinstance(label, tuple) for place in label[1:]}
    places = [
        place
        for place in sorted(known)
        if all(
            (kind, place) in moments.labels and moments.count((kind, place)) == n for kind, n in kinds.items()
        )
    ]

    def stack(kind: bool) -> Stack:
        return np.stack([[moments.mean(at, (kind, place)).numpy() for place in places] for at in sites])

    return ClassMeans(stack(True), stack(False))


def direction_at(
    model: LanguageModel, vector: Float[np.ndarray, " width"], layer: int, site: str = "resid_post"
) -> Direction:
    """A vector as a direction of this model at one layer, which is its best one."""
    place = Site(site, layer)
    vectors = {place: torch.from_numpy(np.asarray(vector)).float()}
    return Direction(vectors, model.name, model.fingerprint, best=place)


def contrast_direction(
    model: LanguageModel,
    means: ClassMeans,
    layer: int,
    position: int,
    site: str = "resid_post",
    kinds: tuple[str, str] = ("positive", "negative"),
) -> Direction:
    """The difference of the class means at one layer and position, with the means of every layer."""
    place, (positive, negative) = Site(site, layer), kinds
    vector = torch.from_numpy(means.differences[layer, position])
    unit = vector / vector.norm()
    high, low = (torch.from_numpy(of_class[:, position]) for of_class in (means.harmful, means.harmless))
    known = SiteStatistics(
        class_means={negative: (float(low[layer] @ unit),), positive: (float(high[layer] @ unit),)},
        positive=positive,
        negative=negative,
    )
    return replace(
        direction_at(model, vector.numpy(), layer, site),
        statistics={place: known},
        means={
            Site(site, at): {"": (high[at] + low[at]) / 2, negative: low[at], positive: high[at]}
            for at in range(len(low))
        },
    )


# -- private --


def _from_the_end(
    acts: Activations, sites: Sequence[Site]
) -> Float[np.ndarray, "layer prompt position width"]:
    """The last positions of every prompt, as many as the prompt with fewest has."""
    example = acts.example.numpy()
    counts = np.bincount(example, minlength=acts.n_prompts)
    kept = int(counts.min())
    ends = np.cumsum(counts)
    rows = ends[:, None] - kept + np.arange(kept)
    return np.stack([acts[site].numpy()[rows] for site in sites])
