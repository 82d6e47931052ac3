"""Coordinates of one scale: what an estimator finds where no coordinate of the states outweighs the others.

    standardised: z = (x − m) / s,    winsorised: z = min(max(x, q), q'),    x itself otherwise

with mean m, standard deviation s and quantiles q, q' of each coordinate over the rows of both classes. The estimator is
fitted on z and its weight carried back, w = w'/s and b = b' − w·m, so that x·w + b is the score of z. A difference in
means becomes (μ₊ − μ₋)/s². What is invariant to the scale of coordinates (a discriminant without shrinkage, a logistic
regression without a penalty) stays as it is. Where every token shares a large mean, a few coordinates hold most of
the variance and with it of a plain difference in means. A carried-back weight reads the states; what is added to
them is a difference of the states themselves, so steer with plain coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerlab.activations import Label, Moments
from steerlab.directions.linear import Floats, LinearDirection, to_numpy
from steerlab.errors import DirectionError
from steerlab.models import Site

Coordinates = Literal["plain", "standardised", "winsorised"]

#: From this share of the mean vector in the states' norm on, one mean dominates.
DOMINANT = 0.95


class InCoordinates(LinearDirection):
    """An estimator fitted in standardised or winsorised coordinates, its weight in those of the states.

    Args:
        estimator: what is fitted; cloned, and left as it is.
        coordinates: "standardised" puts every coordinate to mean 0 and variance 1 (a constant one to variance 0);
            "winsorised" clips it at its quantiles while fitting; "plain" changes nothing.
        tail: share of the rows that are clipped at either end.
    """

    def __init__(
        self, estimator: LinearDirection, coordinates: Coordinates = "standardised", *, tail: float = 0.01
    ) -> None:
        self.estimator = estimator
        self.coordinates = coordinates
        self.tail = tail

    def fit(self, X: Any, y: Any, *, pairs: Any = None, polarity: Any = None, groups: Any = None) -> Self:
        """Fit on rows X [row, width] with two classes y [row]; the rest goes to an estimator that takes it.

        Raises:
            DirectionError: when y does not hold exactly two classes, for unknown coordinates or a tail of half or more.
        """
        require_coordinates(self.coordinates)
        rows, _ = self._two_classes(X, y)
        mean, scale = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        if self.coordinates == "standardised":
            scaler = StandardScaler().fit(rows.astype(np.float64))
            mean, scale = scaler.mean_, scaler.scale_
        elif self.coordinates == "winsorised":
            rows = self._clipped(rows)
        takes = signature(type(self.estimator).fit).parameters
        given = {"pairs": pairs, "polarity": polarity, "groups": groups}
        extra = {name: values for name, values in given.items() if values is not None and name in takes}
        inner = clone(self.estimator).fit((rows - mean) / scale, to_numpy(y), **extra)
        return self._carry_back(inner, mean, scale)

    def fit_moments(self, moments: Moments, site: Site, *, negative: Label = 0, positive: Label = 1) -> Self:
        """Fit on streamed statistics of a site, where the scatters of both classes are known.

        Raises:
            DirectionError: for winsorised coordinates, which need the rows, an estimator that needs them, or moments
                without scatter.
        """
        require_coordinates(self.coordinates)
        self._two_labels(moments, negative, positive)
        inner = clone(self.estimator)
        if self.coordinates == "winsorised" or not hasattr(inner, "fit_moments"):
            raise DirectionError(
                f"{type(inner).__name__} in {self.coordinates} coordinates needs the rows; capture them without "
                "into=Moments(...)."
            )
        mean, scale = np.zeros(1), np.ones(1)
        if self.coordinates == "standardised":
            scale = _deviations(moments, site, (negative, positive))
        scaled: Any = _Scaled(moments, scale)
        return self._carry_back(
            inner.fit_moments(scaled, site, negative=negative, positive=positive), mean, scale
        )

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """The fitted estimator's own scores [row] of rows X [row, width] in its coordinates."""
        super().decision_function(X)  # the checks
        scores: NDArray[np.float64] = self.estimator_.decision_function(
            (np.asarray(to_numpy(X), dtype=np.float64) - self.mean_) / self.scale_
        )
        return scores

    def _clipped(self, rows: Floats) -> Floats:
        if not 0 <= self.tail < 0.5:
            raise DirectionError(f"The tail is a share of rows from 0 to below one half, not {self.tail!r}.")
        low, high = np.quantile(rows, [self.tail, 1 - self.tail], axis=0)
        return np.clip(rows, low, high)

    def _carry_back(
        self, inner: LinearDirection, mean: NDArray[np.float64], scale: NDArray[np.float64]
    ) -> Self:
        self.estimator_, self.mean_, self.scale_ = inner, mean, scale
        self.direction_ = inner.direction_ / scale
        self.bias_ = float(inner.bias_ - (self.direction_ * mean).sum())
        if hasattr(inner, "components_"):
            self.components_ = inner.components_ / scale
            self.biases_ = inner.biases_ - (self.components_ * mean).sum(axis=1)
        self.n_features_in_ = len(self.direction_)
        return self


