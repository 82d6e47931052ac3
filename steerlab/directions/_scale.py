"""The scale of an estimator's vectors at a site: unit vectors, projections of the class means, spread."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.activations import Label
from steerlab.directions._header import SiteStatistics
from steerlab.errors import DirectionError
from steerlab.models import Site


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
    vectors: Float[np.ndarray, "k width"],
    *,
    biases: Float[np.ndarray, " k"],
    means: Mapping[Label, Float[np.ndarray, " k"]],
    stream_norm: float,
    sigma: Float[np.ndarray, " k"] | None,
) -> SiteStatistics:
    """The scale of k vectors: `means` are projections of the (negative, positive) class means on the unit vectors."""
    negative, positive = means
    thresholds = -biases / np.linalg.norm(vectors, axis=1)
    return SiteStatistics(
        class_means={str(label): tuple(mean.tolist()) for label, mean in means.items()},
        positive=str(positive),
        negative=str(negative),
        stream_norm=stream_norm,
        bias=tuple(biases.tolist()),
        threshold=tuple(thresholds.tolist()),
        sigma=None if sigma is None else tuple(sigma.tolist()),
    )


def spread(within: Float[np.ndarray, " k"], n: int) -> NDArray[np.float64] | None:
    """Pooled standard deviations within two classes, from their sums of squares over n rows."""
    pooled: NDArray[np.float64] = np.sqrt(within / (n - 2)) if n > 2 else np.empty(0)
    return pooled if n > 2 else None
