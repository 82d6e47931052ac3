"""Linear discriminant analysis: the best direction for two classes with one covariance, which is shrunk.

    w = Σ⁻¹ (μ₊ − μ₋),    Σ = Σ_c π_c [(1 − α_c) S_c + α_c (tr S_c / d) I],    b = −w·(μ₊ + μ₋)/2 + log(π₊ / π₋)

S_c is the covariance of class c about its own mean (divisor n_c), π_c its share. α_c is the weight of Ledoit and Wolf
(2004), computed by scikit-learn from rows, or the oracle-approximating one (Chen et al. 2010), which needs no more
than second moments; Ledoit–Wolf needs fourth ones. Equal to scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr",
covariance_estimator=LedoitWolf() or OAS())``, but with fewer rows than dimensions no d × d map is made.

Like the tilt of `MassMean`, w is for telling classes apart on data of the same kind; steer with a difference in means.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.covariance import ledoit_wolf_shrinkage

from steerlab.activations import Label, Moments
from steerlab.directions._covariance import inverse_times, oas_weight, spectrum_of_rows
from steerlab.directions.linear import Floats, ProbabilisticDirection, class_means
from steerlab.directions.registry import ESTIMATORS
from steerlab.errors import DirectionError
from steerlab.models import Site

_FLOOR = 1e-9  # share of the largest eigenvalue up to which one counts as zero


@ESTIMATORS.register("lda")
class Lda(ProbabilisticDirection):
    """Linear discriminant analysis with shrunk class covariances.

    Args:
        shrinkage: "ledoit-wolf", "oas", or the weight α of both classes in [0, 1]; "auto" is Ledoit–Wolf from rows
            and OAS from moments.
    """

    def __init__(self, shrinkage: float | Literal["auto", "ledoit-wolf", "oas"] = "auto") -> None:
        self.shrinkage = shrinkage

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows X [row, width] (numpy or tensors) with two classes y [row]; the larger one is positive.

        Raises:
            DirectionError: when y does not hold exactly two classes, or the shrinkage is out of range.
        """
        rows, positive = self._two_classes(X, y)
        means = class_means(rows, positive)
        groups = rows[positive] - means[0], rows[~positive] - means[1]
        shares = np.array([len(group) for group in groups]) / len(rows)
        scaled, outside, alphas = [], 0.0, []
        for group, share in zip(groups, shares, strict=True):
            alpha = self._weight_of_rows(group)
            outside += share * alpha * float(np.einsum("ij,ij->", group, group)) / group.size
            scaled.append(group * np.sqrt(share * (1 - alpha) / len(group)))
            alphas.append(alpha)
        values, vectors = spectrum_of_rows(np.concatenate(scaled))
        values = np.clip(values, 0.0, None) + outside
        floor = _FLOOR * float(values.max(initial=0.0))
        direction = inverse_times(means[0] - means[1], values, vectors, outside, floor)
        return self._learn(*means, direction, shares, alphas)

    def fit_moments(self, moments: Moments, site: Site, *, negative: Label = 0, positive: Label = 1) -> Self:
        """Fit on streamed statistics of a site made with ``Moments("scatter")``.

        Raises:
            DirectionError: for Ledoit–Wolf, or when a class is missing.
        """
        self._two_labels(moments, negative, positive)
        counts = np.array([moments.count(label) for label in (positive, negative)])
        means = moments.mean(site, positive).numpy(), moments.mean(site, negative).numpy()
        shares, alphas = counts / counts.sum(), []
        sigma = np.zeros((len(means[0]), len(means[0])))
        for label, n, share in zip((positive, negative), counts, shares, strict=True):
            covariance = moments.scatter(site, label).numpy() / n
            alpha = self._weight_of_moments(covariance, int(n))
            sigma += share * (1 - alpha) * covariance
            sigma.flat[:: len(sigma) + 1] += share * alpha * np.trace(covariance) / len(sigma)
            alphas.append(alpha)
        values, vectors = linalg.eigh(sigma)
        floor = _FLOOR * float(values.max(initial=0.0))
        return self._learn(
            *means, inverse_times(means[0] - means[1], values, vectors, 0.0, floor), shares, alphas
        )

    def _learn(
        self,
        high: NDArray[np.float64],
        low: NDArray[np.float64],
        direction: NDArray[np.float64],
        shares: NDArray[np.float64],
        alphas: list[float],
    ) -> Self:
        self.direction_ = direction
        self.shrinkage_ = tuple(alphas)
        self.bias_ = float(-direction @ (high + low) / 2 + np.log(shares[0] / shares[1]))
        self.n_features_in_ = len(high)
        return self

    def _weight_of_rows(self, centred: Floats) -> float:
        if self.shrinkage in ("auto", "ledoit-wolf"):
            return float(ledoit_wolf_shrinkage(centred, assume_centered=True)) if centred.any() else 1.0
        # tr S² is the squared length of the smaller of the two products, rows × rows or width × width.
        small = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        n = len(centred)
        return self._weight(float(np.trace(small)) / n, float((small**2).sum()) / n**2, centred.shape[1], n)

    def _weight_of_moments(self, covariance: NDArray[np.float64], n: int) -> float:
        if self.shrinkage == "ledoit-wolf":
            raise DirectionError(
                "Ledoit–Wolf shrinkage needs the rows; use Lda('oas') with moments, or capture the rows."
            )
        return self._weight(float(np.trace(covariance)), float((covariance**2).sum()), len(covariance), n)

    def _weight(self, trace: float, square: float, width: int, n: int) -> float:
        alpha: Any = self.shrinkage  # scikit-learn lets users set any value; it is checked here
        if alpha in ("auto", "oas"):
            return oas_weight(trace, square, width, n)
        if isinstance(alpha, str) or not 0.0 <= alpha <= 1.0:
            raise DirectionError(
                f"The shrinkage is a number from 0 to 1, 'auto', 'ledoit-wolf' or 'oas', not {alpha!r}."
            )
        return float(alpha)
