"""What the parts beside the branching factor hand on: rows, tables, figures and sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.readouts.resampling import Resampled
from steerlab.record import Record
from steerlab.results import Table
from steerlab.statistics import Estimate, Number
from steerlab.studies._branching.aep import Panels
from steerlab.studies._branching.attribution import Attribution
from steerlab.studies._branching.votes import Votes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Role = Literal["BASE", "POST"]
GAMMA = 0.4
_FAR = 3.5  # standard errors that chance does not reach in a handful of places
_SPREADS: tuple[tuple[str, Literal["other", "control"]], ...] = (
    ("spread", "other"),
    ("predicted", "control"),
)


class SetRow(Record):
    """One prompt set at one level: both factors and their paired ratio."""

    name: str
    level: int
    prompts: int
    base: Estimate
    post: Estimate
    ratio: Estimate


class LegacyRow(Record):
    """The published aggregations of a model's record on open prompts, beside the printed formula."""

    model: Role
    printed: Number
    l0: Number
    l1: Number
    l2: Number


class NudgeRow(Record):
    """Branching factors along nudged text: of the process, of the base law everywhere, and away from nudges."""

    name: str
    nudged: Number
    process: Estimate
    base: Estimate
    away: Estimate
    share: tuple[Number, ...]


class CommitmentRow(Record):
    """One position of the resampling of one model."""

    model: Role
    at: Resampled


class VotesRow(Record):
    """Majority of k answers of one model, beside its branching factor on those questions."""

    model: Role
    votes: Votes
    factor: Estimate


