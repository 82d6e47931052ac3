"""Several directions of one behaviour: clusters of the positive states, one difference in means for each.

    D_i = x_i⁺ − μ₋ (of pairs: x_i⁺ − x_i⁻),    k-means on D,    c_j = mean of D_i in cluster j,    score = max_j

For behaviours of several kinds ("harmful" may mean weapons or fraud), of which one difference in means gives the
average alone. Without pairs the clusters are those of the positive states themselves. Each direction decides at the
midpoint between its cluster and the negative rows (its own partners, of pairs). k = 1 is `DifferenceInMeans`.
The k-means is scikit-learn's (Lloyd 1982; Arthur and Vassilvitskii 2007), and k is chosen by `several`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from steerlab.directions._pairs import paired_rows
from steerlab.directions.linear import Floats
from steerlab.directions.registry import ESTIMATORS
from steerlab.directions.several import SeveralDirections
from steerlab.errors import DirectionError

#: Starts of k-means, of which the tightest is kept.
_STARTS = 4


class Clusters(NamedTuple):
    """Mean difference of each cluster and the middle it decides at, the largest cluster first."""

    differences: Float[np.ndarray, "k width"]
    middles: Float[np.ndarray, "k width"]


@ESTIMATORS.register("cluster-directions")
class ClusterDirections(SeveralDirections):
    """One difference in means for each of k clusters of the positive class, the largest cluster first.

    For `k`, `most` and `random_state` see `SeveralDirections`.
    """

    def _found(self, rows: Floats, positive: NDArray[np.bool_], pairs: Any, k: int) -> tuple[Floats, Floats]:
        found = clusters(rows, positive, pairs, k, self.random_state, type(self).__name__)
        return found.differences, found.middles


def clusters(
    rows: Floats,
    positive: NDArray[np.bool_],
    pairs: Any,
    k: int,
    random_state: int | None,
    estimator: str,
) -> Clusters:
    """K-means on what the positive rows differ by.

    Raises:
        DirectionError: fewer than k rows of the positive class that differ, or a pair has not one row of each class.
    """
    x = rows.astype(np.float64)
    if pairs is None:
        high = x[positive]
        low = np.broadcast_to(x[~positive].mean(axis=0), high.shape)
    else:
        upper, lower = paired_rows(pairs, positive, estimator)
        high, low = x[upper], x[lower]
    differences = high - low
    different = len(np.unique(differences, axis=0)) if k > 1 else 1
    if different < k:
        raise DirectionError(
            f"{k} clusters need as many different rows of the positive class, and there are {different}; ask for a "
            "smaller k, or k='auto'."
        )
    number = np.zeros(len(differences), dtype=int)
    if k > 1:
        number = KMeans(k, n_init=_STARTS, random_state=random_state).fit_predict(differences)
    sizes = np.bincount(number, minlength=k)
    order = np.argsort(-sizes, kind="stable")
    members = [number == cluster for cluster in order]
    middles = [(high[inside].mean(axis=0) + low[inside].mean(axis=0)) / 2 for inside in members]
    return Clusters(np.stack([differences[inside].mean(axis=0) for inside in members]), np.stack(middles))
