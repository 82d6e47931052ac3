"""What the truthfulness study says on its page: the answer in a sentence, one figure, captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Argument, KeyFigure, KeyRow, Page
from steerlab.statistics import Estimate, percent

if TYPE_CHECKING:
    from steerlab.readouts.agreement import Agreement
    from steerlab.studies._truthfulness.result import TruthfulnessResult

CAPTIONS = {
    "accuracy": "Share of held-out statements that a linear probe labels right, by layer; the probe saw other topics "
    "only. Grey: probes of shuffled labels. Bands: 95 % intervals over statements.",
    "cosine": "Cosine of the truth directions of base and post by layer, beside the most that two halves of one "
    "model's statements reach (ceiling), and what shuffled labels and random directions give. Bands: 95 % intervals.",
    "transfer": "Share of held-out statements labelled right by each model's probe (rows) on each model's states "
    "(columns). Equal rows: one model's probe reads the other as well as its own. Brackets: 95 % intervals.",
    "steering": "How far adding a truth direction moves the answer towards the other one (0: not at all, 1: all the "
    "way), beside random directions of the same length. Whiskers: 95 % intervals.",
}


def argument(result: TruthfulnessResult, default: Argument) -> Argument:
    """The cosine of the two directions beside its ceiling, and whether one probe reads both models."""
    at = _chosen(result)
    if result.status != "done" or at is None:
        return default
    carried = ""
    if result.crossed and result.own("base").above_chance and result.own("post").above_chance:
        crossed, own = result.cell("base", "post").accuracy, result.own("post").accuracy
        carried = (
            f"; base's probe labels {percent(crossed.value)} of post's statements right (its own: "
            f"{percent(own.value)})"
        )
    return default.model_copy(
        update={
            "answer": f"{_shared(at)} (layer {at.layer}){carried}.",
            "compared": f"{default.compared} On different halves of the statements the two directions have "
            f"cosine {at.crossed}, where one model with itself has {at.ceiling}. On the same statements it is "
            f"{at.cosine}, and any random labelling gives {at.shuffled}.",
            "would_change": "A cosine across halves that stays below the ceiling, or a probe of one model that fails "
            "on the states of the other, would say that post-training moved the direction.",
        }
    )


def key_figure(result: TruthfulnessResult) -> KeyFigure | None:
    """The cosine across halves between its ceiling and its nulls; None where there is no pair of directions."""
    at = _chosen(result)
    if at is None:
        return None
    return KeyFigure(
        what=f"Cosine of two truth directions, layer {at.layer}",
        rows=(
            KeyRow(name="base and post, different halves", value=at.crossed),
            KeyRow(name="one model, two halves (ceiling)", value=at.ceiling),
            KeyRow(
                name="random directions",
                value=Estimate(value=0.0, low=-at.random, high=at.random),
                role="control",
            ),
        ),
    )


def _shared(at: Agreement) -> str:
    """Whether the directions are one, as far as two halves of the statements can tell."""
    if at.ceiling.low <= at.random:
        return (
            "Whether base and post share a truth direction is not identified: two halves of the statements give one "
            "model two directions"
        )
    how = "as alike as" if at.crossed.high >= at.ceiling.value else "less alike than"
    return (
        f"The truth directions of base and post are {how} one model's on two halves: cosine {at.crossed.value:.2f} of "
        f"{at.ceiling.value:.2f}"
    )


def _chosen(result: TruthfulnessResult) -> Agreement | None:
    """The row of the layer chosen in the post-trained model, where directions were compared."""
    return next((row for row in result.agreement if row.layer == result.layer("post")), None)


PAGE = Page(CAPTIONS, argument, key_figure)
