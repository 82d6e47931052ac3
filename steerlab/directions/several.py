"""What estimators of several directions share: k score lines, of which the highest counts, and the choice of k.

    s(x) = max_j (x·c_j + b_j) / ‖c_j‖,        d′(k) = (mean s₊ − mean s₋) / σ_within

k = "auto" takes d′ of held-out rows, whole groups held out, for k = 1 … most, and then the smallest k whose d′ lies
within one standard error of the best (the rule of one standard error: Breiman et al. 1984). The standard error is that
of a standardised difference of means (Hedges and Olkin 1985): SE² = (n₊ + n₋)/(n₊ n₋) + d′²/(2(n₊ + n₋)), with groups
counted and not rows. Accuracy would not do: it is 1 for every k where the classes lie well apart.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.base import clone

from steerlab.directions.held_out import FOLDS, groups_by_class, held_out_folds
from steerlab.directions.linear import LinearDirection, class_means, to_numpy
from steerlab.errors import DirectionError

Rank: TypeAlias = int | Literal["auto"]
Vectors: TypeAlias = Float[np.ndarray, "k width"]


class SeveralDirections(LinearDirection):
    """A two-class classifier of k directions: a row has the highest of their scores.

    Learns ``components_`` [k, width] and ``biases_`` [k]; ``direction_`` and ``bias_`` are the difference in means of
    the whole classes. With k = "auto" ``separability_`` gives by k the held-out d′ with its standard error.

    Args:
        k: how many, or "auto": the fewest that tell held-out rows apart as well as any number up to `most`.
        most: of "auto".
        random_state: seed of k-means and of the folds.
    """

    components_: NDArray[np.float64]
    biases_: NDArray[np.float64]
    separability_: dict[int, tuple[float, float]]

    def __init__(self, k: Rank = "auto", *, most: int = 5, random_state: int | None = 0) -> None:
        self.k = k
        self.most = most
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, pairs: Any = None, groups: Any = None) -> Self:
        """Fit on rows X [row, width], classes y [row], pair numbers [row] and groups [row].

        Args:
            X: numpy or tensors.
            y: two classes; the larger one is positive.
            pairs: one row of each class shares a number; their differences are then what is clustered.
            groups: what k = "auto" holds out together; by default pairs, else each row by itself.

        Raises:
            DirectionError: when y does not hold exactly two classes, a pair has not one row of each class, k is none,
                or the rows have no k such directions.
        """
        rows, positive = self._two_classes(X, y)
        k = self._rank(rows, positive, pairs, groups)
        vectors, middles = self._found(rows, positive, to_numpy(pairs), k)
        return self._learn(vectors, middles, *class_means(rows, positive))

    @abstractmethod
    def _found(
        self, rows: Float[np.ndarray, "row width"], positive: NDArray[np.bool_], pairs: Any, k: int
    ) -> tuple[Vectors, Vectors]:
        """The k directions and where each decides."""

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """The highest score [row] of rows X [row, width]; positive means the positive class."""
        super().decision_function(X)  # the checks
        rows = np.asarray(to_numpy(X), dtype=np.float64)
        lengths = np.linalg.norm(self.components_, axis=1)
        scores = (rows @ self.components_.T + self.biases_) / np.where(lengths > 0, lengths, 1.0)
        highest: NDArray[np.float64] = scores.max(axis=1)
        return highest

    def separates(self, rows: Float[np.ndarray, "row width"], positive: NDArray[np.bool_]) -> bool:
        """Whether what the fit promises of its directions holds on other rows."""
        return True

    def _learn(self, vectors: Vectors, middles: Vectors, high: Any, low: Any) -> Self:
        """Take components, each with its decision point [width], and the means [width] of the whole classes."""
        self.components_ = vectors
        self.biases_ = -(vectors * middles).sum(axis=1)
        self.direction_ = high - low
        self.bias_ = float(-self.direction_ @ (high + low) / 2)
        self.n_features_in_ = vectors.shape[1]
        return self

    def _rank(
        self,
        rows: Float[np.ndarray, "row width"],
        positive: NDArray[np.bool_],
        pairs: Any,
        groups: Any,
    ) -> int:
        """k as given, or as held-out rows choose it."""
        if self.k != "auto":
            if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
                raise DirectionError(f"k is a number of directions from 1 on or 'auto', not {self.k!r}.")
            return self.k
        if self.most < 1:
            raise DirectionError(f"At least one direction is to be tried, not most={self.most!r}.")
        names = groups if groups is not None else pairs if pairs is not None else range(len(rows))
        together = [str(name) for name in to_numpy(names)]
        if len(together) != len(rows):
            raise DirectionError(f"{len(rows)} rows came with {len(together)} groups; give one a row.")
        self.separability_ = self._separability(rows, positive, pairs, together)
        return smallest_near_the_best(self.separability_)

    def _separability(
        self,
        rows: Float[np.ndarray, "row width"],
        positive: NDArray[np.bool_],
        pairs: Any,
        groups: Sequence[Hashable],
    ) -> dict[int, tuple[float, float]]:
        """By k the held-out d′ and its standard error; a k that cannot be fitted or promises too much is left out."""
        counts = groups_by_class(groups, positive.tolist())
        if min(counts[True], counts[False]) < FOLDS:
            return {}
        labels = positive.astype(int)
        folds = held_out_folds(labels, groups, seed=self.random_state or 0)
        found: dict[int, tuple[float, float]] = {}
        for k in range(1, self.most + 1):
            scores = self._held_out_scores(k, rows, labels, pairs, folds)
            if scores is None:
                break
            if scores.size:
                found[k] = standardised_difference(scores, positive, counts[True], counts[False])
        return found

    def _held_out_scores(
        self,
        k: int,
        rows: Float[np.ndarray, "row width"],
        labels: Int[np.ndarray, " row"],
        pairs: Any,
        folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> Float[np.ndarray, " row"] | None:
        """Scores [row] by the folds; None where k directions cannot be fitted, empty where they promise too much."""
        scores = np.empty(len(rows))
        numbers = None if pairs is None else np.asarray(to_numpy(pairs))
        for fitted_on, held_out in folds:
            extra = {} if numbers is None else {"pairs": numbers[fitted_on]}
            try:
                model = clone(self).set_params(k=k).fit(rows[fitted_on], labels[fitted_on], **extra)
            except DirectionError:
                return None
            if not model.separates(rows[held_out], labels[held_out] == 1):
                return np.empty(0)
            scores[held_out] = model.decision_function(rows[held_out])
        return scores


def standardised_difference(
    scores: Float[np.ndarray, " row"], positive: NDArray[np.bool_], n_high: int, n_low: int
) -> tuple[float, float]:
    """d′ of two classes' scores, and its standard error where they come from so many independent groups."""
    high, low = scores[positive], scores[~positive]
    within = np.concatenate([high - high.mean(), low - low.mean()])
    sigma = math.sqrt(float((within**2).sum()) / max(len(within) - 2, 1))
    gap = float(high.mean() - low.mean())
    if sigma == 0:
        return math.copysign(math.inf, gap) if gap else 0.0, 0.0
    d = gap / sigma
    return d, math.sqrt((n_high + n_low) / (n_high * n_low) + d**2 / (2 * (n_high + n_low)))


def smallest_near_the_best(separability: dict[int, tuple[float, float]]) -> int:
    """The smallest k within one standard error of the best; 1 where nothing could be held out."""
    if not separability:
        return 1
    best, error = max(separability.values())
    return min(k for k, (d, _) in separability.items() if d >= best - error)
