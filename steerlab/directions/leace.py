"""Least-squares concept erasure (LEACE): what of a state linearly tells a label, taken out at the least change.

    x ← x − W⁺ P W (x − μ),      W = (Σ^½)⁺,  P the projection on the span of W Σ_xz,  Σ the covariance of all states

(Belrose et al. 2023, theorem 4.3). Of all affine maps after which x has no covariance with the label z, and no linear
probe does better than a constant one, it moves the states least. For classes Σ_xz spans the differences of class means,
D [k, width] for k + 1 classes, so the same map is

    x ← x − (x − μ) Aᵀ (D Aᵀ)⁺ D,      A = D Σ⁺

An oblique projection: A reads, D is written. For two classes it has rank one, A is the weight of the linear
discriminant with the covariance about one mean, and D the difference in means. Vectors are A; D and μ are the mean
states of the direction's file, so the file is all that `steering.Erase` needs. With fewer rows than dimensions Σ⁺ acts
in the span of the rows, which then hold nothing of the label while new states still may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from steerlab.activations import DIFFERENCE, Activations, Label, Moments
from steerlab.directions._covariance import Matrix, Vector, spectrum_of_rows
from steerlab.directions._means import ALL, means_of_moments
from steerlab.directions.direction import Direction
from steerlab.directions.fitting import by_row, data_hash
from steerlab.directions.linear import LinearDirection, class_means, to_numpy
from steerlab.directions.registry import ESTIMATORS
from steerlab.errors import DirectionError
from steerlab.models import Site

_FLOOR = 1e-12  # share of the largest eigenvalue up to which one counts as zero


@ESTIMATORS.register("leace")
class Leace(TransformerMixin, LinearDirection):  # type: ignore[misc]  # scikit-learn is untyped
    """What reads a two-class label in least-squares erasure, A above; `transform` erases. For steering: `Erase`."""

    mean_: Vector
    difference_: Vector

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows X [row, width] (numpy or tensors) with two classes y [row]; the larger one is positive.

        Raises:
            DirectionError: when y does not hold exactly two classes.
        """
        rows, positive = self._two_classes(X, y)
        mean = rows.mean(axis=0, dtype=np.float64)
        return self._learn(*class_means(rows, positive), mean, *spectrum_of_rows(rows - mean))

    def fit_moments(self, moments: Moments, site: Site, *, negative: Label = 0, positive: Label = 1) -> Self:
        """Fit on streamed statistics of a site made with ``Moments("scatter")``.

        Raises:
            DirectionError: when a class is missing.
        """
        self._two_labels(moments, negative, positive)
        mean, scatter = _together(moments, site, (negative, positive))
        high, low = (moments.mean(site, label).numpy() for label in (positive, negative))
        return self._learn(high, low, mean, *linalg.eigh(scatter))

    def transform(self, X: Any) -> NDArray[np.float64]:
        """The rows [row, width] without what tells the label."""
        check_is_fitted(self)
        rows = validate_data(self, to_numpy(X), dtype=[np.float64, np.float32], reset=False)
        scale = self.direction_ @ self.difference_
        if not scale:
            return np.asarray(rows, dtype=np.float64)
        along = (rows - self.mean_) @ self.direction_
        erased: NDArray[np.float64] = rows - np.outer(along, self.difference_ / scale)
        return erased

    def _learn(self, high: Vector, low: Vector, mean: Vector, values: Vector, vectors: Matrix) -> Self:
        self.difference_, self.mean_ = high - low, mean
        self.direction_ = _times_inverse(self.difference_[None], values, vectors)[0]
        self.bias_ = float(-self.direction_ @ (high + low) / 2)
        self.n_features_in_ = len(high)
        return self


def erasing(states: Activations | Moments, labels: Sequence[Label] | None = None) -> Direction:
    """The direction that `steering.Erase` takes out, for labels of any number of classes.

    With two classes it spans what ``fit_direction(states, labels, "leace")`` finds.

    Args:
        states: captured states, or ``Moments("scatter")`` (then no labels).
        labels: one label a prompt.

    Returns:
        By site k vectors for k + 1 classes, with the mean states of all classes.

    Raises:
        DirectionError: fewer than two classes, two classes of one mean, or a site without a scatter.
    """
    if isinstance(states, Moments):
        classes = [label for label in states.labels if label != DIFFERENCE]
        solved = {site: _of_moments(states, site, classes) for site in states.sites}
        means = means_of_moments(states)
    else:
        of_row = by_row(states, labels, "labels")
        classes = sorted(dict.fromkeys(of_row), key=str)
        means = {site: _class_means(states[site], of_row, classes) for site in states.sites}
        solved = {site: _of_rows(states[site], means[site]) for site in states.sites}
    return Direction(
        vectors={site: torch.from_numpy(rows) for site, rows in solved.items()},
        model_name=states.model_name or "",
        fingerprint=states.fingerprint or "",
        estimator="Leace",
        parameters={"classes": [str(label) for label in classes]},
        dataset_hash=data_hash(states, labels),
        position=states.positions,
        means=means,
    )


# -- ours --


def _times_inverse(differences: Matrix, values: Vector, vectors: Matrix) -> Matrix:
    """Σ⁺ of every row, up to one factor of all; eigenvalues under the floor count as zero."""
    known = values > _FLOOR * float(values.max(initial=0.0))
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=known)
    scaled = (differences @ vectors) * (inverse * float(values.max(initial=0.0)))
    return np.asarray(scaled @ vectors.T, dtype=np.float64)


def _together(moments: Moments, site: Site, labels: Sequence[Label]) -> tuple[Vector, Matrix]:
    """Mean and scatter of the rows of some classes about their one mean."""
    counts = np.array([moments.count(label) for label in labels], dtype=np.float64)
    means = np.stack([moments.mean(site, label).numpy() for label in labels])
    mean = counts @ means / counts.sum()
    within = np.sum([moments.scatter(site, label).numpy() for label in labels], axis=0)
    return mean, within + ((means - mean).T * counts) @ (means - mean)


def _of_moments(moments: Moments, site: Site, classes: Sequence[Label]) -> Matrix:
    _require_several(classes)
    means = np.stack([moments.mean(site, label).numpy() for label in classes])
    _, scatter = _together(moments, site, classes)
    return _times_inverse(means[1:] - means[0], *linalg.eigh(scatter))


def _of_rows(rows: Float[Tensor, "row width"], means: dict[str, Tensor]) -> Matrix:
    centred = rows.double() - means[ALL]
    first, *others = (mean for label, mean in means.items() if label != ALL)
    differences = torch.stack([mean - first for mean in others])
    return _times_inverse(differences.numpy(), *spectrum_of_rows(centred.numpy()))


def _class_means(
    rows: Float[Tensor, "row width"], of_row: Sequence[Label], classes: Sequence[Label]
) -> dict[str, Tensor]:
    """Mean states of all rows and of every class, float64."""
    _require_several(classes)
    means = {ALL: rows.mean(dim=0, dtype=torch.float64)}
    for label in classes:
        mine = torch.tensor([other == label for other in of_row])
        means[str(label)] = rows[mine].mean(dim=0, dtype=torch.float64)
    return means


def _require_several(classes: Sequence[Label]) -> None:
    if len(set(map(str, classes))) < 2:
        raise DirectionError(f"Erasing a label needs two classes or more; the labels hold {list(classes)}.")
