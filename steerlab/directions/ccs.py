"""Contrast-consistent search: the direction along which a statement and its negation get opposite answers.

    min mean_i [ (p(x_i) − (1 − p(x̄_i)))² + min(p(x_i), p(x̄_i))² ],    p(x) = σ(w·x + b)

Burns et al. (2022): labels are used for nothing but the sign. Affirmations x and negations x̄ are each centred by their
own mean, so that the direction cannot be "is negated"; several random starts are tried and the smallest loss kept,
all at once since they do not touch each other. The form in the code of "The Geometry of Truth" (Marks and Tegmark 2023)
is ``Ccs(restarts=1, fit_intercept=False, standardise=False, weight_decay=0.1)``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from steerlab.directions._descent import adamw
from steerlab.directions._pairs import kind_means, paired_rows, row_polarity
from steerlab.directions.linear import Floats, ProbabilisticDirection
from steerlab.directions.registry import ESTIMATORS
from steerlab.errors import DirectionError


@ESTIMATORS.register("ccs")
class Ccs(ProbabilisticDirection):
    """Contrast-consistent search on pairs of a statement and its negation; its probabilities are its own p(x).

    Args:
        restarts: random starts.
        fit_intercept: learn b.
        standardise: divide every coordinate by its standard deviation first (as in the paper, not its code).
        steps: full-batch steps of AdamW.
        learning_rate: its step size.
        weight_decay: its decoupled decay.
        random_state: seed of the starts.
    """

    needs_pairs: ClassVar[bool] = True

    def __init__(
        self,
        restarts: int = 10,
        *,
        fit_intercept: bool = True,
        standardise: bool = True,
        steps: int = 1000,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        random_state: int | None = 0,
    ) -> None:
        self.restarts = restarts
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, pairs: Any = None, polarity: Any = None) -> Self:
        """Fit on rows X [row, width], classes y [row], pair numbers [row] and polarities [row].

        Args:
            X: numpy or tensors.
            y: two classes; the larger one is positive. They fix the sign.
            pairs: two rows of opposite class share a number.
            polarity: +1 for an affirmation, −1 for a negation; each kind is centred by its own mean. None centres all
                rows by one mean: centring by class would remove what is looked for.

        Raises:
            DirectionError: when y does not hold exactly two classes, or a pair not one row of each class and polarity.
        """
        if self.restarts < 1:
            raise DirectionError(f"CCS needs at least one start, not restarts={self.restarts}.")
        rows, positive = self._two_classes(X, y)
        high, low = paired_rows(pairs, positive, type(self).__name__)
        kinds = row_polarity(polarity, len(rows))
        means = kind_means(rows, kinds, high, low)
        centred = rows - (means[0] if kinds is None else np.where(kinds[:, None] > 0, *means))
        scale = centred.std(axis=0) if self.standardise else np.ones(centred.shape[1])
        scale[scale == 0] = 1.0
        weights, intercept = self._search(centred[high] / scale, centred[low] / scale)
        self.direction_ = weights / scale
        self.bias_ = float(intercept - self.direction_ @ means.mean(axis=0))
        scores = centred @ self.direction_ + intercept
        if ((scores > 0) == positive).mean() < 0.5:
            self.direction_, self.bias_ = -self.direction_, -self.bias_
        return self

    @torch.inference_mode(False)  # estimators are fitted inside it, too
    @torch.enable_grad()
    def _search(self, first: Floats, second: Floats) -> tuple[NDArray[np.float64], float]:
        """Weights and intercept of the best start; which member of a pair comes first makes no difference."""
        x, other = torch.from_numpy(first), torch.from_numpy(second)
        width = x.shape[1]
        random = check_random_state(self.random_state)
        bound = width**-0.5  # as torch initialises a linear layer
        weights = torch.from_numpy(random.uniform(-bound, bound, size=(width, self.restarts)))
        intercepts = torch.zeros(self.restarts, dtype=torch.float64)
        if self.fit_intercept:
            intercepts = torch.from_numpy(random.uniform(-bound, bound, size=self.restarts))

        def losses() -> Tensor:
            p, q = (torch.sigmoid(side @ weights + intercepts) for side in (x, other))
            return ((p + q - 1) ** 2 + torch.minimum(p, q) ** 2).mean(dim=0)

        adamw(
            lambda: losses().sum(),
            [weights, intercepts] if self.fit_intercept else [weights],
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        final = losses()
        best = int(final.argmin())
        self.loss_ = float(final[best])
        return weights[:, best].numpy(), float(intercepts[best])
