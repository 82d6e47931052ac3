"""The confidence study in plain sentences: what was found, and where nothing is identified, why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steerlab.neurons.gap import Explained
from steerlab.neurons.overlap import PairNeurons
from steerlab.readouts.confidence import AnswerConfidence, TextConfidence
from steerlab.readouts.questions import spoken
from steerlab.record import Role
from steerlab.statistics import percent
from steerlab.studies._confidence.changes import Change
from steerlab.studies._confidence.depth import Depth


def text_summary(on_texts: Sequence[TextConfidence], changes: Sequence[Change]) -> list[str]:
    """Plain text: how sure, whether that changed, or why it cannot be said."""
    blind = [row.model for row in on_texts if row.untrained]
    if blind:
        return [
            "Not identified on plain text: the next tokens are hardly likelier than tokens from other places or by a "
            f"uniform law for {' and '.join(blind)}, as in an untrained model."
        ]
    base, post = on_texts
    main = changes[0]
    verdict = (
        f"a change of {main.value:.2f}"
        if main.identified
        else f"no change beyond its control ({main.value:.2f})"
    )
    foreign = [row.model for row in on_texts if not row.reads]
    doubt = [
        f"These texts are foreign to {' and '.join(foreign)}: its predictions gain nothing over the controls."
    ]
    return [
        f"On {base.n_texts} plain texts the entropy of the next token is {base.entropy:.2f} nats in the base model and "
        f"{post.entropy:.2f} in the post-trained one: {verdict} ({main.what}).",
        f"Calibration error of the next token: {base.calibration.error:.3f} base, {post.calibration.error:.3f} post.",
        *(doubt if foreign else []),
    ]


def answer_summary(
    answers: Sequence[AnswerConfidence], changes: Sequence[Change], form: str, words: tuple[str, str]
) -> list[str]:
    """Statements: accuracy and calibration, or why not."""
    if not answers:
        return [f"Confidence on statements was {form}"]
    at_chance = [row.model for row in answers if not row.above_chance]
    if at_chance:
        accuracies = ", ".join(f"{row.model} {row.accuracy:%}" for row in answers)
        return [
            f"Calibration on statements is not identified for {' and '.join(at_chance)}: accuracy at chance "
            f"({accuracies}; {spoken(words)} asked for)."
        ]
    base, post = answers
    gap = next(change for change in changes if change.what == "calibration error on statements")
    verdict = "changed" if gap.identified else "no change beyond its control"
    return [
        f"On {base.n} labelled statements ({form}, {spoken(words)} asked for) accuracy is {base.accuracy:%} base "
        f"and {post.accuracy:%} post, calibration error {base.calibration.error:.3f} and "
        f"{post.calibration.error:.3f} ({verdict})."
    ]


def neuron_summary(neurons: PairNeurons) -> list[str]:
    """Entropy neurons: what could not be read, the overlap beside its controls, the causal test."""
    sentences = list(neurons.notes)
    if neurons.agreements:
        overlap = neurons.agreements[0].value
        others = [
            row.value.value for row in neurons.agreements if "layer" in row.name or "opposite" in row.name
        ]
        reach = f"{percent(min(others))} to {percent(max(others))}" if others else "n/a"
        sentences.append(
            f"The ten entropy-neuron candidates of each model overlap by {overlap:%}; the opposite rule and other "
            f"layers give {reach}: "
            + (
                "more than any control."
                if neurons.specific
                else "not identified as anything special about confidence (weights alone would do it)."
            )
        )
    roles: list[Role] = ["base", "post"]
    for role in roles:
        rows = {effect.group: effect for effect in neurons.effects if effect.model == role}
        if not rows:
            continue
        candidates, random = rows["candidates"], rows["random, like norm"]
        verdict = "" if neurons.acts_through_norm(role) else " (not identified as entropy neurons)"
        sentences.append(
            f"Ablating one candidate of the {role} model changes the entropy by {candidates.total:.4f} nats a token, "
            f"{candidates.through_norm:%} of it through the final norm; random neurons of like norm "
            f"{random.total:.4f}, {random.through_norm:%}{verdict}."
        )
    return sentences


def depth_summary(depth: Depth) -> list[str]:
    """What explains the entropy gap, what one temperature does, and what could not be run."""
    wanted = ("entropy neurons of base", "activations swapped")
    explained = depth.gap.explained if depth.gap else ()
    sentences = [_explained(row) for row in explained if (row.neurons, row.way) == wanted]
    sentences += [
        f"One temperature ({row.temperature:.2f}) takes the calibration error of the {row.model} model on statements "
        f"from {row.error:.3f} to {row.error_after:.3f}."
        for row in depth.tempered
    ]
    return sentences + list(depth.missing)


def _explained(row: Explained) -> str:
    if not math.isfinite(row.share.value):
        return f"What share of the entropy gap the {row.n} entropy neurons of the base model take away is not known."
    if not row.random.has_interval:
        return (
            f"Giving the post-trained model the base model's activations at its {row.n} entropy neurons takes "
            f"{row.share:%} of the entropy gap away; without random neurons of like norm nothing says whether it is "
            "theirs."
        )
    beyond = row.share.has_interval and row.share.low > row.random.high
    verdict = "more than they do." if beyond else "not more than they do, so the gap is not theirs."
    return (
        f"Giving the post-trained model the base model's activations at its {row.n} entropy neurons takes "
        f"{row.share:%} of the entropy gap away (random neurons of like norm {percent(row.random.value)}, at most "
        f"{percent(row.random.high)}): {verdict}"
    )
