"""From states and labels to a direction at every site: one estimator, cloned and fitted site by site."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from steerlab.activations import DIFFERENCE, Activations, Label, Moments, plain_label
from steerlab.datasets.frames import columns_of
from steerlab.directions._header import SiteStatistics
from steerlab.directions._means import class_means_of, means_of_moments
from steerlab.directions._scale import site_statistics, spread, unit_of
from steerlab.directions.coordinates import Coordinates, centred_apart, described, in_coordinates
from steerlab.directions.direction import Direction
from steerlab.directions.held_out import FOLDS, best_site, groups_by_class, held_out_accuracy, numbered
from steerlab.directions.linear import LinearDirection
from steerlab.directions.registry import estimator_of
from steerlab.errors import DirectionError, kind_of
from steerlab.models import Selector, Site
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from steerlab.models import LanguageModel


_Fit = ParamSpec("_Fit")


def _in_either_order(fit: Callable[_Fit, Direction]) -> Callable[_Fit, Direction]:
    """Also take the arguments in the order of before, (estimator, activations, labels), for one release."""

    @wraps(fit)
    def called(*args: _Fit.args, **kwargs: _Fit.kwargs) -> Direction:
        first = args[0] if args else None
        is_estimator = isinstance(first, LinearDirection | str | type)
        if not is_estimator and "activations" not in kwargs:
            return fit(*args, **kwargs)
        warnings.warn(
            "fit_direction(estimator, states, labels) is now fit_direction(states, labels, estimator); the old order "
            "goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        given: dict[str, Any] = dict(zip(("estimator", "activations", "labels"), args, strict=False)) | kwargs
        given["states"] = given.pop("activations", None)
        anyhow: Any = fit
        made: Direction = anyhow(**given)
        return made

    return called


# Long: half of it documents its options.
@_in_either_order
def fit_direction(
    states: Activations | Moments,
    labels: Sequence[Label] | NDArray[Any] | Tensor | None = None,
    estimator: LinearDirection | str = "difference-in-means",
    *,
    model: LanguageModel | None = None,
    dataset_hash: str = "",
    position: Selector | str = "",
    positive: Label | None = None,
    pairs: Sequence[Hashable] | NDArray[Any] | Tensor | None = None,
    polarity: Sequence[int] | NDArray[Any] | Tensor | None = None,
    groups: Sequence[Hashable] | NDArray[Any] | Tensor | None = None,
    coordinates: Coordinates = "plain",
    centre_groups: bool = False,
    hold_out: bool = True,
    seed: int = 0,
) -> Direction:
    """Fit the estimator at every site and gather the vectors, with their scale, in one `Direction`.

    Where rows are known and each class has five groups, five folds are held out as well: the direction then has an
    `accuracy` at each site where every fold could be fitted, and knows its `best` one.

    Args:
        states: captured states, or `Moments` for estimators that have ``fit_moments`` (then no labels).
        labels: one label a prompt; a prompt's rows share it. 0/1 or booleans, or anything with ``positive`` named.
        estimator: a name ("lda"), or an unfitted estimator, cloned for each site and left as it is.
        model: checked to be the model the states were read from; the states know it themselves.
        dataset_hash: of the data, kept in the header; by default of the states' prompts and the labels.
        position: the rule that picked the tokens, kept in the header; by default the states' own.
        positive: the class the direction points to, when labels are not 0/1.
        pairs: one pair name a prompt, shared by the two prompts of a pair; for estimators that read pairs. Where
            several tokens of a prompt were read, the k-th of one member is held against the k-th of the other.
        polarity: +1 or -1 a prompt, affirmed or negated; for estimators that know it. Others are fitted without.
        groups: what is held out together, one name a prompt; by default `pairs`, else each prompt by itself.
        coordinates: "standardised" or "winsorised" fits on coordinates of one scale (`directions.coordinates`) and
            carries the weight back: for reading, where one mean dominates the states. A direction that is to steer
            stays in the states' own scale, "plain".
        centre_groups: moves every one of the `groups` (topics) to the mean of all before the fit, a held-out one by its
            own mean as well, so that what tells groups apart is no part of the direction. Groups hold both classes.
        hold_out: False leaves accuracy and best site unknown and fits once a site instead of six times.
        seed: of the folds.

    Example:
        >>> fit_direction(sl.capture(model, prompts, "resid_post"), labels)  # doctest: +SKIP

    Raises:
        DirectionError: for an unknown name, labels that are not two classes or give one text both, pairs that are not
            one prompt of each class, or states of another model.
    """
    activations, estimator = _states(states), in_coordinates(estimator_of(estimator), coordinates)
    name, fingerprint = _read_in(activations, model)
    if isinstance(activations, Moments):
        if centre_groups:
            raise DirectionError(
                "Centring groups apart needs the rows; capture them without into=Moments(...)."
            )
        fitted, accuracy = _from_moments(estimator, activations, positive), {}
        means = means_of_moments(activations)
    else:
        rows = _Rows.of(estimator, activations, labels, positive, pairs, polarity, groups)
        ends = str(rows.negative), str(rows.positive)
        means = {
            site: class_means_of(activations[site], rows.is_positive, *ends) for site in activations.sites
        }
        if centre_groups:
            activations = _centred(activations, groups, rows)
        fitted = {site: _fit_rows(estimator, activations[site], site, rows) for site in activations.sites}
        together = _groups(activations, pairs, groups)
        accuracy = _held_out(estimator, activations, rows, together, seed) if hold_out else {}
    found = {site: statistics for site, (_, statistics) in fitted.items()}
    kind, parameters = described(estimator)
    return Direction(
        vectors={site: vector for site, (vector, _) in fitted.items()},
        model_name=name,
        fingerprint=fingerprint,
        estimator=kind,
        parameters=parameters | ({"centre_groups": True} if centre_groups else {}),
        dataset_hash=dataset_hash or data_hash(activations, labels),
        position=(position if isinstance(position, str) else repr(position)) or activations.positions,
        statistics=found,
        accuracy=accuracy,
        best=best_site(accuracy, found),
        means=means,
    )


@dataclass(frozen=True)
class _Rows:
    """What is known of each row: its class, and what else an estimator takes."""

    is_positive: NDArray[np.bool_]
    negative: Label
    positive: Label
    extra: Mapping[str, NDArray[Any]]

    @classmethod
    def of(
        cls,
        estimator: LinearDirection,
        activations: Activations,
        labels: Any,
        positive: Label | None,
        pairs: Any,
        polarity: Any,
        groups: Any,
    ) -> _Rows:
        given = by_row(activations, labels, "labels")
        _require_one_label_a_prompt(activations, given)
        low, high = classes_of(given, positive)
        is_positive = np.array([label == high for label in given])
        return cls(is_positive, low, high, _extra(estimator, activations, pairs, polarity, groups))


def _from_moments(
    estimator: LinearDirection, moments: Moments, positive: Label | None
) -> dict[Site, tuple[Tensor, SiteStatistics]]:
    classes = classes_of([label for label in moments.labels if label != DIFFERENCE], positive)
    return {site: _fit_moments(estimator, moments, site, *classes) for site in moments.sites}


def _centred(activations: Activations, groups: Any, rows: _Rows) -> Activations:
    """The states with every group moved to the mean of all."""
    if groups is None:
        raise DirectionError("Centring groups apart needs groups=, one name a prompt (its topic).")
    names = by_row(activations, groups, "groups")
    moved = {site: centred_apart(x, names, rows.is_positive) for site, x in activations.states.items()}
    return replace(activations, states=moved)


def _groups(activations: Activations, pairs: Any, groups: Any) -> list[Label]:
    """What is held out together, by row."""
    given = groups if groups is not None else pairs if pairs is not None else range(activations.n_prompts)
    return by_row(activations, given, "groups")


def _held_out(
    estimator: LinearDirection, activations: Activations, rows: _Rows, groups: Sequence[Label], seed: int
) -> dict[Site, Estimate]:
    """Held-out accuracy by site; none where a class has fewer groups than folds, or a fold cannot be fitted."""
    labels = rows.is_positive.astype(int)
    if min(groups_by_class(groups, labels.tolist()).values()) < FOLDS:
        return {}
    accuracy = {}
    for site in activations.sites:
        # States of one text each may be told apart together and not in every fold.
        with suppress(DirectionError):
            accuracy[site] = held_out_accuracy(
                estimator, activations[site].numpy(), labels, groups, extra=rows.extra, seed=seed
            )
    return accuracy


def _states(states: Any) -> Activations | Moments:
    if not isinstance(states, Activations | Moments):
        raise DirectionError(
            f"Directions are fitted on states of sl.capture(model, prompts, sites), not on {kind_of(states)}."
        )
    return states


def _read_in(states: Activations | Moments, model: LanguageModel | None) -> tuple[str, str]:
    """Name and fingerprint of the model the states were read from."""
    if model is not None and states.fingerprint not in (None, model.fingerprint):
        raise DirectionError(
            f"The states were read from {states.model_name}, not from {model.name}; capture them again there."
        )
    name = states.model_name or (model.name if model else "")
    fingerprint = states.fingerprint or (model.fingerprint if model else "")
    return name, fingerprint


def data_hash(states: Activations | Moments, labels: Any) -> str:
    """Of prompts and labels; moments know both."""
    if isinstance(states, Moments) or not states.prompts_hash:
        return states.prompts_hash
    written = repr((states.prompts_hash, [plain_label(label) for label in labels]))
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def by_row(activations: Activations, values: Any, what: str) -> list[Label]:
    """Values given for each prompt, repeated for each row of it."""
    if values is None:
        raise DirectionError(f"Fitting on states needs {what}, one a prompt.")
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise DirectionError(f"The {what} are {values!r}; give a list with one a prompt.")
    if columns_of(values) is not None:
        raise DirectionError(f"The {what} are a whole table; give one column of it.")
    given = [plain_label(value) for value in values]
    if len(given) != activations.n_prompts:
        raise DirectionError(
            f"{activations.n_prompts} prompts came with {len(given)} {what}; give one a prompt."
        )
    return [given[example] for example in activations.example.tolist()]


def _require_one_label_a_prompt(activations: Activations, by_row: Sequence[Label]) -> None:
    """Raise `DirectionError` where one prompt was given twice, with two labels."""
    first: dict[str, tuple[int, Label]] = {}
    labels = dict(zip(activations.example.tolist(), by_row, strict=True))
    for number, prompt in enumerate(activations.prompt_hashes):
        if number not in labels:  # nothing of it was read
            continue
        before, label = first.setdefault(prompt, (number, labels[number]))
        if label != labels[number]:
            raise DirectionError(
                f"Prompts {before} and {number} are one text with the labels {label!r} and {labels[number]!r}; a text "
                "has one label, so leave out what has two."
            )


def _extra(
    estimator: LinearDirection,
    activations: Activations,
    pairs: Any,
    polarity: Any,
    groups: Any,
) -> dict[str, NDArray[Any]]:
    """Pair numbers, polarities and groups by row, as far as they are given and the estimator takes them."""
    takes = signature(type(estimator).fit).parameters
    extra: dict[str, NDArray[Any]] = {}
    if pairs is not None and "pairs" in takes:
        extra["pairs"] = pair_numbers(activations, pairs)
    if polarity is not None and "polarity" in takes:
        extra["polarity"] = np.array(by_row(activations, polarity, "polarities"))
    if "groups" in takes:
        together = _groups(activations, pairs, groups)
        extra["groups"] = numbered(together, len(together))
    return extra


def pair_numbers(activations: Activations, pairs: Any) -> NDArray[Any]:
    """One number a row: the k-th row of one member of a pair is held against the k-th of the other."""
    turn: Counter[int] = Counter()
    names: list[Label] = []
    for example, name in zip(activations.example.tolist(), by_row(activations, pairs, "pairs"), strict=True):
        names.append((name, turn[example]))
        turn[example] += 1
    return numbered(names, len(names))


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
    states: Tensor,
    site: Site,
    rows: _Rows,
) -> tuple[Tensor, SiteStatistics]:
    model = clone(estimator).fit(states, rows.is_positive, **rows.extra)
    vectors: NDArray[np.float64] = getattr(model, "components_", model.direction_[None])
    units = torch.from_numpy(np.stack([unit_of(vector, site) for vector in vectors]))
    projections = (states.to(units.dtype) @ units.T).numpy()
    high, low = projections[rows.is_positive], projections[~rows.is_positive]
    within = np.concatenate([high - high.mean(axis=0), low - low.mean(axis=0)])
    statistics = site_statistics(
        vectors,
        biases=np.atleast_1d(getattr(model, "biases_", model.bias_)),
        means={rows.negative: low.mean(axis=0), rows.positive: high.mean(axis=0)},
        stream_norm=float(torch.linalg.vector_norm(states, dim=1, dtype=torch.float64).mean()),
        sigma=spread((within**2).sum(axis=0), len(within)),
    )
    return torch.from_numpy(vectors), statistics


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
        sigma = spread(np.array([float(unit @ within @ unit)]), sum(counts))
    statistics = site_statistics(
        model.direction_[None],
        biases=np.array([model.bias_]),
        means={label: (moments.mean(site, label) @ unit).numpy()[None] for label in (negative, positive)},
        stream_norm=float(
            np.average([moments.norm(site, label) for label in (negative, positive)], weights=counts)
        ),
        sigma=sigma,
    )
    return torch.from_numpy(model.direction_), statistics
