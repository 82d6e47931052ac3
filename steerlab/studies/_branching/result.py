"""The result of the branching study: its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from steerlab.models.thinking import Thinking
from steerlab.record import Role
from steerlab.results import Page, StudyResult, Table
from steerlab.statistics import Estimate
from steerlab.studies._branching.argument import PAGE
from steerlab.studies._branching.figures import figures
from steerlab.studies._branching.measures import Contrast, Measured
from steerlab.studies._branching.parts_result import Parts
from steerlab.studies._branching.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class BranchingResult(StudyResult):
    """Branching factors of a pair with their controls.

    law: what was sampled from. amounts: which amounts it ran with, "" in results of earlier versions. measured: every
    model in every rendering. contrasts: paired ratios, the effect first.
    gains: of each model on the prompts' own next tokens. steps: new tokens at most. parts: what stands beside.
    thinking: what stands of a thinking block before the post-trained model's answers in its chat template.
    """

    page: ClassVar[Page | None] = PAGE
    study: str = "branching"
    law: str
    amounts: str = ""
    measured: list[Measured]
    contrasts: list[Contrast]
    gains: dict[Role, Estimate]
    same_tokenizer: bool
    steps: int
    parts: Parts | None = None
    thinking: Thinking = "none"

    def tables(self) -> list[Table]:
        """Factors, ratios with controls, checks, the curve by position, and the parts."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Bars with controls, curves by position, and the parts."""
        return figures(self)
