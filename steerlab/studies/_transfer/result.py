"""What the transfer study hands on: every way of unlocking beside every control, with sentences, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from steerlab import plots
from steerlab.alignment import AlignmentReport
from steerlab.plots import Series
from steerlab.record import Record
from steerlab.results import Headline, StudyResult, Table
from steerlab.statistics import Estimate, Number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Role = Literal["locked", "ceiling", "transfer", "control", "forced"]
UNLOCK = "UNLOCK"


class Condition(Record):
    """What the target writes under one condition.

    right, behaves: shares of test questions answered right, and answered in the unlocked manner. right_change,
    behaves_change: against the locked target on the same questions. p_value: McNemar's, of right answers. length:
    tokens.
    repeats: share of repeated windows of four tokens. first_kl: of the first token's law from the locked one,
    nats. draws: shares that behave under each random direction.
    """

    name: str
    role: Role
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
        return {one.name: one for one in self.conditions}[name]

    @property
    def controls(self) -> tuple[Condition, ...]:
        """The rows that a transfer has to beat."""
        return tuple(one for one in self.conditions if one.role == "control")

    def beats_controls(self, outcome: Literal["right", "behaves"]) -> bool:
        """True when the lower end of UNLOCK's interval lies above every control's share and the furthest random
        draw."""
        own: Estimate = getattr(self.condition(UNLOCK), outcome)
        bar: float = max(getattr(one, outcome).value for one in self.controls)
        if outcome == "behaves":
            bar = max([bar, *(draw for one in self.controls for draw in one.draws)])
        return bool(own.low > bar)

    def tables(self) -> list[Table]:
        """Conditions, the map, the sweep, sharpening."""
        made = [self._conditions_table(), self._alignment_table()]
        if self.sweep:
            made.append(self._sweep_table())
        if self.sharpening is not None:
            made.append(self._sharpening_table(self.sharpening))
        return made

    def figures(self) -> dict[str, Figure]:
        """Outcomes by condition, the rank × samples map, the map's diagnostics by layer, the strength curve."""
        made = {"conditions": self._conditions_figure()}
        if self.sweep:
            made["sweep"] = self._sweep_figure()
        made["alignment"] = self._alignment_figure()
        if len(self.curve) > 1:
            made["strength"] = self._strength_figure()
        return made

    # -- private --

    def _conditions_table(self) -> Table:
        columns = [
            "condition",
            "kind",
            "strength",
            "right",
            "change",
            "McNemar p",
            "unlocked manner",
            "change of manner",
        ]
        return Table(
            key="conditions",
            title=f"{self.setting.target} on {self.setting.test} test questions",
            columns=[*columns, "furthest random", "tokens", "repeated", "first-token KL"],
            rows=[
                [
                    *(one.name, one.role, one.strength, one.right, one.right_change, one.p_value),
                    *(one.behaves, one.behaves_change, max(one.draws) if one.draws else None),
                    *(one.length, one.repeats, one.first_kl),
                ]
                for one in self.conditions
            ],
            note="Changes are paired with the locked target on the same questions. Controls are steered at the same "
            "layers with the same strength. KL in nats from the locked law of the first token.",
        )

    def _alignment_table(self) -> Table:
        return Table(
            key="alignment",
            title=f"The map into the target, on held-out questions ({self.report.aligner})",
            columns=[
                *(
                    "layer",
                    "source layer",
                    "verdict",
                    "rank",
                    "R² points",
                    "R² differences",
                    "shuffled pairs",
                    "CKA",
                    "CKA p",
                ),
                *("energy in", "gain", "specificity", "split half", "cosine native", "cosine mean state"),
            ],
            rows=[
                [
                    *(
                        one.target,
                        one.source,
                        one.verdict,
                        one.rank,
                        one.r2_point,
                        one.r2_diff,
                        one.r2_shuffled,
                        one.cka,
                    ),
                    *(
                        one.cka_p,
                        one.energy_in,
                        one.gain,
                        one.specificity,
                        one.split_half,
                        one.cos_native,
                        one.cos_mean,
                    ),
                ]
                for one in self.report.layers
            ],
            note=self.report.sentence,
        )

    def _sweep_table(self) -> Table:
        return Table(
            key="sweep",
            title="Rank and samples of a truncated map, on dev questions",
            columns=[
                "rank",
                "questions",
                "unlocked manner",
                "right",
                "R² differences",
                "cosine native",
                "energy in",
            ],
            rows=[
                [one.rank, one.rows, one.behaves, one.right, one.r2_diff, one.cos_native, one.energy_in]
                for one in self.sweep
            ],
            note="Rank 1 sends every direction to plus or minus one vector of the target: a control, not a transfer.",
        )

    def _sharpening_table(self, one: Sharpening) -> Table:
        return Table(
            key="sharpening",
            title="Was it there before? The locked target's own samples",
            columns=["what", "value"],
            rows=[
                [f"right in {one.k} samples at temperature {one.temperature:g}", one.at_k],
                ["right in one sample", one.at_1],
                ["right when steered, greedy", one.steered],
                ["change of log-probability of its right samples", one.correct],
                ["change of log-probability of its wrong samples", one.wrong],
            ],
            note="Sharpening predicts: steered at most what k samples reach, and a larger change for right samples.",
        )

    def _conditions_figure(self) -> Figure:
        rows = list(self.conditions)
        return plots.bars(
            [one.name for one in rows],
            [
                Series.of("in the unlocked manner", [one.behaves for one in rows], role="post"),
                Series.of("right", [one.right for one in rows], role="base"),
            ],
            title=f"What {self.setting.target} writes on test questions",
            y_title="Share of answers",
            y_range=(0.0, 1.05),
        )

    def _sweep_figure(self) -> Figure:
        ranks = sorted({one.rank for one in self.sweep})
        rows = sorted({one.rows for one in self.sweep})
        found = {(one.rank, one.rows): one for one in self.sweep}

        def matrix(field: str) -> np.ndarray:
            cells = [[found.get((rank, n)) for n in rows] for rank in ranks]
            return np.array(
                [
                    [np.nan if cell is None else _number(getattr(cell, field)) for cell in line]
                    for line in cells
                ]
            )

        return plots.heatmaps(
            {
                "unlocked manner": matrix("behaves"),
                "R² of differences": np.clip(matrix("r2_diff"), -1, 1),
                "cosine with native": matrix("cos_native"),
            },
            x=rows,
            y=ranks,
            title="Truncated maps by rank and questions",
            x_title="Questions fitted on",
            y_title="Rank",
            diverging=True,
            limits=(-1.0, 1.0),
        )

    def _alignment_figure(self) -> Figure:
        rows = self.report.layers
        fields = {
            "R² of differences": "r2_diff",
            "the same, shuffled pairs": "r2_shuffled",
            "split half": "split_half",
            "cosine with native": "cos_native",
            "energy of the direction read": "energy_in",
        }
        return plots.curves(
            [
                Series(
                    name,
                    [getattr(one, field) for one in rows],
                    role="control" if field == "r2_shuffled" else "other",
                )
                for name, field in fields.items()
            ],
            [one.target for one in rows],
            title="The map on held-out questions",
            x_title="Target layer",
            zero_line=True,
        )

    def _strength_figure(self) -> Figure:
        strengths = [row[0] for row in self.curve]
        return plots.curves(
            [
                Series("outcome on dev questions", [row[1] for row in self.curve], role="post"),
                Series("repeated text", [row[2] for row in self.curve], role="control"),
            ],
            strengths,
            title="What a strength does",
            x_title="α",
            y_title="Share",
        )


