"""What the confidence study says on its page: the answer in a sentence, one figure, captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Argument, KeyFigure, KeyRow, Page

if TYPE_CHECKING:
    from steerlab.studies._confidence.result import ConfidenceResult

_BINS = (
    "Share right against mean confidence in bins of equal width; on the dotted diagonal a model is as often right as "
    "it is sure. Below: answers a bin. Whiskers: 95 % intervals."
)
CAPTIONS = {
    "text_confidence": "How unsure each model is of the next token of plain text: the share of tokens by the entropy "
    "of the law they are drawn from. Further left: surer.",
    "answer_confidence": f"Statements answered with one of two words. {_BINS}",
    "choice_confidence": f"Multiple choice, before and after one temperature fitted on other questions. {_BINS}",
    "explained_gap": "Share of the change of entropy that each set of last-layer neurons takes away when the one model "
    "is given the other's activations, beside random sets of like norm. Whiskers: 95 % intervals, those beyond the "
    "frame cut there; the table holds their ends.",
}


def argument(result: ConfidenceResult, default: Argument) -> Argument:
    """Entropy on plain text in both models, and whether its change outlasts the control."""
    if result.status != "done" or len(result.texts) != 2 or not result.changes:
        return default
    main = result.changes[0]
    base, post = result.texts
    if any(row.untrained for row in result.texts):
        return default
    verdict = (
        f"{'less' if main.value.value > 0 else 'more'} sure"
        if main.identified
        else "as sure, within its control"
    )
    return default.model_copy(
        update={
            "answer": f"On plain text the post-trained model is {verdict}: its next token has "
            f"{post.entropy.value:.2f} nats of entropy, the base model's {base.entropy.value:.2f}.",
            "would_change": "An interval of the paired change that holds zero, or a change no larger than the one of "
            "models swapped at random.",
        }
    )


def key_figure(result: ConfidenceResult) -> KeyFigure | None:
    """Entropy of the next token on plain text in each model."""
    rows = [KeyRow(name=row.model, value=row.entropy, role=row.model) for row in result.texts]
    return (
        KeyFigure(what="Entropy of the next token of plain text (nats)", rows=tuple(rows)) if rows else None
    )


PAGE = Page(CAPTIONS, argument, key_figure)