def in_coordinates(estimator: LinearDirection, coordinates: Coordinates) -> LinearDirection:
    """The estimator in these coordinates; itself where they are plain."""
    require_coordinates(coordinates)
    return estimator if coordinates == "plain" else InCoordinates(estimator, coordinates)


def require_coordinates(coordinates: str) -> None:
    """Raise `DirectionError` for coordinates of an unknown name."""
    if coordinates not in get_args(Coordinates):
        raise DirectionError(f"Coordinates are {', '.join(get_args(Coordinates))}, not {coordinates!r}.")


def described(estimator: LinearDirection) -> tuple[str, dict[str, Any]]:
    """The estimator's name and parameters as a direction keeps them; its coordinates are one of them."""
    if not isinstance(estimator, InCoordinates):
        return type(estimator).__name__, estimator.get_params()
    name, parameters = described(estimator.estimator)
    own = {"coordinates": estimator.coordinates}
    return name, parameters | own | (
        {"tail": estimator.tail} if estimator.coordinates == "winsorised" else {}
    )


def dominance(states: Float[np.ndarray, "row width"]) -> float:
    """Share of the mean state in the states' norm: ‖mean x‖ / mean ‖x‖, 1 where every row is the same."""
    rows = np.asarray(states, dtype=np.float64)
    norm = float(np.linalg.norm(rows, axis=1).mean())
    return float(np.linalg.norm(rows.mean(axis=0))) / norm if norm else 0.0


def chosen_coordinates(states: Float[np.ndarray, "row width"]) -> Coordinates:
    """Standardised where one mean dominates the states, plain otherwise."""
    return "standardised" if dominance(states) >= DOMINANT else "plain"


def centred_apart(
    states: Float[Tensor, "row width"], groups: Sequence[Label], positive: NDArray[np.bool_]
) -> Float[Tensor, "row width"]:
    """Every row moved so that each group has the mean of all rows.

    Raises:
        DirectionError: when a group holds rows of one class only: its mean is the class's.
    """
    names = list(dict.fromkeys(groups))
    number = {name: at for at, name in enumerate(names)}
    codes = np.array([number[name] for name in groups])
    for name, at in number.items():
        if len(set(positive[codes == at].tolist())) < 2:
            raise DirectionError(
                f"The group {name!r} holds one class only, so centring it apart would take out what tells the classes; "
                "give groups that hold both, such as topics."
            )
    rows, index = states.double(), torch.from_numpy(codes)
    counts = torch.bincount(index).double()[:, None]
    means = torch.zeros(len(names), rows.shape[1], dtype=torch.float64).index_add_(0, index, rows) / counts
    return (rows - means[index] + rows.mean(dim=0)).to(states.dtype)


# -- private --


class _Scaled:
    """Moments of x / scale. Estimators that fit on moments do not see where the states' mean lies."""

    def __init__(self, moments: Moments, scale: NDArray[np.float64]) -> None:
        self.labels, self.count = moments.labels, moments.count
        self._moments, self._scale = moments, torch.from_numpy(scale)

    def mean(self, site: Site, label: Label = None) -> Tensor:
        return self._moments.mean(site, label) / self._scale

    def scatter(self, site: Site, label: Label = None) -> Tensor:
        return self._moments.scatter(site, label) / self._scale / self._scale[:, None]


def _deviations(moments: Moments, site: Site, labels: Sequence[Label]) -> NDArray[np.float64]:
    """Standard deviation [width] of the rows of both classes, 1 where a coordinate is constant."""
    if not all(moments.has_scatter(site, label) for label in labels):
        raise DirectionError(
            f"Standardised coordinates need the variances at {site}, which these moments do not keep; capture into "
            'Moments("scatter").'
        )
    counts = np.array([moments.count(label) for label in labels])
    means = np.stack([moments.mean(site, label).numpy() for label in labels])
    mean, n = np.average(means, axis=0, weights=counts), counts.sum()
    within = sum(torch.diagonal(moments.scatter(site, label)).numpy() for label in labels)
    variance = (within + counts @ (means - mean) ** 2) / n
    rounding = n * np.finfo(np.float64).eps
    constant = variance <= rounding * variance + (rounding * mean) ** 2  # as scikit-learn's StandardScaler
    return np.asarray(np.where(constant, 1.0, np.sqrt(variance)), dtype=np.float64)
