"""Did a quantity change between two stages, and by more than what training did not aim at?

Both stages are paired unit by unit. *Changed*: the mean paired difference against zero, by the bootstrap of t over
clusters; of a share by McNemar's exact test, or over clusters by flips of sign. *More than the controls*: with d the
target's change, c_1..c_n the changes of the same measure on contrasts that training did not aim at, m their mean, s
their spread and e the standard error of d,

    t = (d - m) / sqrt(s^2 (1 + 1/n) + e^2),    n - 1 degrees of freedom,

which asks whether the target could be one more of them (a prediction interval; e is counted on top of the noise that is
in s already, so the test is careful). The noise of a gap in spreads grows with the gap, so gaps d are compared as
h(d) = sqrt(2) arsinh(d / sqrt(8)), whose noise does not (Hedges and Olkin, 1985, chapter 6).
p-values of one study's quantities and steps are adjusted together (Holm, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import stats

from steerlab.readouts.quantities import Quantity, Reading
from steerlab.record import Record
from steerlab.statistics import (
    Estimate,
    Number,
    holm,
    mcnemar,
    mean_and_extremes,
    mean_test,
    paired_difference,
)
from steerlab.statistics.estimate import UNKNOWN
from steerlab.studies._stages.pairing import Paired, paired
from steerlab.studies._stages.readings import StageReadings

Verdict = Literal[
    "not comparable",
    "no change",
    "changed",
    "with everything else",
    "more than everything else",
    "less than everything else",
    "against everything else",
    "not told apart",
]
ALPHA = 0.05
FEWEST_CONTROLS = 5
#: The unit of a distance of classes, whose noise grows with it.
GAP_UNIT = "spreads"
_DRAWS = (
    9999  # at least; more where more is tested, so that the smallest p can be significant after adjusting
)
_DRAWS_A_TEST = 200
_UNKNOWN = Estimate(value=UNKNOWN)


class Change(Record):
    """A quantity's change from one stage to a later one.

    Attributes:
        before, after: labels of the stages.
        value: mean of after - before over common units, with its interval.
        noise: the standard error of `value`.
        controls: the same change of the contrasts that training did not aim at: mean, least and greatest.
        scaled, scaled_controls: the change and the mean change of the controls on the scale on which they are compared:
            `stabilised` for gaps, else as they are.
        p, p_adjusted: of no change. p_over, p_over_adjusted: of a change like the controls'; NaN without controls.
        reason: why the stages cannot be compared.
    """

    before: str
    after: str
    value: Estimate
    noise: Number = UNKNOWN
    controls: Estimate = _UNKNOWN
    scaled: Number = UNKNOWN
    scaled_controls: Number = UNKNOWN
    p: Number = UNKNOWN
    p_adjusted: Number = UNKNOWN
    p_over: Number = UNKNOWN
    p_over_adjusted: Number = UNKNOWN
    reason: str = ""

    @property
    def step(self) -> str:
        """The step in words: "base → sft"."""
        return f"{self.before} → {self.after}"

    @property
    def verdict(self) -> Verdict:
        """What can be said of it."""
        if self.reason:
            return "not comparable"
        if not self.p_adjusted < ALPHA:
            return "no change"
        if math.isnan(self.p_over):
            return "changed"
        return _beside_controls(self.scaled, self.scaled_controls, self.p_over_adjusted < ALPHA)

    @property
    def moved(self) -> bool:
        """Whether there was a change, of whatever cause."""
        return self.verdict not in ("not comparable", "no change")

    @property
    def in_noise(self) -> float:
        """The change in units of its own noise; 0 for none, NaN where it cannot be told."""
        if self.value.value == 0:
            return 0.0
        return self.value.value / self.noise if self.noise > 0 else math.nan


class Trajectory(Record):
    """A quantity over the stages.

    Attributes:
        quantity: what is measured.
        at: its value at each stage; NaN where it was not measured.
        controls: at each stage the mean, least and greatest of the same measure on the control contrasts; or empty.
        steps: changes of adjacent stages.
        whole: from the first stage to the last, where there are more than two.
        from_first: at each stage the change since the first, in units of its noise.
    """

    quantity: Quantity
    at: tuple[Estimate, ...]
    controls: tuple[Estimate, ...]
    steps: tuple[Change, ...]
    whole: Change | None
    from_first: tuple[Number, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every tested change."""
        return self.steps if self.whole is None else (*self.steps, self.whole)

    @property
    def most(self) -> Change | None:
        """The adjacent step that moved it most; None where no step is identified."""
        return max(
            (step for step in self.steps if step.moved), key=lambda step: abs(step.value.value), default=None
        )


