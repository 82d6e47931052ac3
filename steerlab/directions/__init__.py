"""From labelled states to directions: estimators, and the `Direction` they make, which is also a file."""

from __future__ import annotations

from steerlab.directions._header import ModelRef, SiteStatistics
from steerlab.directions._linear import LinearDirection
from steerlab.directions.difference_in_means import DifferenceInMeans
from steerlab.directions.direction import Direction
from steerlab.directions.fitting import fit_direction
from steerlab.directions.foreign import read_caa, read_gguf, read_refusal_direction, read_steering_vectors
from steerlab.directions.logistic_probe import LogisticProbe
from steerlab.directions.mass_mean import MassMean

__all__ = [
    "DifferenceInMeans",
    "Direction",
    "LinearDirection",
    "LogisticProbe",
    "MassMean",
    "ModelRef",
    "SiteStatistics",
    "fit_direction",
    "read_caa",
    "read_gguf",
    "read_refusal_direction",
    "read_steering_vectors",
]
