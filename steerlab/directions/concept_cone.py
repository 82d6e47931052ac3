"""A cone of directions, each of which tells the classes apart: k orthonormal axes, estimated without gradients.

    U = unit rows c_j/‖c_j‖ of `ClusterDirections`,    B = nearest orthonormal rows to U = P Vᵀ of U = P S Vᵀ,
    g_j = b_j · (μ₊ − μ₋) > 0

The axes are ordered by g, their class gaps. A unit vector v = Σ λ_j b_j with λ ≥ 0 has the class gap Σ λ_j g_j ≥ min g,
since Σ λ_j ≥ ‖λ‖ = 1: the classes lie apart along every direction of the cone, at least as far as along its last axis.
Where an axis has no positive gap there is no cone of that k, and with k = "auto" the gaps of held-out rows are positive
as well. "Apart" speaks of the means of the whole classes; an axis that few of the positive rows carry leaves the others
where they are.

The idea is Wollschläger et al. 2025, "The Geometry of Refusal in Large Language Models". Their cone is *trained*:
gradients through the model look for axes of which every sample, ablated, takes refusal away and, added, brings it.
Ours is read off the states and promises nothing of what the model does. The nearest orthonormal
rows are Löwdin's (1950): the polar factor, which no order of the clusters changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.directions.cluster_directions import clusters
from steerlab.directions.linear import Floats, class_means
from steerlab.directions.registry import ESTIMATORS
from steerlab.directions.several import SeveralDirections
from steerlab.errors import DirectionError

#: Of the largest singular value: below it two clusters point one way.
_ONE_WAY = 1e-6


@ESTIMATORS.register("concept-cone")
class ConceptCone(SeveralDirections):
    """k orthonormal directions whose non-negative combinations all tell the classes apart; `gaps_` [k] says how far.

    For `k`, `most` and `random_state` see `SeveralDirections`.
    """

    gaps_: NDArray[np.float64]

    def _found(self, rows: Floats, positive: NDArray[np.bool_], pairs: Any, k: int) -> tuple[Floats, Floats]:
        found = clusters(rows, positive, pairs, k, self.random_state, type(self).__name__)
        high, low = class_means(rows, positive)
        axes = nearest_orthonormal(found.differences)
        gaps = axes @ (high - low)
        if k > 1 and not (gaps > 0).all():
            raise DirectionError(
                f"There is no cone of {k} axes: the class means lie {gaps.min():.2g} apart along one of them; ask for "
                "a smaller k, or k='auto'."
            )
        order = np.argsort(-gaps, kind="stable")
        self.gaps_ = gaps[order]
        return axes[order], found.middles[order]

    def separates(self, rows: Float[np.ndarray, "row width"], positive: NDArray[np.bool_]) -> bool:
        """Whether the means of other rows' classes lie apart along every axis, and so along the whole cone."""
        high, low = class_means(rows, positive)
        return len(self.components_) == 1 or bool((self.components_ @ (high - low) > 0).all())


def nearest_orthonormal(vectors: Float[np.ndarray, "k width"]) -> Float[np.ndarray, "k width"]:
    """The orthonormal rows nearest to the unit vectors of some.

    Raises:
        DirectionError: they do not span k dimensions.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if len(vectors) == 1:
        return vectors / np.where(lengths > 0, lengths, 1.0)
    left, sizes, right = np.linalg.svd(vectors / np.where(lengths > 0, lengths, 1.0), full_matrices=False)
    if len(sizes) < len(vectors) or sizes[-1] <= _ONE_WAY * sizes[0]:
        raise DirectionError(
            f"The {len(vectors)} clusters do not point in as many directions, so they have no cone; ask for a "
            "smaller k."
        )
    nearest: NDArray[np.float64] = left @ right
    return nearest
