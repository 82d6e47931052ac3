"""The result of the study of stages: every quantity over the stages, its steps, and what could not be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import StudyResult, Table
from steerlab.studies._stages.changes import Trajectory
from steerlab.studies._stages.figures import figures
from steerlab.studies._stages.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class StagesResult(StudyResult):
    """Stages in their order and what each step changed.

    Attributes:
        labels: of the stages, first to last.
        models: names of the models, likewise.
        controls: the contrasts that training did not aim at.
        trajectories: a quantity each.
        missing: by stage and study, why nothing was measured.
    """

    study: str = "stages"
    labels: tuple[str, ...]
    models: tuple[str, ...]
    controls: tuple[str, ...]
    trajectories: tuple[Trajectory, ...]
    missing: dict[str, dict[str, str]]

    def __getitem__(self, name: str) -> Trajectory:
        """The trajectory of a quantity by its name ("refused: harmful requests"). Raises KeyError for no such one."""
        found = {one.quantity.name: one for one in self.trajectories}
        return found[name]

    def tables(self) -> list[Table]:
        """Every change, every value at every stage, the controls, and what could not be measured."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """All quantities in units of their noise, and the trajectories question by question."""
        return figures(self)

    def captions(self) -> dict[str, str]:
        """Captions by figure."""
        seen = {
            "stages": "Change of each quantity since the first stage, in units of the noise of that change (its "
            "standard error over prompts): within ±2 nothing is seen. Blue is more, orange less. Empty: not comparable."
        }
        return {
            key: seen.get(
                key,
                "Value at each stage with its 95 % interval over prompts. Dotted: the mean of the same measure on "
                "contrasts that training did not aim at, from the least to the greatest of them.",
            )
            for key in self.figures()
        }
