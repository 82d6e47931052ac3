"""What changed in confidence from base to post, each change beside its control.

Changes are paired: by text on plain text (entropies only where a token is the same unit in both models, otherwise per
byte), by statement on answers, by question on multiple choice. The control gives the two models' numbers to "base" and
"post" at random, text by text or subject by subject: what such relabelling gives is no change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from steerlab.readouts.confidence import AnswerConfidence, AnswerReading, TextReading
from steerlab.record import Record, Role
from steerlab.statistics import Estimate, bootstrap, but_for_rounding, paired_difference

Of = Literal["texts", "answers", "choices"]
Numbers = NDArray[Any]
_BINS = 10


class Change(Record):
    """Post minus base, paired, with its control: what relabelling base and post at random gives (central 95 %)."""

    what: str
    of: Of
    value: Estimate
    control: Estimate

    @property
    def identified(self) -> bool:
        """True when the interval leaves zero and the value lies outside what relabelling gives."""
        return self.value.excludes(0) and not self.control.low <= self.value.value <= self.control.high


def text_changes(readings: Mapping[Role, TextReading], same_tokenizer: bool, seed: int) -> list[Change]:
    """Changes on plain text, the main one first."""
    base, post = readings["base"], readings["post"]
    per_byte = _change("entropy on text (nats a byte)", "texts", post.per_byte(), base.per_byte(), None, seed)
    if not same_tokenizer:
        return [per_byte]  # tokens are not the same unit in both
    by_token = {
        "entropy on text (nats a token)": (post.entropy, base.entropy),
        "largest probability on text": (post.p_max, base.p_max),
        "loss on text (nats a token)": (post.loss, base.loss),
    }
    changes = [
        _change(what, "texts", post.by_text(first), base.by_text(second), None, seed)
        for what, (first, second) in by_token.items()
    ]
    gap = _calibration_change(
        "calibration error of the next token",
        "texts",
        (post.p_max, post.correct, base.p_max, base.correct),
        post.text,
        seed,
    )
    return [*changes, gap, per_byte]


def answer_changes(
    asked: Mapping[Role, AnswerReading], answers: Sequence[AnswerConfidence], seed: int
) -> list[Change]:
    """Changes on statements; none without answers, and none of calibration where one model answers at chance."""
    if len(asked) < 2:
        return []
    base, post = asked["base"], asked["post"]
    pairs = {
        "accuracy on statements": (post.correct.astype(float), base.correct.astype(float)),
        "confidence on statements": (post.confidence, base.confidence),
        "Brier score on statements": ((post.p_true - post.label) ** 2, (base.p_true - base.label) ** 2),
    }
    changes = [_change(what, "answers", *pair, base.subject, seed) for what, pair in pairs.items()]
    if not all(row.above_chance for row in answers):
        return changes
    arrays = (post.confidence, post.correct, base.confidence, base.correct)
    return [
        *changes,
        _calibration_change("calibration error on statements", "answers", arrays, base.subject, seed),
    ]


def choice_changes(
    laws: Mapping[Role, Float[np.ndarray, "question choice"]],
    right: Int[np.ndarray, " question"],
    subject: Int[np.ndarray, " question"],
    *,
    above_chance: bool,
    seed: int,
) -> list[Change]:
    """Changes on multiple choice, paired by question; none of calibration where one model answers at chance."""
    base, post = laws["base"], laws["post"]
    known = post.argmax(axis=1) == right, base.argmax(axis=1) == right
    sure = post.max(axis=1).clip(0, 1), base.max(axis=1).clip(0, 1)
    wanted = np.eye(base.shape[1])[right]
    pairs = {
        "accuracy on multiple choice": (known[0].astype(float), known[1].astype(float)),
        "confidence on multiple choice": sure,
        "Brier score on multiple choice": (
            ((post - wanted) ** 2).sum(axis=1),
            ((base - wanted) ** 2).sum(axis=1),
        ),
    }
    changes = [_change(what, "choices", *pair, subject, seed) for what, pair in pairs.items()]
    if not above_chance:
        return changes
    arrays = (sure[0], known[0], sure[1], known[1])
    return [
        *changes,
        _calibration_change("calibration error on multiple choice", "choices", arrays, subject, seed),
    ]


def _change(
    what: str,
    of: Of,
    post: Numbers,
    base: Numbers,
    clusters: Numbers | None,
    seed: int,
) -> Change:
    value = paired_difference(post, base, clusters, seed=seed)
    gaps = but_for_rounding(post, base) - base
    group = np.arange(len(gaps)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(2000, int(group.max()) + 1))
    return Change(
        what=what, of=of, value=value, control=_null(signs @ np.bincount(group, weights=gaps) / len(gaps))
    )


def _calibration_change(
    what: str,
    of: Of,
    arrays: tuple[Numbers, Numbers, Numbers, Numbers],
    clusters: Numbers,
    seed: int,
) -> Change:
    """The difference of equal-width calibration errors, rows resampled together; control: rows swapped by cluster."""

    def error(confidence: Numbers, correct: Numbers) -> float:
        bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
        return float(
            np.abs(np.bincount(bins, weights=confidence - correct, minlength=_BINS)).sum() / len(bins)
        )

    def gap(p: Numbers, y: Numbers, q: Numbers, z: Numbers) -> float:
        return error(p, y) - error(q, z)

    p, y, q, z = but_for_rounding(arrays[0], arrays[2]), *arrays[1:]
    value = bootstrap(gap, p, y, q, z, clusters=clusters, seed=seed, draws=1000)
    group = np.unique(clusters, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(500):
        swap = rng.integers(0, 2, int(group.max()) + 1).astype(bool)[group]
        mixed = (np.where(swap, q, p), np.where(swap, z, y), np.where(swap, p, q), np.where(swap, y, z))
        null.append(gap(*mixed))
    return Change(what=what, of=of, value=value, control=_null(np.array(null)))


def _null(draws: Float[np.ndarray, " draw"]) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    method = f"{len(draws)} random relabellings"
    return Estimate(value=float(draws.mean()), low=float(low), high=float(high), n=len(draws), method=method)
