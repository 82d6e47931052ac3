"""From states and labels to a direction at every site: one estimator, cloned and fitted site by site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from steerlab.activations import DIFFERENCE, Activations, Label, Moments, plain_label
from steerlab.directions._header import SiteStatistics
from steerlab.directions.direction import Direction
from steerlab.directions.linear import LinearDirection
from steerlab.directions.registry import estimator_of
from steerlab.errors import DirectionError
from steerlab.models import Selector, Site

if TYPE_CHECKING:
    from steerlab.models import LanguageModel


def fit_direction(
    estimator: LinearDirection | str,
    activations: Activations | Moments,
    labels: Sequence[Label] | NDArray[Any] | Tensor | None = None,
    *,
    model: LanguageModel | None = None,
    dataset_hash: str = "",
    position: Selector | str = "",
    positive: Label | None = None,
    pairs: Sequence[Hashable] | NDArray[Any] | Tensor | None = None,
    polarity: Sequence[int] | NDArray[Any] | Tensor | None = None,
) -> Direction:
    """Fit the estimator at every site and gather the vectors, with their scale, in one `Direction`.

    Args:
        estimator: an unfitted estimator, cloned for each site and left as it is, or a name ("difference-in-means").
        activations: captured states, or `Moments` for estimators that have ``fit_moments`` (then no labels).
        labels: one label a prompt; a prompt's rows share it. 0/1 or booleans, or anything with ``positive`` named.
        model: checked to be the model the states were read from.
        dataset_hash: of the data, kept in the header.
        position: the rule that picked the tokens, kept in the header.
        positive: the class the direction points to, when labels are not 0/1.
        pairs: one pair name a prompt, shared by the two prompts of a pair; for estimators that read pairs. Where
            several tokens of a prompt were read, the k-th of one member is held against the k-th of the other.
        polarity: +1 or -1 a prompt, affirmed or negated; for estimators that know it. Others are fitted without.

    Raises:
        DirectionError: for an unknown name, labels that are not two classes, pairs that are not one prompt of each
            class, or states of another model.
    """
    estimator = estimator_of(estimator)
    if model is not None and activations.fingerprint not in (None, model.fingerprint):
        raise DirectionError(
            f"The states were read from {activations.model_name}, not from {model.name}; capture them again there."
        )
    name = activations.model_name or (model.name if model else "")
    fingerprint = activations.fingerprint or (model.fingerprint if model else "")
    if isinstance(activations, Moments):
        classes = classes_of([label for label in activations.labels if label != DIFFERENCE], positive)
        fitted = {site: _fit_moments(estimator, activations, site, *classes) for site in activations.sites}
    else:
        row_labels = by_row(activations, labels, "labels")
        classes = classes_of(row_labels, positive)
        is_positive = np.array([label == classes[1] for label in row_labels])
        extra = _extra(estimator, activations, pairs, polarity)
        fitted = {
            site: _fit_rows(estimator, activations[site], site, is_positive, *classes, extra)
            for site in activations.sites
        }
    return Direction(
        vectors={site: vector for site, (vector, _) in fitted.items()},
        model_name=name,
        fingerprint=fingerprint,
        estimator=type(estimator).__name__,
        parameters=estimator.get_params(),
        dataset_hash=dataset_hash,
        position=position if isinstance(position, str) else repr(position),
        statistics={site: statistics for site, (_, statistics) in fitted.items()},
    )


def by_row(activations: Activations, values: Any, what: str) -> list[Label]:
    """Values given for each prompt, repeated for each row of it."""
    if values is None:
        raise DirectionError(f"Fitting on states needs {what}, one a prompt.")
    given = [plain_label(value) for value in values]
    if len(given) != activations.n_prompts:
        raise DirectionError(
            f"{activations.n_prompts} prompts came with {len(given)} {what}; give one a prompt."
        )
    return [given[example] for example in activations.example.tolist()]


def _extra(
    estimator: LinearDirection, activations: Activations, pairs: Any, polarity: Any
) -> dict[str, NDArray[Any]]:
    """Pair numbers and polarities by row, as far as they are given and the estimator takes them."""
    takes = signature(type(estimator).fit).parameters
    extra: dict[str, NDArray[Any]] = {}
    if pairs is not None and "pairs" in takes:
        turn: Counter[int] = Counter()
        names: list[Label] = []
        for example, name in zip(
            activations.example.tolist(), by_row(activations, pairs, "pairs"), strict=True
        ):
            names.append((name, turn[example]))
            turn[example] += 1
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        extra["pairs"] = np.array([number[name] for name in names])
    if polarity is not None and "polarity" in takes:
        extra["polarity"] = np.array(by_row(activations, polarity, "polarities"))
    return extra


def classes_of(labels: Sequence[Label], positive: Label | None) -> tuple[Label, Label]:
    """(negative, positive) of exactly two classes."""
    classes = list(dict.fromkeys(labels))
    if len(classes) != 2:
        raise DirectionError(f"A direction needs two classes; the labels hold {classes}.")
    if positive is None:
        if set(classes) != {0, 1}:
            raise DirectionError(
                f"The labels {classes} do not say which class is positive; name it with positive=...."
            )
        return (classes[0], classes[1]) if classes[1] else (classes[1], classes[0])
    if positive not in classes:
        raise DirectionError(f"No label is {positive!r}; the labels hold {classes}.")
    return next(label for label in classes if label != positive), positive


def _fit_rows(
    estimator: LinearDirection,
    rows: Tensor,
    site: Site,
    is_positive: NDArray[np.bool_],
    negative: Label,
    positive: Label,
    extra: Mapping[str, NDArray[Any]],
) -> tuple[Tensor, SiteStatistics]:
    model = clone(estimator).fit(rows, is_positive, **extra)
    unit = torch.from_numpy(unit_of(model.direction_, site))
    projections = (rows.to(unit.dtype) @ unit).numpy()
    high, low = projections[is_positive], projections[~is_positive]
    within = np.concatenate([high - high.mean(), low - low.mean()])
    statistics = site_statistics(
        model.direction_,
        bias=model.bias_,
        means={negative: float(low.mean()), positive: float(high.mean())},
        stream_norm=float(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).mean()),
        sigma=_sigma(float((within**2).sum()), len(within)),
    )
    return torch.from_numpy(model.direction_), statistics


def _fit_moments(
    estimator: LinearDirection, moments: Moments, site: Site, negative: Label, positive: Label
) -> tuple[Tensor, SiteStatistics]:
    if not hasattr(estimator, "fit_moments"):
        raise DirectionError(
            f"{type(estimator).__name__} needs the rows; capture them without into=Moments(...)."
        )
    model = clone(estimator).fit_moments(moments, site, negative=negative, positive=positive)
    unit = torch.from_numpy(unit_of(model.direction_, site))
    sigma = None
    counts = [moments.count(label) for label in (negative, positive)]
    if all(moments.has_scatter(site, label) for label in (negative, positive)):
        within = moments.scatter(site, positive) + moments.scatter(site, negative)
        sigma = _sigma(float(unit @ within @ unit), sum(counts))
    statistics = site_statistics(
        model.direction_,
        bias=model.bias_,
        means={label: float(moments.mean(site, label) @ unit) for label in (negative, positive)},
        stream_norm=float(
            np.average([moments.norm(site, label) for label in (negative, positive)], weights=counts)
        ),
        sigma=sigma,
    )
    return torch.from_numpy(model.direction_), statistics


def unit_of(vector: NDArray[np.float64], site: Site, *, least: float = 0.0) -> NDArray[np.float64]:
    """The vector at length one; `DirectionError` when it is no longer than `least`."""
    length = float(np.linalg.norm(vector))
    if length <= least:
        raise DirectionError(
            f"The direction found at {site} is zero and points nowhere: its classes have one mean; read another site "
            "or other positions."
        )
    return np.asarray(vector / length, dtype=np.float64)


def site_statistics(
    vector: NDArray[np.float64],
    *,
    bias: float,
    means: Mapping[Label, float],
    stream_norm: float,
    sigma: float | None,
) -> SiteStatistics:
    """A vector's scale: `means` are the projections of the (negative, positive) class means on its unit vector."""
    negative, positive = means
    return SiteStatistics(
        class_means={str(label): (mean,) for label, mean in means.items()},
        positive=str(positive),
        negative=str(negative),
        stream_norm=stream_norm,
        bias=(bias,),
        threshold=(-bias / float(np.linalg.norm(vector)),),
        sigma=None if sigma is None else (sigma,),
    )


def _sigma(within: float, n: int) -> float | None:
    """Pooled standard deviation within two classes."""
    return (within / (n - 2)) ** 0.5 if n > 2 else None
