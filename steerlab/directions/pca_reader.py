"""PCA reader: the line along which the two members of a pair differ most.

    v = argmax_{‖v‖=1} Σ_i (v·D_i)²,    D_i = x_i⁺ − x_i⁻,    sign such that v·mean(D) > 0

The reading vector of representation engineering (Zou et al. 2023). PCA subtracts the mean of the differences; where
every difference runs from the negative to the positive member that mean *is* the signal, and PCA finds what is
left. The published code therefore shuffles the members of each pair; not subtracting it needs no chance at all.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from steerlab.activations import DIFFERENCE, Label, Moments
from steerlab.directions._covariance import leading, leading_of_rows
from steerlab.directions._pairs import kind_means, paired_rows, row_polarity
from steerlab.directions.linear import LinearDirection
from steerlab.directions.registry import ESTIMATORS
from steerlab.errors import DirectionError
from steerlab.models import Site


@ESTIMATORS.register("pca")
class PcaReader(LinearDirection):
    """First principal component of the differences of pairs; a unit vector, decided at the midpoint.

    Args:
        centring: "none" leaves the differences as they are. "shuffled" turns a random half of them round and then
            subtracts their mean, as published. "ordered" subtracts the mean of differences that all run from
            negative to positive, and so removes the signal: it is here to show that fault.
        random_state: seed of "shuffled".
    """

    needs_pairs: ClassVar[bool] = True

    def __init__(
        self,
        centring: Literal["none", "shuffled", "ordered"] = "none",
        *,
        random_state: int | None = 0,
    ) -> None:
        self.centring = centring
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, pairs: Any = None, polarity: Any = None) -> Self:
        """Fit on rows X [row, width], classes y [row], pair numbers [row] and polarities [row].

        Args:
            X: numpy or tensors.
            y: two classes; the larger one is positive.
            pairs: one row of each class shares a number.
            polarity: for pairs of a statement and its negation, +1 (affirmed) or −1 (negated). Each kind is then
                centred by its own mean first; otherwise the line found may well be "is negated".

        Raises:
            DirectionError: when y does not hold exactly two classes, a pair has not one row of each class (and
                polarity), or the differences leave nothing to look at.
        """
        rows, positive = self._two_classes(X, y)
        high, low = paired_rows(pairs, positive, type(self).__name__)
        kinds = row_polarity(polarity, len(rows))
        differences = rows[high].astype(np.float64) - rows[low]
        if kinds is not None:
            gap = np.subtract(*kind_means(rows, kinds, high, low))
            differences -= kinds[high][:, None] * gap
        mean, centre = differences.mean(axis=0), (rows[high] + rows[low]).mean(axis=0, dtype=np.float64) / 2
        if self._checked() == "shuffled":
            random = check_random_state(self.random_state)
            differences = differences * random.choice([-1.0, 1.0], size=(len(differences), 1))
        if self.centring != "none":
            differences = differences - differences.mean(axis=0)
        _require_spread(float((differences**2).sum()))
        return self._learn(leading_of_rows(differences), mean, centre)

    def fit_moments(self, moments: Moments, site: Site, *, negative: Label = 0, positive: Label = 1) -> Self:
        """Fit on what `capture_differences` streamed of a site.

        Raises:
            DirectionError: when the moments hold no differences, or for "shuffled", which needs the rows.
        """
        self._two_labels(moments, negative, positive)
        if DIFFERENCE not in moments.labels:
            raise DirectionError(
                f"{type(self).__name__} needs moments of differences; stream them with capture_differences(...)."
            )
        if self._checked() == "shuffled":
            raise DirectionError(
                "Shuffling pairs needs their rows; use centring='none', which needs no chance."
            )
        mean, second = moments.mean(site, DIFFERENCE).numpy(), moments.scatter(site, DIFFERENCE).numpy()
        if self.centring == "none":
            second = second + moments.count(DIFFERENCE) * np.outer(mean, mean)
        _require_spread(float(np.trace(second)))
        centre = (moments.mean(site, positive) + moments.mean(site, negative)).numpy() / 2
        return self._learn(leading(second), mean, centre)

    def _learn(
        self, vector: NDArray[np.float64], mean: NDArray[np.float64], centre: NDArray[np.float64]
    ) -> Self:
        self.direction_ = -vector if vector @ mean < 0 else vector
        self.bias_ = float(-self.direction_ @ centre)
        self.n_features_in_ = len(centre)
        return self

    def _checked(self) -> str:
        if self.centring not in ("none", "shuffled", "ordered"):
            raise DirectionError(f"The centring is 'none', 'shuffled' or 'ordered', not {self.centring!r}.")
        return self.centring


def _require_spread(total: float) -> None:
    if not total > 0:
        raise DirectionError(
            "The pairs do not differ (or only by the mean that was subtracted), so no direction stands out; read "
            "other positions, or leave the differences uncentred."
        )
