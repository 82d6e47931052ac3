"""The numbers of the parts beside the branching factor."""

from __future__ import annotations

from steerlab.readouts.resampling import Resampled
from steerlab.record import Record, Role
from steerlab.statistics import Estimate, Number
from steerlab.studies._branching.aep import Panels
from steerlab.studies._branching.attribution import Attribution
from steerlab.studies._branching.votes import Votes

GAMMA = 0.4


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
