"""The change between two ways of reading the same questions, as a direction at every layer.

The states may differ by the prompt (a direct against a stepwise question in one model) or by the weights (one
question in a base and in a post-trained model). With δ_i the difference at the last prompt token of question i:

    mean       r = mean of δ_i
    pca        r = first right singular vector of the δ_i, uncentred, turned so that r · mean δ > 0
    published  pca of the centred δ_i, sign as it comes: the axis along which the change varies most

Source: *The Master Key Hypothesis* (arXiv 2604.06377), official code; section 2 of the methods page says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float

from steerlab.activations import Activations
from steerlab.directions import Direction
from steerlab.errors import DirectionError
from steerlab.models import Site

Aggregator: TypeAlias = Literal["mean", "pca"]
Deltas = Float[np.ndarray, "question width"]


def deltas(unlocked: Activations, locked: Activations) -> dict[Site, Deltas]:
    """δ by site, float64, question by question."""
    return {site: (unlocked[site].double() - locked[site].double()).numpy() for site in locked.sites}


def capability_direction(
    change: Mapping[Site, Deltas],
    *,
    model_name: str,
    fingerprint: str,
    aggregator: Aggregator = "mean",
    published: bool = False,
    data: str = "",
) -> Direction:
    """The direction at every site where anything changes.

    Raises:
        DirectionError: nothing changes anywhere.
    """
    vectors = {}
    for site, rows in change.items():
        vector = aggregated(rows, aggregator, published=published)
        # equal states (template tokens before the first block) differ by rounding only
        if np.linalg.norm(vector) > 0 and np.abs(rows).max() > 0:
            vectors[site] = torch.from_numpy(vector).float()
    if not vectors:
        raise DirectionError(
            "The locked and the unlocked states are the same, so there is no direction between them."
        )
    return Direction(
        vectors=vectors,
        model_name=model_name,
        fingerprint=fingerprint,
        estimator=f"capability ({aggregator}{', published' if published else ''})",
        dataset_hash=data,
        position="Last()",
    )


def aggregated(
    rows: Deltas, aggregator: Aggregator, *, published: bool = False
) -> Float[np.ndarray, " width"]:
    """One vector of the rows: their mean, or their first principal axis."""
    mean: Float[np.ndarray, " width"] = rows.mean(axis=0)
    if aggregator == "mean":
        return mean
    _, _, right = np.linalg.svd(rows - mean if published else rows, full_matrices=False)
    first: Float[np.ndarray, " width"] = right[0]
    return -first if not published and first @ mean < 0 else first


def split_half(rows: Deltas, aggregator: Aggregator, *, draws: int = 20, seed: int = 0) -> float:
    """Mean cosine of the directions of random halves of the questions; the published sign is not fixed, so |cosine|."""
    rng = np.random.default_rng(seed)
    cosines = []
    for _ in range(draws):
        order = rng.permutation(len(rows))
        half = len(rows) // 2
        a, b = (aggregated(rows[part], aggregator) for part in (order[:half], order[half : 2 * half]))
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        cosines.append(float(a @ b / norms) if norms > 0 else np.nan)
    return float(np.mean(cosines))
