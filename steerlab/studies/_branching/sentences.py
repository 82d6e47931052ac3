"""The branching study in plain sentences, and the rule by which its effect counts as identified."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steerlab.models.thinking import Thinking
from steerlab.statistics import Estimate
from steerlab.studies._branching.measures import Contrast, Measured
from steerlab.studies._branching.parts_result import CommitmentRow, NudgeRow, Parts, SetRow

_MAX_Z = 4.0
_FAR = 3.5  # standard errors that chance does not reach in a handful of places


def verdict(
    measured: Sequence[Measured],
    contrasts: Sequence[Contrast],
    blind: Sequence[str],
    same_tokenizer: bool,
    steps: int,
) -> tuple[bool, list[str]]:
    """Whether the effect outlasts its controls, and what was found in plain words."""
    base, own = measured[0], measured[1]
    effect, matched, itself = (contrast.ratio for contrast in contrasts[:3])
    per_byte = contrasts[-1].ratio
    identified = _outlasts(effect, matched, itself)
    if not same_tokenizer:  # then a token is not the same unit in both: the entropy per byte must agree
        identified = identified and per_byte.excludes(1) and (per_byte.value > 1) == (effect.value > 1)
    summary = [
        f"The branching factor is {base.factor:.2f} in the base model and {own.factor:.2f} in the post-trained one: "
        f"a ratio of {effect:.2f} over the same {base.n_prompts} prompts.",
        f"With both in the same plain format the ratio is {matched:.2f}; the base against itself gives {itself:.2f}.",
    ]
    if ("post", "plain") not in {(row.model, row.rendering) for row in measured}:
        summary.append(
            "The chat template writes these prompts exactly like the plain rendering: one run serves both."
        )
    wrong = [row.name for row in measured if not abs(row.martingale_z) < _MAX_Z]
    if wrong:
        summary.insert(
            0, f"The record of {', '.join(wrong)} does not fit its own draws (martingale check): no claim."
        )
    elif blind:
        summary.append(
            f"Not identified: for {' and '.join(blind)} the prompts' own next tokens are hardly likelier than "
            "tokens from other places, and its law spreads over much of the vocabulary, as in an untrained model."
        )
    elif effect.low == effect.high == matched.low == matched.high == 1:
        summary.append("No change: prompt by prompt both models go on in equally many ways.")
    elif not identified:
        summary.append(
            "Not identified: the difference does not stand clear of the format and resampling controls."
        )
    else:
        change = "narrows" if effect.value > 1 else "widens"
        summary.append(f"Post-training {change} the branching, and not by the format alone.")
    if not same_tokenizer:
        summary.append(
            "The tokenizers differ, so a token is not the same unit in both: in entropy per byte the ratio is "
            f"{per_byte:.2f}."
        )
    cut = [row for row in measured[:2] if row.ended.value < 0.5]
    if cut:
        names = " and ".join(row.model for row in cut)
        summary.append(
            f"Most outputs of {names} were cut at {steps} tokens, so their lengths are lower bounds."
        )
    return not wrong and not blind and identified, summary


def thinking_sentence(thinking: Thinking) -> list[str]:
    """Where answers begin in a model that thinks first; nothing for any other."""
    where = {
        "none": [],
        "closed": [
            "The chat template's thinking block is closed and empty, so outputs are answers from the first token."
        ],
        "open": [
            "The chat template's thinking block was left open, so outputs begin with thinking and not with answers."
        ],
    }
    return where[thinking]


def parts_sentences(parts: Parts) -> list[str]:
    """The parts beside the factor in plain words, and what could not be run."""
    sentences = [_sets(parts.sets)] if parts.sets else []
    sentences += [_nudged(parts.nudging)] if len(parts.nudging) > 1 else []
    sentences += [_resampled(parts.resampling)] if parts.resampling else []
    return sentences + list(parts.missing)


# -- private --


def _sets(rows: Sequence[SetRow]) -> str:
    ratios = [row.ratio.value for row in rows]
    clear = sum(row.ratio.excludes(1) for row in rows)
    return (
        f"Over {len(rows)} prompt sets and levels the ratio goes from {min(ratios):.2f} to {max(ratios):.2f}; "
        f"{clear} of the intervals exclude 1."
    )


def _nudged(rows: Sequence[NudgeRow]) -> str:
    own, never = rows[0], rows[-1]
    random = next(row for row in rows if row.name == "random tokens")
    verdict = "below" if own.away.high < random.away.low else "not below"
    return (
        f"Nudged by the post-trained model on {own.nudged:.0%} of tokens, the base law has a branching factor of "
        f"{own.away} three steps after a nudge, {verdict} what random tokens do ({random.away}); never nudged it has "
        f"{never.base} over all its steps, the unsure ones included."
    )


def _resampled(rows: Sequence[CommitmentRow]) -> str:
    moved = [row for row in rows if abs(row.at.z) > _FAR]
    if not moved:
        return "Taking answers up again changes no accuracy, as it must."
    share = f"{len(moved)} of {len(rows)}"
    return f"Resampling changed accuracy at {share} places, which it must not: look at the sampling."


def _outlasts(effect: Estimate, matched: Estimate, itself: Estimate) -> bool:
    """Effect and same-format ratio on one side of 1, both farther from it than the model from itself reaches."""
    if not (effect.excludes(1) and matched.excludes(1)) or (effect.value > 1) != (matched.value > 1):
        return False
    if not itself.has_interval:
        return False
    noise = max(abs(math.log(itself.low)), abs(math.log(itself.high)))
    return all(
        min(abs(math.log(ratio.low)), abs(math.log(ratio.high))) > noise for ratio in (effect, matched)
    )
