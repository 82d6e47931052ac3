"""A direction as a header and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerlab.directions._header import FORMAT, VERSION, Header, ModelRef, SiteHeader
from steerlab.directions._numbers import site_statistics_of
from steerlab.environment import library_versions
from steerlab.models import Site

if TYPE_CHECKING:
    from steerlab.directions.direction import Direction

_MEANS = "means/"


def tensors(direction: Direction) -> dict[str, Tensor]:
    """By name the vectors [k, width] of each site, and its mean states [class, width]."""
    vectors = {str(site): rows for site, rows in direction.vectors.items()}
    means = {
        f"{_MEANS}{site}": torch.stack([*known.values()]) for site, known in direction.means.items() if known
    }
    return vectors | means


def header(direction: Direction) -> Header:
    """Everything that is not a tensor."""
    sites = {
        str(site): SiteHeader(k=rows.shape[0], width=rows.shape[1], **direction.statistics[site].model_dump())
        for site, rows in direction.vectors.items()
    }
    return Header(
        format=FORMAT,
        version=VERSION,
        estimator=direction.estimator,
        parameters=dict(direction.parameters),
        model=ModelRef(name=direction.model_name, fingerprint=direction.fingerprint),
        origin=direction.origin,
        dataset_hash=direction.dataset_hash,
        position=direction.position,
        sites=sites,
        accuracy={str(site): value for site, value in direction.accuracy.items()},
        best=None if direction.best is None else str(direction.best),
        means={str(site): tuple(known) for site, known in direction.means.items() if known},
        libraries=library_versions(),
    )


def shapes(known: Header) -> dict[str, tuple[int, int]]:
    """By name the shape of every tensor but for the means' width, which is 0 here."""
    vectors = {name: (site.k, site.width) for name, site in known.sites.items()}
    return vectors | {f"{_MEANS}{name}": (len(labels), 0) for name, labels in known.means.items()}


def is_means(name: str) -> bool:
    """Whether a tensor of the file holds mean states."""
    return name.startswith(_MEANS)


def fields(known: Header, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the direction that was written."""
    return {
        "vectors": {Site.parse(name): tensor for name, tensor in stored.items() if not is_means(name)},
        "model_name": known.model.name,
        "fingerprint": known.model.fingerprint,
        "estimator": known.estimator,
        "parameters": known.parameters,
        "dataset_hash": known.dataset_hash,
        "position": known.position,
        "statistics": {Site.parse(name): site_statistics_of(site) for name, site in known.sites.items()},
        "origin": known.origin,
        "accuracy": {Site.parse(name): value for name, value in known.accuracy.items()},
        "best": None if known.best is None else Site.parse(known.best),
        "means": {
            Site.parse(name): dict(zip(labels, stored[f"{_MEANS}{name}"], strict=True))
            for name, labels in known.means.items()
        },
    }
