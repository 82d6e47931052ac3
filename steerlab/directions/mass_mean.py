"""Mass-mean probe: the difference in means, optionally tilted by the covariance of the states.

    θ = μ₊ − μ₋,    Σ = Σ_c Σ_{x∈c} (x − μ_c)(x − μ_c)ᵀ / (n − ddof),    w = θ   or, tilted,   w = Σ⁺θ

The probe of "The Geometry of Truth" (Marks and Tegmark 2023). θ transfers between data sets and is what to steer with;
the tilt is linear discriminant analysis and is for accuracy on data of the same kind. Σ is shrunk towards
its mean variance, (1 − α)Σ + α (tr Σ / d) I, with α given or by the oracle-approximating rule (Chen et al. 2010).
With fewer rows than dimensions Σ is only ever touched through the singular vectors of the centred rows.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from steerlab.activations import Label, Moments
from steerlab.directions._covariance import inverse_times, oas_weight, spectrum_of_rows
from steerlab.directions.linear import ProbabilisticDirection, class_means
from steerlab.directions.registry import ESTIMATORS
from steerlab.errors import DirectionError
from steerlab.models import Site


@ESTIMATORS.register("mass-mean")
class MassMean(ProbabilisticDirection):
    """Difference in means with the tilt as an option; only the tilted probe gives calibrated probabilities.

    Args:
        tilt: False gives θ, True Σ⁺θ.
        shrinkage: weight α in [0, 1] of the round covariance in Σ, or "oas" to choose it from the data.
        ddof: divisor of Σ is n − ddof (0 as published; 2 for the unbiased within-class covariance).
        atol: eigenvalues of the shrunk Σ up to max(atol, rtol · largest) count as zero in Σ⁺ (the published code
            uses 1e-3, which depends on the scale of the states).
        rtol: the part of that bound that is relative to the largest eigenvalue.
        centre: where the score is zero: "midpoint" of the class means, or the "mean" of all rows (as published:
            equal on balanced classes).
    """

    def __init__(
        self,
        tilt: bool = False,
        *,
        shrinkage: float | Literal["oas"] = "oas",
        ddof: int = 0,
        atol: float = 0.0,
        rtol: float = 1e-9,
        centre: Literal["midpoint", "mean"] = "midpoint",
    ) -> None:
        self.tilt = tilt
        self.shrinkage = shrinkage
        self.ddof = ddof
        self.atol = atol
        self.rtol = rtol
        self.centre = centre

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows X [row, width] (numpy or tensors) with two classes y [row]; the larger one is positive.

        Raises:
            DirectionError: when y does not hold exactly two classes, or an option is out of range.
        """
        rows, positive = self._two_classes(X, y)
        high, low = class_means(rows, positive)
        spectrum = None
        if self.tilt:
            centred = rows - np.where(positive[:, None], high, low)
            spectrum = spectrum_of_rows(centred, self._divisor(len(rows)))
        return self._learn(high, low, len(rows), int(positive.sum()), spectrum)

    def fit_moments(self, moments: Moments, site: Site, *, negative: Label = 0, positive: Label = 1) -> Self:
        """Fit on streamed statistics of a site; the tilt needs ``Moments(order="scatter")``."""
        self._two_labels(moments, negative, positive)
        n_high, n_low = moments.count(positive), moments.count(negative)
        spectrum = None
        if self.tilt:
            scatter = moments.scatter(site, positive) + moments.scatter(site, negative)
            spectrum = np.linalg.eigh(scatter.numpy() / self._divisor(n_high + n_low))
        high, low = moments.mean(site, positive).numpy(), moments.mean(site, negative).numpy()
        return self._learn(high, low, n_high + n_low, n_high, spectrum)

    def _learn(
        self,
        high: NDArray[np.float64],
        low: NDArray[np.float64],
        n: int,
        n_high: int,
        spectrum: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    ) -> Self:
        self.theta_ = high - low
        self.shrinkage_ = 0.0
        self.direction_ = self.theta_ if spectrum is None else self._tilted(*spectrum, n)
        share = self._share(n_high / n)
        self.bias_ = float(-self.direction_ @ (share * high + (1 - share) * low))
        self.n_features_in_ = len(high)
        return self

    def _tilted(
        self, values: NDArray[np.float64], vectors: NDArray[np.float64], n: int
    ) -> NDArray[np.float64]:
        """(shrunk Σ)⁺ θ from eigenvalues [k] and eigenvectors [width, k]; Σ is zero outside their span."""
        width = len(self.theta_)
        values = np.clip(values, 0.0, None)
        mean_variance = values.sum() / width
        self.shrinkage_ = self._alpha(values, n)
        inside = (1 - self.shrinkage_) * values + self.shrinkage_ * mean_variance
        floor = max(self.atol, self.rtol * float(inside.max(initial=0.0)))
        return inverse_times(self.theta_, inside, vectors, self.shrinkage_ * mean_variance, floor)

    def _alpha(self, values: NDArray[np.float64], n: int) -> float:
        """The shrinkage weight: as given, or the oracle-approximating one, which needs only the spectrum."""
        alpha: float | str = self.shrinkage  # scikit-learn lets users set any value; it is checked here
        if alpha != "oas":
            if isinstance(alpha, str) or not 0.0 <= alpha <= 1.0:
                raise DirectionError(f"The shrinkage is a number from 0 to 1 or 'oas', not {alpha!r}.")
            return float(alpha)
        return oas_weight(float(values.sum()), float((values**2).sum()), len(self.theta_), n)

    def _divisor(self, n: int) -> int:
        if n <= self.ddof:
            raise DirectionError(
                f"A covariance with ddof={self.ddof} needs more than {self.ddof} rows; there are {n}."
            )
        return n - self.ddof

    def _share(self, positive_share: float) -> float:
        if self.centre not in ("midpoint", "mean"):
            raise DirectionError(f"The centre is 'midpoint' or 'mean', not {self.centre!r}.")
        return 0.5 if self.centre == "midpoint" else positive_share
