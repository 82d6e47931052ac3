"""Logistic probe: the direction along which a logistic regression separates two classes best.

    P(positive | x) = σ(w·x + b),    min Σ log-loss + ‖w'‖² / (2C)

scikit-learn does the fitting. With ``standardise`` the penalty acts on coordinates of unit variance, w' = w·s, and the
learnt weights are carried back to the space of the states, so ``direction_`` is always in its units.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from steerlab.directions._linear import LinearDirection, sigmoid_pair


class LogisticProbe(LinearDirection):
    """Logistic regression on states.

    Args:
        C: inverse strength of the penalty.
        standardise: scale every coordinate to unit variance first (and centre it, if there is an intercept).
        fit_intercept: learn a bias; without one, rows should be centred by the caller.
        max_iter: steps the solver (lbfgs) may take.
        tol: gradient at which it stops.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        standardise: bool = True,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-4,
    ) -> None:
        self.C = C
        self.standardise = standardise
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows X [row, width] (numpy or tensors) with two classes y [row]; the larger one is positive.

        Raises:
            DirectionError: when y does not hold exactly two classes.
        """
        rows, positive = self._two_classes(X, y)
        rows = rows.astype(np.float64, copy=False)
        mean, scale = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        if self.standardise:
            scaler = StandardScaler(with_mean=self.fit_intercept).fit(rows)
            scale = scaler.scale_
            mean = scaler.mean_ if self.fit_intercept else mean
        solver = LogisticRegression(
            C=self.C, fit_intercept=self.fit_intercept, max_iter=self.max_iter, tol=self.tol
        ).fit((rows - mean) / scale, positive)
        self.direction_ = solver.coef_[0] / scale
        self.bias_ = float(solver.intercept_[0] - self.direction_ @ mean) if self.fit_intercept else 0.0
        self.n_iter_ = int(solver.n_iter_[0])
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities [row, 2] of the negative and the positive class."""
        return sigmoid_pair(self.decision_function(X))
