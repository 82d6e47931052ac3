"""Where a capability is not carried: is it the capability, the direction, or the aligner?

The question is put in this order, each asked only where the one before is answered with yes. Does the target behave
otherwise when it is asked in the unlocked wording (or, where weights differ, under logit arithmetic)? If not, there is
nothing to unlock. Does its own direction, read in the target itself, do more than every control? If not, no vector at
that token can be blamed on the aligner. Does the carried one? If not, it is the aligner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from steerlab.studies._transfer.result import Condition, TransferResult

Reason = Literal["carried", "capability", "direction", "aligner", "unknown"]
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
    if asked and not any(_above(getattr(row, outcome), getattr(rows["locked"], outcome)) for row in asked):
        return "capability"
    native = [row for row in result.conditions if row.role == "ceiling" and row.name.startswith("native")]
    if not native:
        return "unknown"
    over = bar(result.controls, outcome)
    if not any(getattr(row, outcome).low > over for row in native):
        return "direction"
    return "aligner"


def sentence(result: TransferResult, outcome: Outcome) -> str:
    """The reason in words."""
    target, manner = result.setting.target, _WORDS[outcome]
    return {
        "carried": f"For {manner} the capability is there, the direction works, and the aligner carries it.",
        "capability": (
            f"For {manner} the reason is the capability: {target} shows no more of it when it is asked in the unlocked "
            "wording, so there is nothing that a direction could unlock."
        ),
        "direction": (
            f"For {manner} the reason is the direction: {target} shows it when asked, but its own direction, read in "
            "itself, does no more than the controls either, so the aligner is not to blame."
        ),
        "aligner": (
            f"For {manner} the reason is the aligner: {target}'s own direction does more than every control, the "
            "carried one does not."
        ),
        "unknown": (
            f"For {manner} the reason is not identified: {target}'s own direction could not be had, so the direction "
            "and the aligner are not told apart."
        ),
    }[reason(result, outcome)]


def _above(high: Estimate, low: Estimate) -> bool:
    return bool(high.low > low.high)
