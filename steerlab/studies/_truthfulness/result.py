"""The result of the truthfulness study: its numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from steerlab.readouts.agreement import Agreement
from steerlab.record import Record
from steerlab.results import Page, StudyResult, Table
from steerlab.statistics import Number
from steerlab.studies._truthfulness.answers import Labels
from steerlab.studies._truthfulness.argument import PAGE
from steerlab.studies._truthfulness.figures import figures
from steerlab.studies._truthfulness.price import SteeringPrice
from steerlab.studies._truthfulness.probes import OWN, Accuracy, Centring
from steerlab.studies._truthfulness.reasons import Tried
from steerlab.studies._truthfulness.steering import Steering
from steerlab.studies._truthfulness.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Setting(Record):
    """What was read and asked, so that the numbers can be made again."""

    size: str
    seed: int
    preset: str
    estimator: str
    models: dict[str, str]
    statements: int
    topics: tuple[str, ...]
    by_topic: bool
    answers: tuple[str, str]


class Point(Record):
    """A held-out statement's place along each model's direction, in class gaps from the decision point."""

    topic: str
    true: bool
    negated: bool
    cluster: int
    places: dict[str, Number]


class TruthfulnessResult(StudyResult):
    """Truth in two models: probes, cosines, transfer, and the steering of the answer.

    chosen: for each model the probe's layer in each fold (every topic is one). by_layer: each model's own probe on
    held-out topics. transfer: every probe on every model's states, also by kind of statement and by topic. agreement:
    cosines by layer. labels: how well each model labels statements itself. steering: every direction in every model;
    prices: the same edits on plain text. coordinates: by model, those of the probe at each layer. reasons: what was
    tried where a model has no direction. missing: parts that were not run, and why.
    """

    page: ClassVar[Page | None] = PAGE
    study: str = "truthfulness"
    setting: Setting
    chosen: dict[str, tuple[int, ...]]
    by_layer: tuple[Accuracy, ...]
    transfer: tuple[Accuracy, ...]
    agreement: tuple[Agreement, ...] = ()
    labels: tuple[Labels, ...] = ()
    steering: tuple[Steering, ...] = ()
    prices: tuple[SteeringPrice, ...] = ()
    points: tuple[Point, ...] = ()
    coordinates: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    reasons: tuple[Tried, ...] = ()
    missing: dict[str, str]

    def own(self, model: str) -> Accuracy:
        """A model's own probe on its held-out statements, at the chosen layers."""
        return self.cell(model, model)

    def cell(
        self,
        probe: str,
        states: str,
        *,
        centred_by: Centring = OWN,
        statements: str = "all",
        topic: str = "all",
    ) -> Accuracy:
        """One model's probe on another's held-out states."""
        wanted = (probe, states, centred_by, statements, topic)
        return next(
            cell
            for cell in self.transfer
            if (cell.probe, cell.states, cell.centred_by, cell.statements, cell.topic) == wanted
        )

    @property
    def crossed(self) -> bool:
        """Whether probes of one model were tried on states of the other."""
        return any(cell.probe != cell.states for cell in self.transfer)

    def layer(self, model: str) -> int:
        """The layer chosen in most folds."""
        return Counter(self.chosen[model]).most_common(1)[0][0]

    def tables(self) -> list[Table]:
        """Accuracy by layer, cosines, transfer by kind and topic, projections, own labels, steering and its price."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Accuracy by layer; where a direction was found also cosines, transfer, topics, projections and steering."""
        return figures(self)
