"""Truth and polarity: a general truth direction, found beside the one that turns round under negation.

    x = μ + τ t_G + τ p t_P + p t_0 + ε    (least squares; τ = ±1 true or false, p = ±1 affirmed or negated)
    score(x) = a (x·t_G) + b (x·q) + c,    q the direction of a logistic regression of polarity

"Truth is Universal" (Bürger et al. 2024, sections 3 and 5). A truth direction from affirmed statements alone fails on
negated ones, because it mixes t_G, which holds for both kinds, with t_P. Steer with t_G. The published code lacks the
term p t_0, which matters only where truth and polarity are unbalanced, and fits both logistic regressions without a
penalty; on separable states these have no solution, and their result is where the solver stopped.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.utils.validation import check_is_fitted, validate_data

from steerlab.directions._pairs import row_polarity
from steerlab.directions.linear import Floats, ProbabilisticDirection, to_numpy
from steerlab.directions.logistic_probe import LogisticProbe
from steerlab.directions.registry import ESTIMATORS


@ESTIMATORS.register("ttpd")
class Ttpd(ProbabilisticDirection):
    """Training of truth and polarity direction.

    ``direction_`` is t_G and ``bias_`` its decision at the midpoint of the class means; `decision_function` uses
    ``weights_`` = a t_G + b q and ``intercept_``. ``polarity_sensitive_`` is t_P, ``polarity_direction_`` is q.

    Args:
        C: inverse strength of the penalty of both logistic regressions, on coordinates of unit variance.
    """

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, X: Any, y: Any, *, polarity: Any = None) -> Self:
        """Fit on rows X [row, width] (numpy or tensors), classes y [row] and polarities [row] of +1 and −1.

        Without polarities t_P and q are None and the score is along t_G alone, as in the published code.

        Raises:
            DirectionError: when y does not hold exactly two classes, or the polarities not both kinds.
        """
        rows, positive = self._two_classes(X, y)
        rows = rows.astype(np.float64, copy=False)
        sign = row_polarity(polarity, len(rows))
        truth = np.where(positive, 1.0, -1.0)
        design = truth[:, None] if sign is None else np.stack([truth, truth * sign, sign], axis=1)
        effects = LinearRegression().fit(design, rows).coef_
        self.direction_ = effects[:, 0]
        self.polarity_sensitive_, self.polarity_direction_ = None, None
        axes = [self.direction_]
        if sign is not None:
            self.polarity_sensitive_ = effects[:, 1]
            self.polarity_direction_ = self._logistic(rows, sign > 0).direction_
            axes.append(self.polarity_direction_)
        self.bias_ = float(-self.direction_ @ (rows[positive].mean(0) + rows[~positive].mean(0)) / 2)
        basis = np.stack(axes, axis=1)
        final = self._logistic(rows @ basis, positive)
        self.weights_, self.intercept_ = basis @ final.direction_, final.bias_
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores [row] of rows X [row, width], from both projections; positive means the positive class."""
        check_is_fitted(self)
        rows = validate_data(self, to_numpy(X), dtype=[np.float64, np.float32], reset=False)
        scores: NDArray[np.float64] = rows @ self.weights_ + self.intercept_
        return scores

    def _logistic(self, rows: Floats, positive: NDArray[np.bool_]) -> LogisticProbe:
        return LogisticProbe(self.C).fit(rows, positive)
