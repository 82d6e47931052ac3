"""A number with its interval: what every study hands to every table and figure.

An `Estimate` keeps the point value, the ends of its interval, the number of independent units behind it
(prompts, not tokens) and how the interval was made. A value that the data cannot give is NaN, written to JSON
as null; an interval that the data cannot give (one prompt only) has NaN ends, and prints as "n/a".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, model_validator

from steerlab.record import Record


class _Unknown(float):
    """NaN that reads as "n/a" in a sentence, whatever its format."""

    def __format__(self, spec: str) -> str:
        return "n/a"


UNKNOWN = _Unknown("nan")


def _null_is_nan(value: Any) -> Any:
    return UNKNOWN if value is None else value


def _sayable(value: float) -> float:
    return UNKNOWN if math.isnan(value) else value


Number = Annotated[
    float,
    BeforeValidator(_null_is_nan),
    AfterValidator(_sayable),
    PlainSerializer(_sayable, return_type=Any),
]
"""A float whose NaN is null in JSON, both ways, "n/a" where it is formatted, and the same one in every dictionary."""


class Estimate(Record):
    """A point value with its interval; `str()` gives "0.83 [0.79, 0.87]".

    value, low, high: the point and the ends of the interval, in the unit of what is measured. n: independent
    units (clusters) behind it. level: nominal coverage. method: how the interval was made, with seed.
    """

    value: Number
    low: Number = UNKNOWN
    high: Number = UNKNOWN
    n: int = 0
    level: float = 0.95
    method: str = ""

    @model_validator(mode="after")
    def _ends_in_order(self) -> Estimate:
        if self.low > self.high:
            raise ValueError(f"an interval needs low <= high, got [{self.low}, {self.high}]")
        return self

    @property
    def has_interval(self) -> bool:
        """True when both ends of the interval are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def excludes(self, value: float) -> bool:
        """True when the interval is known and `value` lies outside it."""
        return self.has_interval and not self.low <= value <= self.high

    def transform(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of a monotone function of the quantity (`math.exp` turns a log-ratio into a ratio)."""
        ends = function(self.low), function(self.high)
        low, high = ends if not ends[0] > ends[1] else (ends[1], ends[0])
        return self.model_copy(update={"value": function(self.value), "low": low, "high": high})

    def __format__(self, spec: str) -> str:
        """`f"{estimate:.3f}"` formats value and ends alike, `f"{share:%}"` a share as "92 % [74, 98]".

        Without a spec the decimals follow the width.
        """
        if not math.isfinite(self.value):
            return "n/a"
        if spec == "%":
            ends = (
                [_plain(100 * end, ".0f") for end in (self.low, self.high)] if self.has_interval else ["n/a"]
            )
            return f"{percent(self.value)} [{', '.join(ends)}]"
        spec = spec or f".{self._decimals()}f"
        if not self.has_interval:
            return f"{_plain(self.value, spec)} [n/a]"
        return f"{_plain(self.value, spec)} [{_plain(self.low, spec)}, {_plain(self.high, spec)}]"

    def __str__(self) -> str:
        return format(self, "")

    def _decimals(self) -> int:
        """At least two (fewer for wide intervals), or as many as show the interval's half width."""
        half = (self.high - self.low) / 2 if self.has_interval else abs(self.value) / 10
        if half <= 1e-4 * abs(self.value):  # digits that no reader compares: 1.000000 [1.000000, 1.000000]
            return 2
        if half >= 10:
            return 0 if half >= 100 else 1
        return max(2, min(6, -math.floor(math.log10(half))))


def mean_and_extremes(values: Sequence[float], method: str) -> Estimate:
    """The mean of the finite values, from the least to the greatest: what single draws give, not an interval.

    method: what the values are, with `{n}` where their number stands.
    """
    known = [float(value) for value in values if math.isfinite(value)]
    if not known:
        return Estimate(value=math.nan)
    return Estimate(
        value=float(np.mean(known)),
        low=min(known),
        high=max(known),
        n=len(known),
        method=method.format(n=len(known)),
    )


def percent(share: float) -> str:
    """A share as people compare it: "92 %"."""
    return f"{_plain(100 * share, '.0f')} %" if math.isfinite(share) else "n/a"


def _plain(value: float, spec: str) -> str:
    """`format` without a minus before zero."""
    text = format(value, spec)
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text
