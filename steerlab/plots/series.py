"""A series: one line, cloud of points or group of bars with its intervals, colour and dash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerlab.plots import theme

_MARKERS = {"base": "circle", "post": "diamond", "control": "x-thin-open", "other": "square"}
_DASHES = {"base": "solid", "post": "solid", "control": "dot", "other": "solid"}


class HasInterval(Protocol):
    """A number with the ends of its interval."""

    @property
    def value(self) -> float:
        """The point value."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


@dataclass(frozen=True)
class Series:
    """Named values [point] with the ends of their intervals, where there are any.

    x: [point] positions of its own (curves and scatters), otherwise those of the figure. n: [point] rows
    behind each. labels: [point] texts shown on hover. role: fixes colour and dash; read from
    the name where it is None.
    """

    name: str
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    x: ArrayLike | None = None
    n: ArrayLike | None = None
    labels: Sequence[str] | None = None
    role: theme.SeriesRole | None = None

    @classmethod
    def of(cls, name: str, estimates: Sequence[HasInterval], **options: Any) -> Series:
        """A series from numbers with intervals (`Estimate`s); options are the other attributes."""
        return cls(
            name,
            y=[estimate.value for estimate in estimates],
            low=[estimate.low for estimate in estimates],
            high=[estimate.high for estimate in estimates],
            **options,
        )

    def values(self) -> NDArray[np.float64]:
        """`y` as numbers."""
        return np.asarray(self.y, dtype=np.float64)

    def ends(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """`low` and `high`, or None without an interval. Raises ValueError where they do not fit `y`."""
        if self.low is None or self.high is None:
            return None
        low, high = np.asarray(self.low, dtype=np.float64), np.asarray(self.high, dtype=np.float64)
        if low.shape != self.values().shape or high.shape != self.values().shape:
            raise ValueError(f"series {self.name!r}: low and high need one value for each y")
        return low, high

    def error_bars(self) -> dict[str, Any] | None:
        """The interval as plotly's asymmetric error bars; points without one get none."""
        ends = self.ends()
        if ends is None:
            return None
        low, high = ends
        return {
            "type": "data",
            "symmetric": False,
            "array": np.nan_to_num(np.maximum(high - self.values(), 0)),
            "arrayminus": np.nan_to_num(np.maximum(self.values() - low, 0)),
            "color": theme.INK,
            "thickness": 1.4,
            "width": 4,
        }

    def meta(self) -> dict[str, list[float]] | None:
        """The interval as figures carry it along, for the tables made from them."""
        ends = self.ends()
        return None if ends is None else {"low": ends[0].tolist(), "high": ends[1].tolist()}

    def hover_ends(self) -> NDArray[Any]:
        """[point, 1] the interval as text for hovering ("" without one)."""
        ends = self.ends()
        if ends is None:
            return np.full((len(self.values()), 1), "", dtype=object)
        return np.array(
            [
                [f" [{low:.3g}, {high:.3g}]" if np.isfinite(low + high) else ""]
                for low, high in zip(*ends, strict=True)
            ],
            dtype=object,
        ).reshape(-1, 1)


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of a series."""

    colour: str
    marker: str
    dash: str


def looks(series: Sequence[Series]) -> list[Look]:
    """The look of each series: by role, the others in the order of the palette, repeats of a role dashed."""
    looks: list[Look] = []
    seen: dict[str, int] = {}
    for line in series:
        role = line.role or theme.role_of(line.name)
        repeat = seen.get(role, 0)
        seen[role] = repeat + 1
        colour = {"base": theme.BASE, "post": theme.POST, "control": theme.CONTROL}.get(
            role, theme.OTHERS[repeat % len(theme.OTHERS)]
        )
        repeated = repeat > 0 and role != "other"
        dash = ("dash", "dashdot", "longdash")[(repeat - 1) % 3] if repeated else _DASHES[role]
        looks.append(Look(colour, _MARKERS[role], dash))
    return looks
