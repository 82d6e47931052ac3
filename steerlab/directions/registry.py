"""Estimators of directions by the names that people type."""

from __future__ import annotations

from steerlab.directions.linear import LinearDirection
from steerlab.errors import DirectionError
from steerlab.registry import Registry

#: Classes of estimators, each registered where it is defined; others come through `steerlab.estimators`.
ESTIMATORS: Registry[type[LinearDirection]] = Registry(
    "estimator", package="steerlab.directions", group="steerlab.estimators", error=DirectionError
)


def estimator_of(estimator: LinearDirection | str) -> LinearDirection:
    """The estimator itself, or one of the registered name with its default options.

    Raises:
        DirectionError: for a name that no estimator has.
    """
    return ESTIMATORS[estimator]() if isinstance(estimator, str) else estimator
