"""What the branching study says on its page: the answer in a sentence, one figure, captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Argument, KeyFigure, KeyRow, Page

if TYPE_CHECKING:
    from steerlab.studies._branching.result import BranchingResult

CAPTIONS = {
    "branching_factor": "Ways in which an output goes on, a token (branching factor), by how the prompt is written. A "
    "difference that stays in the plain rendering is not the format's. Whiskers: 95 % intervals over prompts.",
    "by_position": "Ways in which an output goes on by position in it, over the sequences still running there. "
    "Bands: 95 % intervals.",
    "prompt_sets": "The branching factor by set of prompts and level of instruction. Whiskers: 95 % intervals.",
    "nudged_share": "Share of the tokens up to each position that somebody put in place of the base model's own (it is "
    "nudged where its likeliest token is improbable), by who nudges.",
}


def argument(result: BranchingResult, default: Argument) -> Argument:
    """Both factors with their ratio, and the ratio in the format that both share."""
    if result.status != "done" or len(result.measured) < 2 or len(result.contrasts) < 3:
        return default
    base, own = result.measured[:2]
    effect, matched, itself = (contrast.ratio for contrast in result.contrasts[:3])
    return default.model_copy(
        update={
            "answer": f"The branching factor is {base.factor.value:.2f} in the base model, {own.factor.value:.2f} in "
            f"the post-trained one: post-training {'narrows' if effect.value > 1 else 'widens'} what comes next, and "
            "not by the format alone.",
            "compared": f"Base over post: {effect}; with both in the same plain format {matched}; base over itself, "
            f"in halves of its samples, {itself}.",
            "would_change": "A ratio in the shared plain format whose interval holds 1, or one that the base model "
            "reaches against itself.",
        }
    )


def key_figure(result: BranchingResult) -> KeyFigure | None:
    """The branching factor of each model as it is used."""
    rows = [KeyRow(name=row.model, value=row.factor, role=row.model) for row in result.measured[:2]]
    return KeyFigure(what="Branching factor", rows=tuple(rows)) if rows else None


PAGE = Page(CAPTIONS, argument, key_figure)
