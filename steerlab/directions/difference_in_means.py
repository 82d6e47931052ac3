"""Difference in means: where do two classes of states differ on average?

    r = μ₊ − μ₋,    score(x) = r·x − r·(μ₊ + μ₋)/2

The direction of "Refusal in language models is mediated by a single direction" (Arditi et al. 2024) and, on pairs of
prompts, of contrastive activation addition (Rimsky et al. 2024). Not normalised: its length is the class gap.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from steerlab.activations import Label, Moments
from steerlab.directions.linear import LinearDirection, class_means
from steerlab.directions.registry import ESTIMATORS
from steerlab.models import Site


@ESTIMATORS.register("difference-in-means")
class DifferenceInMeans(LinearDirection):
    """Mean of the positive rows minus mean of the negative rows, decided at the midpoint."""

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows X [row, width] (numpy or tensors) with two classes y [row]; the larger one is positive.

        Raises:
            DirectionError: when y does not hold exactly two classes.
        """
        rows, positive = self._two_classes(X, y)
        return self._learn(*class_means(rows, positive))

    def fit_moments(self, moments: Moments, site: Site, *, negative: Label = 0, positive: Label = 1) -> Self:
        """Fit on streamed statistics of a site; equal to fitting on the rows they were made of."""
        self._two_labels(moments, negative, positive)
        return self._learn(moments.mean(site, positive).numpy(), moments.mean(site, negative).numpy())

    def fit_means(self, high: NDArray[np.float64], low: NDArray[np.float64]) -> Self:
        """Fit on the two class means [width] themselves; the classes are 0 and 1."""
        self.classes_ = np.array([0, 1])
        return self._learn(high, low)

    def _learn(self, high: NDArray[np.float64], low: NDArray[np.float64]) -> Self:
        self.direction_ = high - low
        self.bias_ = float(-self.direction_ @ (high + low) / 2)
        self.n_features_in_ = len(high)
        return self
