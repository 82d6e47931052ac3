"""What the knowledge study hands on: gates, maps, their comparison, recovery and noise traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steerlab.record import Record
from steerlab.results import Page, StudyResult, Table
from steerlab.statistics import Estimate, Number
from steerlab.studies._knowledge.argument import PAGE
from steerlab.studies._knowledge.figures import figures
from steerlab.studies._knowledge.noise import NoiseTrace
from steerlab.studies._knowledge.recovery import LEAST, Recovery
from steerlab.studies._knowledge.statistics import CellDifference, Comparison
from steerlab.studies._knowledge.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Setting(Record):
    """What was run.

    made: pairs whose prompts are aligned. traced: of them mapped. reused: statements in more than one pair. left_out:
    statements without a pair, by reason. shots: labelled lines before every statement.
    """

    size: str
    seed: int
    preset: str
    models: dict[str, str]
    answers: tuple[str, str]
    differ: Literal["subject", "object"]
    shots: int
    columns: str
    made: int
    traced: int = 0
    reused: int
    left_out: dict[str, int]
    topics: tuple[str, ...]


class Gate(Record):
    """Whether a model knows the answers: share right after true prompts, after false ones, and of pairs on both."""

    model: str
    pairs: int
    right: int
    true_side: Estimate
    false_side: Estimate
    both: Estimate


class EffectMap(Record):
    """A map of one target with states of one source.

    rows: layers (or heads). knowledge: columns of subject and object tokens. layers: rows other than the embedding's.
    raw: mean logit difference [row][column]. effects: mean normalised indirect effect.
    """

    source: str
    target: str
    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    knowledge: tuple[int, ...]
    layers: tuple[int, ...]
    raw: tuple[tuple[Number, ...], ...]
    effects: tuple[tuple[Estimate, ...], ...]

    @property
    def values(self) -> NDArray[np.float64]:
        """Mean effects [row, column]."""
        return np.array([[cell.value for cell in row] for row in self.effects])

    @property
    def carries(self) -> bool:
        """Whether a subject or object token carries a tenth of the effect behind some block."""
        top = self.peaks(1, self.knowledge)
        return bool(top) and self.effects[top[0][0]][top[0][1]].value >= LEAST

    def peaks(self, n: int = 1, among: tuple[int, ...] | None = None) -> list[tuple[int, int]]:
        """The cells with the largest effects behind a block, of some columns."""
        columns = range(len(self.columns)) if among is None else among
        cells = [
            (row, column)
            for row in self.layers
            for column in columns
            if np.isfinite(self.effects[row][column].value)
        ]
        return sorted(cells, key=lambda at: -self.effects[at[0]][at[1]].value)[:n]


class TopicPeak(Record):
    """One topic's largest mean effect at a subject or object token behind a block, and at the other tokens but the
    last."""

    model: str
    topic: str
    pairs: int
    knowledge: tuple[str, str, Estimate] | None
    other: tuple[str, str, Estimate] | None


class Spent(Record):
    """Token-layers that a map took, what one whole pass a cell would take, and how runs were taken up."""

    token_layers: int
    naive: int
    saving: float
    mode: str


class KnowledgeResult(StudyResult):
    """Where two models hold what they know, and whether one's knowledge works in the other."""

    page: ClassVar[Page | None] = PAGE
    study: str = "knowledge"
    setting: Setting
    gates: tuple[Gate, ...]
    maps: tuple[EffectMap, ...] = ()
    topics: tuple[TopicPeak, ...] = ()
    comparison: Comparison | None = None
    recovery: tuple[Recovery, ...] = ()
    noise: tuple[NoiseTrace, ...] = ()
    spent: dict[str, Spent] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)

    def map(self, source: str, target: str, kind: str = "resid_post") -> EffectMap:
        """One map. Raises KeyError."""
        return {(effects.source, effects.target, effects.kind): effects for effects in self.maps}[
            source, target, kind
        ]

    def own(self, kind: str = "resid_post") -> dict[str, EffectMap]:
        """Each model's own map of one kind."""
        return {
            effects.target: effects
            for effects in self.maps
            if effects.source == effects.target and effects.kind == kind
        }

    @property
    def significant(self) -> tuple[CellDifference, ...]:
        """Cells in which the two maps differ, false discovery held at 5 %."""
        return (
            ()
            if self.comparison is None
            else tuple(cell for cell in self.comparison.cells if cell.significant)
        )

    def tables(self) -> list[Table]:
        """Gate, topics, agreement, differing cells, recovery, noise, cost."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """The maps with their difference, maps of other kinds, cross-model maps, recovery, noise."""
        return figures(self)
