"""The JSON header of a direction file: what is written beside the vectors, and how it is checked on load.

Everything is validated strictly: unknown fields, wrong types and other versions are refused rather than guessed.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import ConfigDict, Field, JsonValue

from steerlab.record import Record
from steerlab.statistics import Estimate

FORMAT: Literal["steerlab.direction"] = "steerlab.direction"
VERSION: Literal[4] = (
    4  # 1: without held-out accuracy and best site; 2: without mean states; 3: without calibration
)
Numbers: TypeAlias = tuple[float, ...]


class _Strict(Record):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ModelRef(_Strict):
    """The model whose space a direction lives in."""

    name: str
    fingerprint: str


class SiteStatistics(_Strict):
    """Scale of one site's states along its k vectors, in the units of the states.

    Attributes:
        class_means: by class, the mean projection x·v̂ on each unit vector (k numbers).
        positive: the class the direction points to.
        negative: the class it points away from.
        stream_norm: the mean euclidean norm of the states.
        bias: b of the decision function x·v + b, with v as stored.
        threshold: projection on the unit vector at which the decision changes.
        sigma: spread (within-class standard deviation) of the projections on the unit vector. Where `heads` are
            named, one number a head: the standard deviation of all projections on the head's part at length one.
        heads: for `z` sites, the attention heads the vector lives in; it is zero elsewhere.
    """

    class_means: dict[str, Numbers] = Field(default_factory=dict)
    positive: str | None = None
    negative: str | None = None
    stream_norm: float | None = None
    bias: Numbers | None = None
    threshold: Numbers | None = None
    sigma: Numbers | None = None
    heads: tuple[int, ...] | None = None


class SiteHeader(SiteStatistics):
    """Statistics of a site with the shape of its vectors: k rows of `width` numbers."""

    k: int
    width: int


class CalibrationHeader(_Strict):
    """What is known of a probe's calibration beside its tensors."""

    tokens: int
    answers: int
    dataset_hash: str


class Header(_Strict):
    """The whole header of a direction file."""

    format: Literal["steerlab.direction"]
    version: Literal[1, 2, 3, 4]
    estimator: str
    parameters: dict[str, JsonValue]
    model: ModelRef
    origin: tuple[ModelRef, ...]
    dataset_hash: str
    position: str
    sites: dict[str, SiteHeader]
    accuracy: dict[str, Estimate] = Field(default_factory=dict)
    best: str | None = None
    means: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    calibration: CalibrationHeader | None = None
    libraries: dict[str, str]
