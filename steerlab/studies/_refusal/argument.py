"""What the refusal study says on its page: the answer in a sentence, one figure, captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Argument, KeyFigure, KeyRow, Page
from steerlab.statistics import percent

if TYPE_CHECKING:
    from steerlab.studies._refusal.result import Outcome, RefusalResult

CAPTIONS = {
    "rates": "Share of test prompts that each model refuses, unsteered and with a direction removed (ablation) or "
    "added (addition). Grey: random directions of the same length. Whiskers: 95 % intervals over prompts.",
    "effects": "Change of the share refused against the unsteered model: removal on harmful prompts, addition on "
    "harmless ones. Brackets: 95 % intervals. A direction acts where its row differs from the random one below.",
    "cosine_plain": "Cosine of the two models' refusal directions by layer, both read in the plain template, beside "
    "the most that two halves of one model's prompts reach (ceiling), and what shuffled labels and random "
    "directions give. Bands: 95 % intervals.",
    "side_effects": "What the same interventions change where nothing is refused: KL from the unsteered model on plain "
    "text and on harmless prompts, beside random directions of the same length. Whiskers: 95 % intervals.",
}


def argument(result: RefusalResult, default: Argument) -> Argument:
    """The answer by the study's own rule: does removing the base model's direction take refusal away?"""
    own, foreign = (result.outcome("post", "ablation", name) for name in ("post", "base"))
    unsteered = result.outcome("post", "none", "none", "harmful")
    if result.status != "done" or own is None or foreign is None or unsteered is None:
        return default
    yes = result.above_control("post", "ablation", "base")
    answer = (
        f"{'Yes' if yes else 'No'}: removing the base model's direction takes the post-trained model's refusal of "
        f"harmful prompts from {percent(unsteered.refused.value)} to {percent(foreign.refused.value)}; its own takes "
        f"it to {percent(own.refused.value)}."
    )
    change = (
        "A base direction whose removal lowers refusal by no more than random ones do."
        if yes
        else "A base direction, found with other prompts or at another place, whose removal lowers refusal by more "
        "than every one of the random directions does."
    )
    return default.model_copy(update={"answer": answer, "would_change": change})


def key_figure(result: RefusalResult) -> KeyFigure | None:
    """Share of harmful prompts refused: both models, and the post-trained one without a direction."""
    rows = (
        ("base", result.outcome("base", "none", "none", "harmful")),
        ("post", result.outcome("post", "none", "none", "harmful")),
        ("post without the base direction", result.outcome("post", "ablation", "base")),
        ("post without its own direction", result.outcome("post", "ablation", "post")),
        ("post without a random direction", result.control("post", "ablation", "post")),
    )
    made = [_row(name, outcome) for name, outcome in rows if outcome is not None]
    return (
        KeyFigure(what="Share of harmful prompts refused", rows=tuple(made), limits=(0.0, 1.0), share=True)
        if made
        else None
    )


def _row(name: str, outcome: Outcome) -> KeyRow:
    role = "control" if "random" in name else "base" if name == "base" else "post"
    return KeyRow.model_validate({"name": name, "value": outcome.refused, "role": role})


PAGE = Page(CAPTIONS, argument, key_figure)
