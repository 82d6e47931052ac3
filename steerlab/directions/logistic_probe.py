"""Logistic probe: the direction along which a logistic regression separates two classes best.

    P(positive | x) = σ(w·x + b),    min Σ log-loss + ‖w'‖² / (2C)

scikit-learn does the fitting. With ``standardise`` the penalty acts on coordinates of unit variance, w' = w·s, and the
learnt weights are carried back to the space of the states, so ``direction_`` is always in its units.

"The Geometry of Truth" (Marks and Tegmark 2023) stops full-batch AdamW after 1000 steps instead, without a bias, on
rows that the caller has centred: ``LogisticProbe(solver="adamw", standardise=False, fit_intercept=False)``. It starts
from zero here, where the published code draws a random start without a seed.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import binary_cross_entropy_with_logits

from steerlab.directions._descent import adamw
from steerlab.directions.linear import Floats, ProbabilisticDirection
from steerlab.directions.registry import ESTIMATORS
from steerlab.errors import DirectionError


@ESTIMATORS.register("logistic")
class LogisticProbe(ProbabilisticDirection):
    """Logistic regression on states.

    Args:
        C: inverse strength of the penalty (solver "lbfgs").
        standardise: scale every coordinate to unit variance first (and centre it, if there is an intercept).
        fit_intercept: learn a bias; without one, rows should be centred by the caller.
        solver: "lbfgs" finds the optimum; "adamw" takes ``steps`` steps towards the optimum without a penalty, held
            back by weight decay.
        max_iter: steps lbfgs may take.
        tol: gradient at which it stops.
        steps: full-batch steps of AdamW.
        learning_rate: its step size.
        weight_decay: its decoupled decay.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        standardise: bool = True,
        fit_intercept: bool = True,
        solver: Literal["lbfgs", "adamw"] = "lbfgs",
        max_iter: int = 1000,
        tol: float = 1e-4,
        steps: int = 1000,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
    ) -> None:
        self.C = C
        self.standardise = standardise
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on rows X [row, width] (numpy or tensors) with two classes y [row]; the larger one is positive.

        Raises:
            DirectionError: when y does not hold exactly two classes, or for an unknown solver.
        """
        if self.solver not in ("lbfgs", "adamw"):
            raise DirectionError(f"The solver is 'lbfgs' or 'adamw', not {self.solver!r}.")
        rows, positive = self._two_classes(X, y)
        rows = rows.astype(np.float64, copy=False)
        mean, scale = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        if self.standardise:
            scaler = StandardScaler(with_mean=self.fit_intercept).fit(rows)
            scale = scaler.scale_
            mean = scaler.mean_ if self.fit_intercept else mean
        solve = self._optimum if self.solver == "lbfgs" else self._descend
        weights, intercept = solve((rows - mean) / scale, positive)
        self.direction_ = weights / scale
        self.bias_ = float(intercept - self.direction_ @ mean)
        return self

    def _optimum(self, rows: Floats, positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
        solver = LogisticRegression(
            C=self.C, fit_intercept=self.fit_intercept, max_iter=self.max_iter, tol=self.tol
        ).fit(rows, positive)
        self.n_iter_ = int(solver.n_iter_[0])
        return solver.coef_[0], float(solver.intercept_[0]) if self.fit_intercept else 0.0

    @torch.inference_mode(False)  # estimators are fitted inside it, too
    @torch.enable_grad()
    def _descend(self, rows: Floats, positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
        x, target = torch.from_numpy(rows), torch.from_numpy(positive).to(torch.float64)
        weights, intercept = torch.zeros(x.shape[1], dtype=x.dtype), torch.zeros(1, dtype=x.dtype)
        adamw(
            lambda: binary_cross_entropy_with_logits(x @ weights + intercept, target),
            [weights, intercept] if self.fit_intercept else [weights],
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        self.n_iter_ = self.steps
        return weights.numpy(), float(intercept)
