"""What is measured of one model by itself, unit by unit, so that models at other stages of training can be paired with
it.

A study gives its quantities for one model (`Study.stage`). A unit is a prompt, a statement or a text; two models are
compared on the units that both were measured on. Units are known by hashes: no prompt stands in a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerlab.record import Record
from steerlab.statistics import Estimate, Number, bootstrap_mean, proportion


class Quantity(Record):
    """A quantity's name and what may be done with it.

    Attributes:
        study: the study that gives it.
        of: what is asked or read ("harmful requests", a contrast's name).
        measure: what is measured of it, in words.
        unit: of its numbers; "" for shares and pure numbers.
        share: whether it is the share of units of which something holds.
        per_token: whether it is counted in tokens, and so comparable only between models that cut text alike.
        role: "control" for what training did not aim at; a "target" of the same measure is held against these.
    """

    study: str
    of: str
    measure: str
    unit: str = ""
    share: bool = False
    per_token: bool = False
    role: Literal["target", "control"] = "target"

    @property
    def name(self) -> str:
        """What and of what: "refused: harmful requests"."""
        return f"{self.measure}: {self.of}"


class Reading(Record):
    """A quantity of one model: [unit] names, values and clusters (units that are resampled together).

    Attributes:
        quantity: what was measured.
        units: hashes of what was asked (`unit_names`).
        values: one number a unit; NaN where the model gave none.
        clusters: number of each unit's cluster.
        how: how it was asked, where that may differ from model to model ("four labelled lines").
        missing: why nothing could be measured, in a sentence; then there are no units.
    """

    quantity: Quantity
    units: tuple[str, ...]
    values: tuple[Number, ...]
    clusters: tuple[int, ...]
    how: str = ""
    missing: str = ""

    @classmethod
    def absent(cls, quantity: Quantity, reason: str) -> Reading:
        """A quantity that this model does not have, and why."""
        return cls(quantity=quantity, units=(), values=(), clusters=(), missing=reason)

    @classmethod
    def of(
        cls,
        quantity: Quantity,
        units: Sequence[str],
        values: ArrayLike,
        clusters: Sequence[Hashable] | NDArray[Any] | None = None,
        how: str = "",
    ) -> Reading:
        """From arrays [unit]; without clusters every unit is its own. Raises ValueError for unequal lengths."""
        numbers = np.asarray(values, dtype=np.float64)
        names = list(range(len(units))) if clusters is None else [str(one) for one in clusters]
        if not len(units) == len(numbers) == len(names):
            raise ValueError(f"{len(units)} units came with {len(numbers)} values and {len(names)} clusters")
        numbered = {name: at for at, name in enumerate(dict.fromkeys(names))}
        return cls(
            quantity=quantity,
            units=tuple(units),
            values=tuple(numbers.tolist()),
            clusters=tuple(numbered[name] for name in names),
            how=how,
        )

    @property
    def known(self) -> dict[str, tuple[float, int]]:
        """Value and cluster by unit, of the units that have a value."""
        rows = zip(self.units, self.values, self.clusters, strict=True)
        return {unit: (value, cluster) for unit, value, cluster in rows if np.isfinite(value)}

    @property
    def mean(self) -> float:
        """The mean over the units that have a value; NaN without one."""
        values = [value for value, _ in self.known.values()]
        return float(np.mean(values)) if values else float("nan")

    def estimate(self, *, seed: int) -> Estimate:
        """The mean over units with its interval; NaN without a value."""
        if not self.known:
            return Estimate(value=float("nan"))
        values, clusters = (np.asarray(part) for part in zip(*self.known.values(), strict=True))
        if self.quantity.share:
            return proportion(values > 0.5, clusters=clusters)
        return bootstrap_mean(values, clusters, seed=seed)


def unit_names(*parts: Sequence[Hashable]) -> list[str]:
    """A hash for each row of the parts (texts, say, and labels), told apart where two rows are the same."""
    seen: dict[tuple[Hashable, ...], int] = {}
    names = []
    for row in zip(*parts, strict=True):
        seen[row] = seen.get(row, -1) + 1
        names.append(hashlib.sha256(repr((row, seen[row])).encode()).hexdigest()[:12])
    return names