def _number(value: Estimate | float) -> float:
    return value.value if isinstance(value, Estimate) else value


def sentences(result: TransferResult) -> list[str]:
    """The outcome in plain words."""
    own, locked = result.condition(UNLOCK), result.condition("locked")
    said = [
        f"{result.setting.target} writes in the unlocked manner on {own.behaves} of test questions when steered "
        f"with the "
        f"direction of {result.setting.source[1]} (locked {locked.behaves}), and is right on {own.right} (locked "
        f"{locked.right})."
    ]
    for outcome, what in (("behaves", "the manner"), ("right", "right answers")):
        strongest = max(result.controls, key=lambda one: getattr(one, outcome).value)
        furthest = max([draw for one in result.controls for draw in one.draws], default=float("nan"))
        beats = result.beats_controls(outcome)  # type: ignore[arg-type]
        extra = f"; the furthest random direction {furthest:.2f}" if outcome == "behaves" else ""
        said.append(
            f"For {what} that is {'more than' if beats else 'not more than'} every control does (strongest: "
            f"{strongest.name}, "
            f"{getattr(strongest, outcome)}{extra})."
        )
    ceilings = [one for one in result.conditions if one.role == "ceiling"]
    if ceilings:
        parts = [f"{one.name} {one.behaves} and {one.right}" for one in ceilings]
        said.append(f"Ceilings (manner and right answers): {'; '.join(parts)}.")
    if forced := [one for one in result.conditions if one.role == "forced"]:
        parts = [f"{one.name} {one.behaves} and {one.right}" for one in forced]
        said.append(
            f"The unsteered target given only the first tokens of the steered answers (manner and right answers): "
            f"{'; '.join(parts)}. Where that is as much, the direction does no more than choose them."
        )
    said.append(result.report.sentence)
    if (sharp := result.sharpening) is not None:
        said.append(
            f"The locked target has a right answer among {sharp.k} samples in {sharp.at_k} of questions, so what the "
            f"steered one gets right ({sharp.steered}) is "
            f"{'within' if sharp.steered.low <= sharp.at_k.high else 'beyond'} "
            "its own reach."
        )
    return said + list(result.missing.values())


def headline(result: TransferResult) -> Headline:
    """Manner under UNLOCK beside the strongest control."""
    strongest = max(result.controls, key=lambda one: one.behaves.value)
    return Headline(
        what=f"{result.setting.target} unlocked from {result.setting.source[0]}: answers in the unlocked manner",
        value=result.condition(UNLOCK).behaves,
        control=strongest.behaves,
        control_name=strongest.name,
    )
