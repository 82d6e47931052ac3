"""Where a capability is not carried: is it the capability, the direction, the strength or the aligner?

The question is put in this order, each asked only where the one before is answered with yes. Does the target behave
otherwise when it is asked in the unlocked wording (or, where weights differ, under logit arithmetic), question by
question? If not, there is nothing to unlock. Does its own direction, read in the target itself, do more than every
control at the carried one's layers and strength? If not, the aligner is not to blame: it is the strength or the layers
where the own direction works at all layers with a strength of its own, else the direction. Does the carried one? If
not, it is the aligner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from steerlab.studies._transfer.result import Condition, TransferResult

Reason = Literal["carried", "capability", "direction", "strength", "aligner", "unknown"]
Outcome = Literal["behaves", "right"]
_WORDS: dict[Outcome, str] = {"behaves": "the unlocked manner", "right": "right answers"}


def bar(controls: Sequence[Condition], outcome: Outcome) -> float:
    """The share that a transfer has to exceed: of every control, and of the furthest random direction."""
    shares = [getattr(row, outcome).value for row in controls]
    draws = [draw for row in controls for draw in row.draws] if outcome == "behaves" else []
    return float(max([*shares, *draws]))


def reason(result: TransferResult, outcome: Outcome = "behaves") -> Reason:
    """Why the outcome is as it is; "unknown" where the target's own direction could not be had."""
    if result.beats_controls(outcome):
        return "carried"
    rows = {row.name: row for row in result.conditions}
    asked = [rows[name] for name in ("unlocked prompt", "logit arithmetic") if name in rows]
    if asked and not any(_more(row, outcome) for row in asked):
        return "capability"
    over = bar(result.controls, outcome)
    works = {row.name: getattr(row, outcome).low > over for row in result.conditions if row.role == "ceiling"}
    if "native, same layers" not in works:
        return "unknown"
    if works["native, same layers"]:
        return "aligner"
    return "strength" if works.get("native, all layers, own strength") else "direction"


def sentence(result: TransferResult, outcome: Outcome) -> str:
    """The reason in words."""
    target, manner = result.setting.target, _WORDS[outcome]
    there = "when it is asked in the unlocked wording"
    there = there if result.setting.contrast == "prompt" else "under logit arithmetic"
    return {
        "carried": f"For {manner} the capability is there, the direction works, and the aligner carries it.",
        "capability": (
            f"For {manner} the reason is the capability: {target} shows no more of it {there}, question by question, "
            "so nothing is found that a direction could unlock."
        ),
        "direction": (
            f"For {manner} the reason is the direction: {target}'s own one, read in itself, does no more than the "
            "controls either, so the aligner is not to blame."
        ),
        "strength": (
            f"For {manner} the reason is the strength or the layers: {target}'s own direction works at all layers with "
            "a strength of its own, and not at the layers and strength of the carried one."
        ),
        "aligner": (
            f"For {manner} the reason is the aligner: {target}'s own direction does more than every control at the "
            "same layers and strength, the carried one does not."
        ),
        "unknown": (
            f"For {manner} the reason is not identified: {target}'s own direction could not be had at these layers, so "
            "the direction and the aligner are not told apart."
        ),
    }[reason(result, outcome)]


def _more(row: Condition, outcome: Outcome) -> bool:
    """Whether a condition does more than the locked target, on the same questions."""
    change: Estimate | None = getattr(row, f"{outcome}_change")
    return change is not None and change.low > 0