class Parts(Record):
    """Everything beside the factor; empty where `missing` says why."""

    sets: tuple[SetRow, ...] = ()
    attribution: tuple[Attribution, ...] = ()
    panels: tuple[Panels, ...] = ()
    legacy: tuple[LegacyRow, ...] = ()
    nudging: tuple[NudgeRow, ...] = ()
    resampling: tuple[CommitmentRow, ...] = ()
    votes: tuple[VotesRow, ...] = ()
    missing: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """One for each part that was run."""
        made = []
        if self.sets:
            rows = [[one.name, one.level, one.prompts, one.base, one.post, one.ratio] for one in self.sets]
            made.append(
                Table(
                    key="prompt_sets",
                    title="Branching factor by prompt set and level",
                    columns=["prompts", "level", "number", "BASE", "POST", "ratio"],
                    rows=rows,
                    note="A level shows more of the same text. Ratios are paired by prompt.",
                )
            )
        if self.attribution:
            made.append(
                Table(
                    key="attribution",
                    title="What moves the branching factor",
                    columns=["factor", "from", "to", "factor on BF", "p", "published share"],
                    rows=[
                        [one.factor, *one.levels, one.change.transform(math.exp), one.p_value, one.share]
                        for one in self.attribution
                    ],
                    note="Paired within prompt and everything else; p by sign changes of whole prompts. The "
                    "published share is "
                    "unsigned and gives noise a part.",
                )
            )
        if self.legacy:
            made.append(
                Table(
                    key="legacy",
                    title="What the published aggregations would say of this record",
                    columns=["model", "printed formula", "L0", "L1", "L2"],
                    rows=[[one.model, one.printed, one.l0, one.l1, one.l2] for one in self.legacy],
                    note="L0: position curves and bars of the first version; L1: AEP summary; L2: ratios of the "
                    "revision. See the "
                    "methods page for their defects.",
                )
            )
        if self.nudging:
            made.append(
                Table(
                    key="nudging",
                    title=f"The base model, nudged where its likeliest token is below {GAMMA:g}",
                    columns=[
                        "nudged by",
                        "share nudged",
                        "BF of the process",
                        "BF of the base law",
                        "3 steps after a nudge",
                    ],
                    rows=[[one.name, one.nudged, one.process, one.base, one.away] for one in self.nudging],
                    note="The process is narrower by construction: nudged steps have no entropy. Whether the "
                    "base model becomes "
                    "sure of itself is the last column.",
                )
            )
        if self.resampling:
            made.append(
                Table(
                    key="resampling",
                    title="Answers taken up again after t tokens (sums, right or wrong)",
                    columns=[
                        "model",
                        "t",
                        "right before",
                        "right after",
                        "change",
                        "commitment",
                        "had ended",
                    ],
                    rows=[
                        [
                            row.model,
                            row.at.t,
                            row.at.before,
                            row.at.after,
                            row.at.change,
                            row.at.commitment,
                            row.at.ended,
                        ]
                        for row in self.resampling
                    ],
                    note="The change must be zero within its interval. Commitment: share of the variance of "
                    "outcomes between "
                    "prefixes of one question; empty where outcomes do not vary.",
                )
            )
        if self.votes:
            made.append(
                Table(
                    key="votes",
                    title="Majority of k sampled answers (sums)",
                    columns=["model", "k", "right", "deviation", "beyond independent answers", "BF"],
                    rows=[
                        [
                            row.model,
                            row.votes.k,
                            row.votes.accuracy,
                            row.votes.deviation,
                            row.votes.excess,
                            row.factor,
                        ]
                        for row in self.votes
                    ],
                    note="The deviation (published measure) falls with accuracy by arithmetic; the next column "
                    "takes that out.",
                )
            )
        return made

    def figures(self) -> dict[str, Figure]:
        """Sets as bars, AEP panels, shares of nudged tokens, commitment by position."""
        made: dict[str, Figure] = {}
        if self.sets:
            made["prompt_sets"] = plots.bars(
                [f"{one.name}, level {one.level}" for one in self.sets],
                [
                    Series.of("BASE", [one.base for one in self.sets]),
                    Series.of("POST", [one.post for one in self.sets]),
                ],
                title="Branching factor by prompt set",
                y_title="Branching factor",
            )
        if self.panels:
            made["aep_means"], made["aep_gap"], made["aep_spread"] = self._aep()
        if any(len(one.share) for one in self.nudging):
            shown = [one for one in self.nudging if "prefix" not in one.name]
            made["nudged_share"] = plots.curves(
                [Series(one.name, one.share) for one in shown],
                np.arange(1, 1 + max(len(one.share) for one in shown)),
                title="Share of nudged tokens by position",
                x_title="Position in the output (tokens)",
                y_title="Share of running sequences",
                y_range=(0.0, 1.02),
            )
        known = [row for row in self.resampling if math.isfinite(row.at.commitment.value)]
        if known:
            made["commitment"] = plots.curves(
                [
                    Series.of(
                        role,
                        [row.at.commitment for row in known if row.model == role],
                        x=[row.at.t for row in known if row.model == role],
                    )
                    for role in dict.fromkeys(row.model for row in known)
                ],
                title="How much of an answer's outcome is settled by its first tokens",
                x_title="Tokens kept",
                y_title="Share of variance between prefixes",
                zero_line=True,
            )
        return made

    def _aep(self) -> tuple[Figure, Figure, Figure]:
        at = np.arange(1, 1 + max(len(one.gap) for one in self.panels))
        means = [
            Series(f"{one.name}: {what}", getattr(one, what), x=at[: len(one.gap)])
            for one in self.panels
            for what in ("entropy", "surprisal")
        ]
        gaps = [
            Series(one.name, one.gap, [-b for b in one.band], one.band, x=at[: len(one.gap)])
            for one in self.panels
        ]
        spreads = [
            Series(f"{one.name}: {what}", getattr(one, what), x=at[: len(one.gap)], role=role)
            for one in self.panels
            for what, role in _SPREADS
        ]
        x_title = "Position in the output (tokens)"
        return (
            plots.curves(
                means,
                title="Running means of entropy and surprisal, same sequences",
                x_title=x_title,
                y_title="Nats",
            ),
            plots.curves(
                gaps,
                title="Surprisal minus entropy, inside the martingale band around zero",
                x_title=x_title,
                y_title="Nats",
                zero_line=True,
            ),
            plots.curves(
                spreads,
                title="Spread of the running mean surprisal, and what its autocovariance predicts",
                x_title=x_title,
                y_title="Nats",
            ),
        )

    @property
    def sentences(self) -> list[str]:
        """The parts in plain words."""
        said = []
        if self.sets:
            ratios = [one.ratio.value for one in self.sets]
            clear = sum(one.ratio.excludes(1) for one in self.sets)
            said.append(
                f"Over {len(self.sets)} prompt sets and levels the ratio goes from {min(ratios):.2f} to "
                f"{max(ratios):.2f}; "
                f"{clear} of the intervals exclude 1."
            )
        if len(self.nudging) > 1:
            own, plain = self.nudging[0], self.nudging[-1]
            random = next(one for one in self.nudging if one.name == "random tokens")
            clear = own.away.high < random.away.low
            said.append(
                f"Nudged by the post-trained model on {own.nudged:.0%} of tokens, the base law has a branching "
                f"factor of "
                f"{own.away} three steps after a nudge, {'below' if clear else 'not below'} what random tokens do "
                f"({random.away}); never nudged it has {plain.base} over all its steps, the unsure ones included."
            )
        moved = [row for row in self.resampling if abs(row.at.z) > _FAR]
        if self.resampling:
            said.append(
                "Taking answers up again changes no accuracy, as it must."
                if not moved
                else f"Resampling changed accuracy at {len(moved)} of {len(self.resampling)} places, which it "
                f"must not: look at the "
                "sampling."
            )
        return said + list(self.missing)
