"""The result of the transfer study: every way of unlocking beside every control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from steerlab.alignment import AlignmentReport
from steerlab.record import Record
from steerlab.results import StudyResult, Table
from steerlab.statistics import Estimate, Number
from steerlab.studies._transfer.figures import figures
from steerlab.studies._transfer.reasons import Reason, bar, reason
from steerlab.studies._transfer.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ConditionRole = Literal["locked", "ceiling", "transfer", "control", "specificity", "forced"]
UNLOCK = "UNLOCK"


class Condition(Record):
    """What the target writes under one condition.

    right, behaves: shares of test questions answered right, and answered in the unlocked manner. right_change,
    behaves_change: against the locked target on the same questions. p_value: McNemar's, of right answers. length:
    tokens. repeats: share of repeated windows of four tokens. first_kl: of the first token's law from the locked one,
    nats. draws: shares that behave under each random direction.
    """

    name: str
    role: ConditionRole
    strength: Number = float("nan")
    right: Estimate
    behaves: Estimate
    right_change: Estimate | None = None
    behaves_change: Estimate | None = None
    p_value: Number = float("nan")
    length: Number
    repeats: Number
    first_kl: Estimate | None = None
    draws: tuple[Number, ...] = ()


class SweepCell(Record):
    """A truncated map of rank k fitted on n questions: what it does on dev questions, and its diagnostics."""

    rank: int
    rows: int
    behaves: Estimate
    right: Estimate
    r2_diff: Number
    cos_native: Number
    energy_in: Number


class Sharpening(Record):
    """Was the capability there before? Samples of the locked target beside greedy answers of the steered one.

    at_k: share of questions with a right answer among k samples. steered: greedy and steered, same questions. correct,
    wrong: change of the log-probability (nats an answer) that steering gives the target's own right and wrong samples.
    """

    k: int
    temperature: float
    at_k: Estimate
    at_1: Estimate
    steered: Estimate
    correct: Estimate | None = None
    wrong: Estimate | None = None


class Setting(Record):
    """What was run."""

    size: str
    seed: int
    preset: str
    contrast: Literal["prompt", "weights"]
    source: tuple[str, str]
    target: str
    task: str
    fit: int
    dev: int
    test: int
    layers: tuple[int, ...]
    strength: float
    how: str
    aggregator: str
    aligner: str


class TransferResult(StudyResult):
    """The transfer of a capability to a target, beside everything that could look like it."""

    study: str = "transfer"
    setting: Setting
    conditions: tuple[Condition, ...]
    report: AlignmentReport
    curve: tuple[tuple[float, float, float], ...] = ()
    sweep: tuple[SweepCell, ...] = ()
    sharpening: Sharpening | None = None
    missing: dict[str, str] = Field(default_factory=dict)

    def condition(self, name: str) -> Condition:
        """One row by its name. Raises KeyError."""
        return {row.name: row for row in self.conditions}[name]

    @property
    def controls(self) -> tuple[Condition, ...]:
        """The rows that a transfer has to beat."""
        return tuple(row for row in self.conditions if row.role == "control")

    def beats_controls(self, outcome: Literal["right", "behaves"]) -> bool:
        """True when the lower end of UNLOCK's interval lies above every control's share and the furthest random
        draw."""
        own: Estimate = getattr(self.condition(UNLOCK), outcome)
        return bool(own.low > bar(self.controls, outcome))

    def reason(self, outcome: Literal["right", "behaves"] = "behaves") -> Reason:
        """ "carried", or what it is that is not: "capability", "direction", "aligner" ("unknown" without a native
        direction); see `reasons`."""
        return reason(self, outcome)

    def tables(self) -> list[Table]:
        """Conditions, the map, the sweep, sharpening."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Outcomes by condition, the rank × samples map, the map's diagnostics by layer, the strength curve."""
        return figures(self)
