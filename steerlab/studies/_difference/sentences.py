"""The study of differences in plain sentences, and its main number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Headline
from steerlab.showing import counted
from steerlab.statistics import percent

if TYPE_CHECKING:
    from steerlab.studies._difference.result import DifferenceResult, Null

_LORA, _FLIPS = "random LoRA of equal norm", "signs flipped over texts"


def sentences(result: DifferenceResult) -> list[str]:
    """The verdict and what it rests on, then laws, steering and forks."""
    if result.kl.value == 0 and result.shared.value == 0:
        return [
            f"On {counted(result.texts, 'text')} the two models do not differ: every state and every law is the same, "
            "and the difference is not identified."
        ]
    return [
        _verdict(result),
        _words(result),
        _laws(result),
        _steered(result),
        *_forked(result),
        *_topic(result),
    ]


def headline(result: DifferenceResult) -> Headline:
    """What the texts' differences have in common, beside a null."""
    null = result.null(_LORA) or result.null(_FLIPS)
    return Headline(
        what="what the difference on unrelated texts has in common (share of the stream's norm, mean over layers)",
        value=result.shared,
        control=None if null is None else null.shared,
        control_name="" if null is None else null.name,
    )


# -- private, in the order they are called --


def _verdict(result: DifferenceResult) -> str:
    beside = "; ".join(
        f"{null.name} {null.shared.low:.4f} to {null.shared.high:.4f}"
        for null in result.nulls
        if null.shared is not None
    )
    said = {
        "narrow topic readable": "the difference names a narrow topic (narrow topic readable)",
        "generic": "there is a difference, and it names no narrow topic (generic)",
        "not identified": "the difference is not identified beyond chance",
    }[result.verdict]
    return (
        f"On {counted(result.texts, 'unrelated text')} {said}: what the texts' differences share is "
        f"{result.shared:.4f} of the stream's norm ({beside})."
    )


def _words(result: DifferenceResult) -> str:
    listed = ", ".join(repr(word) for word in result.read.words[:8])
    out, alike = (
        ", ".join(
            f"{_short(null)} {value.high:.2f}"
            for null in result.nulls
            if (value := getattr(null, field)) is not None
        )
        for field in ("stands_out", "alike")
    )
    return (
        f"Read at layer {result.read_at}, where words stand out most: {listed}. On the other half of the texts the "
        f"words of one half stand {result.stands_out:.2f} standard deviations out (at most: {out}) and are "
        f"{result.alike:.2f} alike (at most: {alike})."
    )


def _short(null: Null) -> str:
    return null.name.split(" of ")[0].split(" over ")[0]


def _laws(result: DifferenceResult) -> str:
    up, down = (
        ", ".join(repr(row.token) for row in rows[:5]) or "none" for rows in (result.promoted, result.demoted)
    )
    return (
        f"KL(base ‖ post) is {result.kl} nats a token. {result.called} of {result.tested} plausible tokens change at a "
        f"false-discovery rate of 5 %: promoted most {up}; demoted most {down}."
    )


def _steered(result: DifferenceResult) -> str:
    steered = result.steering
    verdict = "beyond all of them" if steered.above_control else "not beyond all of them"
    return (
        f"Adding the average difference to base at layer {steered.layer} takes {steered.effect} of the "
        f"{steered.before.value:.4f} nats a token to post's law; random vectors of its length "
        f"{steered.control.low:.4f} to {steered.control.high:.4f}: {verdict}."
    )


def _forked(result: DifferenceResult) -> list[str]:
    forks = result.forks
    if forks.position is None or forks.share is None or forks.share_control is None:
        return [f"Post follows base's greedy path behind all of {counted(forks.texts, 'text')}."]
    made = [
        f"Post leaves base's greedy path behind {forks.forked:%} of the texts, at token {forks.position} of "
        f"{forks.steps}; {forks.share:%} of the path's KL lies there, at a token drawn at random "
        f"{percent(forks.share_control.value)}."
    ]
    if forks.commitment is not None and forks.commitment_control is not None:
        made.append(
            f"The token at the fork settles {forks.commitment} of how post-like the continuation is (shuffled "
            f"{forks.commitment_control.low:.2f} to {forks.commitment_control.high:.2f})."
        )
    return made


def _topic(result: DifferenceResult) -> list[str]:
    auc = result.read.topic
    return (
        [] if auc is None else [f"The topic's words have a rank AUC of {auc} in the difference read there."]
    )
