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
        DirectionError: for a name that no estimator has, a class, or something else.
    """
    if isinstance(estimator, str):
        return ESTIMATORS[estimator]()
    if isinstance(estimator, type):
        raise DirectionError(
            f"{estimator.__name__} is a class; make an estimator of it: {estimator.__name__}()."
        )
    if not hasattr(estimator, "fit"):
        raise DirectionError(
            f"{estimator!r} is no estimator; give a name ({', '.join(ESTIMATORS)}) or an object."
        )
    return estimator
