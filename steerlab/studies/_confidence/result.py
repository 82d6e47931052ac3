"""The result of the confidence study: its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from steerlab.neurons.overlap import PairNeurons
from steerlab.readouts.confidence import AnswerConfidence, TextConfidence
from steerlab.readouts.questions import ANSWERS
from steerlab.results import Page, StudyResult, Table
from steerlab.studies._confidence.argument import PAGE
from steerlab.studies._confidence.changes import Change
from steerlab.studies._confidence.choices import Choices
from steerlab.studies._confidence.depth import Depth
from steerlab.studies._confidence.figures import figures
from steerlab.studies._confidence.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class ConfidenceResult(StudyResult):
    """Confidence of a pair on texts and on statements, and its entropy neurons.

    form: how statements were asked. words: those for true and false that were asked for.
    """

    page: ClassVar[Page | None] = PAGE
    study: str = "confidence"
    texts: list[TextConfidence]
    form: str
    words: tuple[str, str] = ANSWERS[0]
    answers: list[AnswerConfidence]
    changes: list[Change]
    neurons: PairNeurons
    same_tokenizer: bool
    choices: Choices | None = None
    depth: Depth | None = None

    def tables(self) -> list[Table]:
        """Texts, answers, changes, multiple choice, neurons and what explains the entropy gap, with controls."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Entropy distributions, reliability diagrams, neurons by their weights, the explained gap."""
        return figures(self)
