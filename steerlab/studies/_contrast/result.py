"""The result of the study of contrasts: its numbers, contrast by contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.readouts.agreement import Agreement
from steerlab.record import Record
from steerlab.results import Headline, StudyResult, Table
from steerlab.statistics import Estimate
from steerlab.studies._contrast.figures import figures
from steerlab.studies._contrast.probes import Cell, LayerAccuracy
from steerlab.studies._contrast.sentences import headline
from steerlab.studies._contrast.steering import Steering
from steerlab.studies._contrast.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Change(Record):
    """What differs between the models, post minus base, paired by text and resampled by group."""

    what: str
    unit: str
    value: Estimate

    @property
    def changed(self) -> bool:
        """Whether the interval excludes zero."""
        return self.value.excludes(0.0)


class Outcome(Record):
    """One contrast in two models.

    ends: the class that the direction points to, and the other. texts, groups, matched: how many; matched pairs are
    groups. words: accuracy of a bag of words on the same held-out texts. best: by model the layer where the direction
    of all texts works best. by_layer: each model's own direction. cells: every direction on every model's states, at
    layers chosen without the held-out texts. agreement: cosines by layer. steering: every direction in every model.
    changes: post minus base. missing: parts that were not run, and why.
    """

    name: str
    ends: tuple[str, str]
    texts: int
    groups: int
    matched: int
    words: Estimate
    best: dict[str, int]
    by_layer: tuple[LayerAccuracy, ...]
    cells: tuple[Cell, ...]
    agreement: tuple[Agreement, ...] = ()
    steering: tuple[Steering, ...] = ()
    changes: tuple[Change, ...] = ()
    missing: dict[str, str]

    def cell(self, direction: str, states: str) -> Cell | None:
        """One model's direction on a model's states, decided at the middle of the model read; None where not run."""
        wanted = (direction, states, "model read")
        return next((c for c in self.cells if (c.direction, c.states, c.midpoint) == wanted), None)

    def own(self, model: str) -> Cell:
        """A model's own direction on its held-out states."""
        cell = self.cell(model, model)
        assert cell is not None  # every model reads its own
        return cell

    def steered(self, direction: str, model: str) -> Steering | None:
        """The effect of a direction in a model; None where it was not run."""
        return next((s for s in self.steering if (s.direction, s.model) == (direction, model)), None)

    @property
    def identified(self) -> tuple[str, ...]:
        """The models in which the direction is read above chance."""
        return tuple(model for model in self.best if self.own(model).above_chance)

    @property
    def at_best(self) -> Agreement | None:
        """The cosine at the layer that works best in the post-trained model."""
        return next((row for row in self.agreement if row.layer == self.best["post"]), None)

    @property
    def verdict(self) -> str:
        """In a few words: where there is a direction, whether it is shared, where it steers."""
        known = self.identified
        if not known:
            return "not identified"
        crossed = [
            cell for cell in self.cells if cell.direction != cell.states and cell.midpoint == "model read"
        ]
        if len(known) == 1:
            where = f"in {known[0]} only"
        elif not crossed:
            where = "in both, not comparable"
        else:
            where = "shared" if all(cell.above_chance for cell in crossed) else "in both, not shared"
        return f"{where}; {self._steers(known)}"

    def _steers(self, known: tuple[str, ...]) -> str:
        """What their own directions do to these models, in words."""
        steered = {model: own for model in known if (own := self.steered(model, model)) is not None}
        able = [model for model, own in steered.items() if own.above_control]
        if able:
            return f"steers {' and '.join(able)}"
        if len(steered) == 2:
            return "steers neither"
        return f"does not steer {' '.join(steered)}" if steered else "not steered"


class ContrastResult(StudyResult):
    """Contrasts of one's own in two models; `missing` says which could not be read, and why."""

    study: str = "contrast"
    contrasts: tuple[Outcome, ...]
    missing: dict[str, str]

    def __getitem__(self, name: str) -> Outcome:
        """One contrast. Raises KeyError for an unknown one."""
        found = {outcome.name: outcome for outcome in self.contrasts}
        return found[name]

    def headlines(self) -> list[Headline]:
        """One a contrast."""
        return [headline(one) for one in self.contrasts]

    def tables(self) -> list[Table]:
        """Verdicts, accuracies by layer and across models, cosines, steering with its price, and changes."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """All at a glance; of each accuracy by layer, cosine by layer, and steering beside random directions."""
        return figures(self)
