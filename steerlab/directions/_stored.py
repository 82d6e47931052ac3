"""A direction as a header and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steerlab.directions._header import FORMAT, VERSION, CalibrationHeader, Header, ModelRef, SiteHeader
from steerlab.directions._numbers import site_statistics_of
from steerlab.directions.calibration import NAMES, ScoreCalibration
from steerlab.environment import library_versions
from steerlab.models import Site

if TYPE_CHECKING:
    from steerlab.directions.direction import Direction

_MEANS = "means/"
_CALIBRATION = "calibration/"


def tensors(direction: Direction) -> dict[str, Tensor]:
    """By name the vectors [k, width] of each site, its mean states [class, width], and a probe's calibration."""
    vectors = {str(site): rows for site, rows in direction.vectors.items()}
    means = {
        f"{_MEANS}{site}": torch.stack([*known.values()]) for site, known in direction.means.items() if known
    }
    known = direction.calibration
    scores = (
        {} if known is None else {f"{_CALIBRATION}{name}": rows for name, rows in known.tensors().items()}
    )
    return vectors | means | scores


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
        calibration=_calibration(direction.calibration),
        libraries=library_versions(),
    )


def _calibration(known: ScoreCalibration | None) -> CalibrationHeader | None:
    if known is None:
        return None
    sizes = {"tokens": len(known.scores), "answers": len(known.conversations)}
    return CalibrationHeader(**sizes, dataset_hash=known.dataset_hash)


def shapes(known: Header) -> dict[str, tuple[int, ...]]:
    """By name the shape of every tensor but for the means' width, which is 0 here."""
    found: dict[str, tuple[int, ...]] = {name: (site.k, site.width) for name, site in known.sites.items()}
    found |= {f"{_MEANS}{name}": (len(labels), 0) for name, labels in known.means.items()}
    if (held := known.calibration) is not None:
        sizes = (held.tokens, held.tokens, held.answers)
        found |= {f"{_CALIBRATION}{name}": (size,) for name, size in zip(NAMES, sizes, strict=True)}
    return found


def is_means(name: str) -> bool:
    """Whether a tensor of the file holds mean states."""
    return name.startswith(_MEANS)


def is_vectors(name: str) -> bool:
    """Whether a tensor of the file holds the vectors of a site."""
    return not name.startswith((_MEANS, _CALIBRATION))


def fields(known: Header, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the direction that was written."""
    return {
        "vectors": {Site.parse(name): tensor for name, tensor in stored.items() if is_vectors(name)},
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
        "calibration": None
        if known.calibration is None
        else ScoreCalibration(
            **{name: stored[f"{_CALIBRATION}{name}"] for name in NAMES},
            dataset_hash=known.calibration.dataset_hash,
        ),
    }
