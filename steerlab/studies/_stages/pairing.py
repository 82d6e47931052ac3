"""Two stages on the units that both were measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.readouts.quantities import Quantity
from steerlab.statistics import but_for_rounding
from steerlab.studies._stages.readings import StageReadings


@dataclass(frozen=True)
class Paired:
    """Differences of two stages over the units that both have.

    before, after, clusters: [unit]. share: whether they are zeros and ones.
    """

    before: Float[np.ndarray, " unit"]
    after: Float[np.ndarray, " unit"]
    clusters: NDArray[np.int64]
    share: bool

    @property
    def differences(self) -> Float[np.ndarray, " unit"]:
        """After - before, but for rounding."""
        return np.asarray(but_for_rounding(self.after, self.before) - self.before)

    @property
    def error(self) -> float:
        """The standard error of the mean difference, clusters kept whole.

        Of a share at least that of Agresti and Min (2005), half a unit added to every cell: a change of all units has
        noise, too.
        """
        moved = self.differences
        left = moved - moved.mean()
        sums = np.bincount(np.unique(self.clusters, return_inverse=True)[1], weights=left)
        n = len(sums)
        error = float(np.sqrt((sums**2).sum() * n / max(1, n - 1)) / len(left))
        if not self.share or not moved.any():
            return error
        up, down = float((moved > 0).sum()) + 0.5, float((moved < 0).sum()) + 0.5
        total = len(moved) + 2
        return max(error, math.sqrt(up + down - (up - down) ** 2 / total) / total)


def paired(first: StageReadings, second: StageReadings, quantity: Quantity) -> Paired | str:
    """The units of a quantity that both stages have, or why they cannot be compared, in a sentence."""
    readings = []
    for stage in (first, second):
        reading = next((one for one in stage.readings if one.quantity == quantity), None)
        if reading is None:
            why = stage.missing.get(quantity.study) or stage.missing.get(f"contrast {quantity.of}")
            return f"It was not measured in {stage.label}{f': {why}' if why else ', which has no such quantity.'}"
        if reading.missing:
            return f"It was not measured in {stage.label}: {reading.missing}"
        readings.append(reading)
    one, two = readings
    if quantity.per_token and first.tokenizer != second.tokenizer:
        return f"{first.label} and {second.label} cut text into other tokens, and it is counted in tokens."
    if one.how != two.how:
        return f"It was asked with {one.how} in {first.label} and with {two.how} in {second.label}."
    before, after = one.known, two.known
    common = [unit for unit in before if unit in after]
    if len(common) < 2:
        return f"{first.label} and {second.label} have {len(common)} of its units in common; two are needed."
    return Paired(
        np.array([before[unit][0] for unit in common]),
        np.array([after[unit][0] for unit in common]),
        np.array([before[unit][1] for unit in common]),
        quantity.share,
    )