def trajectories(stages: Sequence[StageReadings], seed: int) -> list[Trajectory]:
    """Every target quantity over the stages, its changes tested and adjusted."""
    by_stage = [{reading.quantity: reading for reading in stage.readings} for stage in stages]
    known = list(dict.fromkeys(quantity for found in by_stage for quantity in found))
    targets = [quantity for quantity in known if quantity.role == "target"]
    made = []
    for study in dict.fromkeys(quantity.study for quantity in targets):
        mine = _distinct([quantity for quantity in targets if quantity.study == study], by_stage)
        draws = max(_DRAWS, _DRAWS_A_TEST * len(mine) * len(stages))
        found = [_trajectory(quantity, stages, by_stage, known, seed, draws) for quantity in mine]
        made += _adjusted(found)
    return made


def change(
    first: StageReadings,
    second: StageReadings,
    quantity: Quantity,
    controls: Sequence[Quantity],
    seed: int,
    draws: int = _DRAWS,
) -> Change:
    """The change of one quantity from one stage to another, beside that of the controls; p-values not adjusted."""
    both = paired(first, second, quantity)
    steps = {"before": first.label, "after": second.label}
    if isinstance(both, str):
        return Change(**steps, value=_UNKNOWN, reason=both)
    others = [one for control in controls if not isinstance(one := paired(first, second, control), str)]
    gaps = quantity.unit == GAP_UNIT
    (value, error), *scaled = (_scaled(one, gaps) for one in (both, *others))
    beside = [moved for moved, _ in scaled]
    enough = len(beside) >= FEWEST_CONTROLS
    return Change(
        **steps,
        value=_difference(both, seed),
        noise=both.error,
        controls=mean_and_extremes(
            [float(one.differences.mean()) for one in others],
            "mean of {n} control contrasts, least to greatest",
        ),
        scaled=value,
        scaled_controls=float(np.mean(beside)) if beside else math.nan,
        p=_p_changed(both, quantity, seed, draws),
        p_over=p_over(value, error, beside) if enough else math.nan,
    )


def stabilised(gap: float) -> float:
    """h(d) of a gap d in spreads: its noise does not grow with d (module docstring)."""
    return math.sqrt(2) * math.asinh(gap / math.sqrt(8))


def p_over(value: float, error: float, controls: Sequence[float]) -> float:
    """Two-sided p of a change being one more of the controls' (module docstring); 1 where all are equal."""
    beside = np.asarray(controls, dtype=np.float64)
    n = len(beside)
    spread = math.sqrt(float(beside.var(ddof=1)) * (1 + 1 / n) + error**2)
    distance = abs(value - float(beside.mean()))
    if spread == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * stats.t.sf(distance / spread, n - 1))


# -- private, in the order they are called --


def _scaled(both: Paired, gaps: bool) -> tuple[float, float]:
    """The mean change and its standard error, gaps on the scale of `stabilised` (the error by its slope)."""
    moved = float(both.differences.mean())
    if not gaps:
        return moved, both.error
    before = float(both.before.mean())
    slope = 0.5 / math.sqrt(1 + (before + moved / 2) ** 2 / 8)
    return stabilised(before + moved) - stabilised(before), both.error * slope


def _beside_controls(value: float, controls: float, apart: bool) -> Verdict:
    """A change beside the mean change of the controls; `apart`: whether the controls do not make it."""
    alike = value * controls > 0
    if not apart:
        return "with everything else" if alike else "not told apart"
    if abs(value) > abs(controls) and (value - controls) * value > 0:
        return "more than everything else"
    return "less than everything else" if alike else "against everything else"


