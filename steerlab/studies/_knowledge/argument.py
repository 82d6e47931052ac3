"""What the knowledge study says on its page: the answer in a sentence, one figure, captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Argument, KeyFigure, KeyRow, Page
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from steerlab.studies._knowledge.result import KnowledgeResult

_RESTORED = (
    "Facts whose subject was blurred by noise: what the right word's probability gains where one clean state is put "
    "back, by layer and token, for the stream, MLPs and attention."
)
CAPTIONS = {
    "maps": "Effect of the true prompt's state, put into the false prompt's run at one layer and token, on the "
    "answer (1: the whole way to the true prompt's answer). The last panel is the difference; frames mark cells that "
    "differ with false discovery held at 5 %.",
    "crossed": "Effect of one model's states put into the other model's runs, by layer and token: where these maps "
    "look like each model's own, the two models hold the answer in the same place and form.",
    "recovery": "Effect of the other model's states as a share of the effect of the own ones, at the cells where the "
    "own ones do most, beside states of another pair and a random shift. Whiskers: 95 % intervals.",
    "noise_base": _RESTORED,
    "noise_post": _RESTORED,
}


def argument(result: KnowledgeResult, default: Argument) -> Argument:
    """How alike the two maps are, and in how many cells they differ."""
    maps = result.comparison
    if result.status != "done" or maps is None:
        return default
    differ, cells = len(result.significant), len(maps.cells)
    return default.model_copy(
        update={
            "answer": f"The maps of base and post, layer by token, correlate {maps.overall}; {differ} of "
            f"{cells} cells differ.",
            "compared": default.compared
            or f"Base's map moved by one layer correlates {maps.published_shifted.correlation:.2f} with itself, so a "
            "shift of one layer would be seen.",
            "would_change": "Cells at the subject or object whose effect differs between the models with false "
            "discovery held at 5 %, or two halves of one model that agree better than the two models do.",
        }
    )


def key_figure(result: KnowledgeResult) -> KeyFigure | None:
    """The correlation of the two maps, beside that of a map moved by one layer."""
    maps = result.comparison
    if maps is None:
        return None
    return KeyFigure(
        what="Correlation of two maps, layer by token",
        rows=(
            KeyRow(name="base and post", value=maps.overall),
            KeyRow(
                name="base moved by one layer",
                value=Estimate(value=maps.published_shifted.correlation),
                role="control",
            ),
        ),
        limits=(min(0.0, maps.overall.value, maps.published_shifted.correlation), 1.0),
    )


PAGE = Page(CAPTIONS, argument, key_figure)
