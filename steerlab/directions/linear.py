"""What every estimator of a single direction shares: two classes, a linear score, scikit-learn's interface.

An estimator learns ``direction_`` (w), ``bias_`` (b) and ``classes_`` = [negative, positive]; a row x is scored
``x·w + b`` and called positive above zero.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from steerlab.activations import Label, Moments
from steerlab.errors import DirectionError

Floats: TypeAlias = NDArray[np.floating[Any]]


class LinearDirection(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """A two-class linear classifier whose weight vector is a direction.

    Attributes:
        needs_pairs: whether a fit means something on pairs of a statement and its negation only.
    """

    needs_pairs: ClassVar[bool] = False

    classes_: NDArray[Any]
    direction_: NDArray[np.float64]
    bias_: float
    n_features_in_: int

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores [row] of rows X [row, width]; positive means the positive class."""
        check_is_fitted(self)
        rows = validate_data(self, to_numpy(X), dtype=[np.float64, np.float32], reset=False)
        scores: NDArray[np.float64] = rows @ self.direction_ + self.bias_
        return scores

    def predict(self, X: Any) -> NDArray[Any]:
        """The class [row] of rows X [row, width]."""
        positive = self.decision_function(X) > 0
        predicted: NDArray[Any] = self.classes_[positive.astype(int)]
        return predicted

    def __sklearn_tags__(self) -> Any:
        """Two classes only."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _two_classes(self, X: Any, y: Any) -> tuple[Floats, NDArray[np.bool_]]:
        """Checked rows [row, width] and True where a row is positive; sets ``classes_``."""
        rows, labels = validate_data(self, to_numpy(X), to_numpy(y), dtype=[np.float64, np.float32])
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) > 2:
            kind = type_of_target(labels, input_name="y")
            raise DirectionError(
                f"Only binary classification is supported. The type of the target is {kind}."
            )
        if len(self.classes_) < 2:
            raise DirectionError(
                f"A direction needs two classes, but y holds only one class: {self.classes_[0]!r}."
            )
        return rows, labels == self.classes_[1]

    def _two_labels(self, moments: Moments, negative: Label, positive: Label) -> None:
        """Check that moments hold both classes; sets ``classes_``."""
        for label in (negative, positive):
            if label not in moments.labels:
                raise DirectionError(
                    f"The moments hold the classes {list(moments.labels)}, not {label!r}; "
                    "name them with negative=... and positive=...."
                )
        self.classes_ = np.array([negative, positive])


class ProbabilisticDirection(LinearDirection):
    """A linear direction whose score is read as log-odds of the positive class."""

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities [row, 2] of the negative and the positive class: the logistic of the score."""
        positive = 0.5 * (1.0 + np.tanh(0.5 * self.decision_function(X)))
        return np.stack([1.0 - positive, positive], axis=1)


def to_numpy(values: Any) -> Any:
    """Tensors of any device and precision as numpy arrays; everything else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def class_means(rows: Floats, positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means [width] of the positive and the negative rows, in float64."""
    return rows[positive].mean(axis=0, dtype=np.float64), rows[~positive].mean(axis=0, dtype=np.float64)