def _trajectory(
    quantity: Quantity,
    stages: Sequence[StageReadings],
    by_stage: Sequence[Mapping[Quantity, Reading]],
    known: Sequence[Quantity],
    seed: int,
    draws: int,
) -> Trajectory:
    controls = [one for one in known if one.role == "control" and one.measure == quantity.measure]
    at = [
        found[quantity].estimate(seed=seed) if quantity in found else Estimate(value=math.nan)
        for found in by_stage
    ]
    beside = [
        mean_and_extremes(
            [found[one].mean for one in controls if one in found],
            "mean of {n} control contrasts, least to greatest",
        )
        for found in by_stage
    ]
    since = [_in_noise(stages[0], stage, quantity) for stage in stages]
    steps = tuple(change(*two, quantity, controls, seed, draws) for two in pairwise(stages))
    whole = change(stages[0], stages[-1], quantity, controls, seed, draws) if len(stages) > 2 else None
    return Trajectory(
        quantity=quantity,
        at=tuple(at),
        controls=tuple(beside) if controls else (),
        steps=steps,
        whole=whole,
        from_first=tuple(since),
    )


def _distinct(
    quantities: Sequence[Quantity], by_stage: Sequence[Mapping[Quantity, Reading]]
) -> list[Quantity]:
    """Those that are no copies: where no stage has a template, its own format is the plain one."""
    kept: dict[object, Quantity] = {}
    for quantity in quantities:
        read = [
            (found[quantity].units, found[quantity].values) if quantity in found else None
            for found in by_stage
        ]
        kept.setdefault((quantity.measure, str(read)), quantity)
    return list(kept.values())


def _in_noise(first: StageReadings, stage: StageReadings, quantity: Quantity) -> float:
    both = paired(first, stage, quantity)
    if isinstance(both, str):
        return math.nan
    moved, error = float(both.differences.mean()), both.error
    return 0.0 if moved == 0 else moved / error if error > 0 else math.nan


def _difference(both: Paired, seed: int) -> Estimate:
    """The mean difference with its interval, which of a share ends at one."""
    found = paired_difference(both.after, both.before, both.clusters, seed=seed)
    if not both.share or not found.has_interval:
        return found
    return found.model_copy(update={"low": max(found.low, -1.0), "high": min(found.high, 1.0)})


def _p_changed(both: Paired, quantity: Quantity, seed: int, draws: int) -> float:
    """Two-sided p of no change.

    Of a share McNemar's exact test, or its form for clusters, which flips the sign of each cluster's sum: the bootstrap
    of t breaks down where nearly all units change alike.
    """
    if not quantity.share:
        single, _ = mean_test(both.differences[:, None], both.clusters, seed=seed, draws=draws)
        return float(single[0])
    sums = np.bincount(np.unique(both.clusters, return_inverse=True)[1], weights=both.differences)
    if len(sums) == len(both.clusters):
        return float(mcnemar(both.after > 0.5, both.before > 0.5).p_value)
    moving = sums[sums != 0]
    flips = np.random.default_rng(seed).choice((-1.0, 1.0), (draws, len(moving)))
    beyond = np.abs(flips @ moving) >= abs(moving.sum()) - 1e-9
    return float((1 + beyond.sum()) / (1 + draws))


def _adjusted(found: Sequence[Trajectory]) -> list[Trajectory]:
    """The same with p-values adjusted over all changes of these quantities."""
    changes = [change for one in found for change in one.changes]
    plain, over = holm([one.p for one in changes]), holm([one.p_over for one in changes])
    adjusted = iter(
        [
            Change(**{**dict(one), "p_adjusted": p, "p_over_adjusted": q})
            for one, p, q in zip(changes, plain.tolist(), over.tolist(), strict=True)
        ]
    )
    return [
        one.model_copy(
            update={
                "steps": tuple(next(adjusted) for _ in one.steps),
                "whole": next(adjusted) if one.whole is not None else None,
            }
        )
        for one in found
    ]
