"""Mean states by site and class: where the two classes of a direction lie, as whole states and not along it only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerlab.activations import DIFFERENCE, Moments
from steerlab.errors import DirectionError
from steerlab.models import Site, site_of

Means: TypeAlias = Mapping[Site, Mapping[str, Float[Tensor, " width"]]]
#: The mean over the states of all classes.
ALL = ""


def checked_means(given: Means) -> Means:
    """The means as float32 [width] on the CPU, or a sentence."""
    means: dict[Site, dict[str, Tensor]] = {}
    for name, of_class in given.items():
        site = site_of(name)
        states = {
            label: torch.as_tensor(mean).detach().to("cpu", torch.float32) for label, mean in of_class.items()
        }
        for label, mean in states.items():
            if mean.dim() != 1 or not torch.isfinite(mean).all():
                raise DirectionError(
                    f"The mean of {label or 'all states'} at {site} is no finite vector [width]."
                )
        means[site] = states
    return {site: means[site] for site in sorted(means)}


def mean_among(means: Means, site: Site, of: str) -> Float[Tensor, " width"]:
    """The mean of a class, or of all for "mean", at a site or at the one that holds the same state."""
    asked = site
    if site not in means:
        site = _twin(site)
    known = means.get(site)
    if known is None:
        places = f" (known: {_few(means)})" if means else ""
        raise DirectionError(
            f"The direction knows no mean states at {asked}{places}; fit it from labelled states captured there."
        )
    if of == "mean" and of in known and ALL in known:
        raise DirectionError(f"A class is called 'mean' at {site}; give the value by site instead of a name.")
    key = ALL if of == "mean" and of not in known else of
    if key not in known:
        classes = ", ".join(repr(label) for label in known if label)
        raise DirectionError(f"The direction knows no mean of {of!r} at {site}; it knows 'mean', {classes}.")
    return known[key]


def class_means_of(
    states: Float[Tensor, "row width"], is_positive: NDArray[np.bool_], negative: str, positive: str
) -> dict[str, Tensor]:
    """Mean states of all rows and of either class, float64."""
    rows = torch.from_numpy(is_positive)
    parts = {ALL: states, negative: states[~rows], positive: states[rows]}
    return {label: part.mean(dim=0, dtype=torch.float64) for label, part in parts.items()}


def means_of_moments(moments: Moments) -> dict[Site, dict[str, Tensor]]:
    """Mean states by site of everything that was streamed and of each class."""
    labels = [label for label in moments.labels if label != DIFFERENCE]
    counts = torch.tensor([moments.count(label) for label in labels], dtype=torch.float64)
    means: dict[Site, dict[str, Tensor]] = {}
    for site in moments.sites:
        of_class = {str(label): moments.mean(site, label) for label in labels}
        together = (counts / counts.sum()) @ torch.stack([*of_class.values()]).double()
        means[site] = {ALL: together, **of_class}
    return means


def _twin(site: Site) -> Site:
    """The site that holds the same state: a block's input is the output of the one before."""
    if site.name == "resid_pre" and site.layer:
        return Site("resid_post", site.layer - 1)
    if site.name == "resid_post" and site.layer is not None:
        return Site("resid_pre", site.layer + 1)
    return site


def _few(means: Means) -> str:
    names = [str(site) for site in means]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}"
