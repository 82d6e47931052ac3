"""Questions with several correct and several incorrect answers, and the statements they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerlab.datasets.statement_set import Statement, StatementSet
from steerlab.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its correct and its incorrect answers, and the category it belongs to.

    Raises:
        DatasetError: either list of answers is empty.
    """

    text: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    category: str = "questions"

    def __post_init__(self) -> None:
        if not self.correct or not self.incorrect:
            raise DatasetError("A question needs at least one correct and one incorrect answer.")


def question_statements(questions: Sequence[Question]) -> StatementSet:
    """A statement "Q: question A: answer" for every answer, true where it is a correct one.

    This is how inference-time intervention reads TruthfulQA (Li et al., 2023, section 3). The question is the subject
    (`StatementSet.subjects` are the groups that a split must not tear apart), the answer the object, the category the
    topic. An answer that stands in both lists is left out.
    """
    return StatementSet(
        _statement(question, answer, label)
        for question in questions
        for label, answers in ((True, question.correct), (False, question.incorrect))
        for answer in answers
        if not (answer in question.correct and answer in question.incorrect)
    )


def _statement(question: Question, answer: str, label: bool) -> Statement:
    start = len("Q: ") + len(question.text)
    text = f"Q: {question.text} A: {answer}"
    spans = {"subject": (len("Q: "), start), "object": (len(text) - len(answer), len(text))}
    return Statement(text, label, question.category, spans=spans)
