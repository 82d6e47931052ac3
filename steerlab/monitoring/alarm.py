"""Alarms: a threshold on a probe's scores that keeps a promised rate where the thing is absent.

    per "token"          the expected share of an answer's tokens above the threshold is at most the rate
    per "answer"         the expected share of a conversation's answers whose largest score passes it is
    per "conversation"   the chance that the largest score of all answers of a conversation passes it is

The threshold is learnt from the scores that `sl.calibrate` put into the probe, by conformal risk control
(`statistics.conformal`) with conversations as units, since answers of one are alike; a question with its answer is a
conversation. The promise holds for chats like those, whatever the scores' law, and says nothing of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int

from steerlab.directions import Direction, ScoreCalibration
from steerlab.errors import SteeringError
from steerlab.showing import counted
from steerlab.statistics import conformal_threshold, units_needed
from steerlab.steering import Condition

Per = Literal["token", "answer", "conversation"]
#: Fewer conversations than this are not taken: one long conversation more would move the threshold.
CONVERSATIONS = 200


@dataclass(frozen=True)
class Alarm:
    """An alarm with a promise.

    Args:
        rate: false alarms that are allowed, between 0 and 1.
        per: of what, see the module.

    Raises:
        SteeringError: a rate outside, or another unit.
    """

    rate: float = 0.05
    per: Per = "answer"

    def __post_init__(self) -> None:
        given: object = self.rate
        if not isinstance(given, Real) or not 0 < float(given) < 1:
            raise SteeringError(
                f"An alarm's rate lies between 0 and 1, not at {self.rate!r}; write rate=0.05."
            )
        if self.per not in get_args(Per):
            raise SteeringError(
                f"An alarm counts per {', '.join(get_args(Per))}, not per {self.per!r}; choose one of them."
            )

    def threshold(self, probe: Direction) -> float:
        """The score above which the alarm sounds.

        Raises:
            SteeringError: the probe has no calibration, or too few chats for the rate.
        """
        known = probe.calibration
        if known is None:
            raise SteeringError(
                "The probe has no calibration, so an alarm could promise nothing; make one with "
                "sl.calibrate(direction, model, without=chats)."
            )
        return self.limit(known)

    @property
    def needed(self) -> int:
        """How many conversations without the thing the promise needs; a question with its answer is one."""
        return max(units_needed(self.rate), CONVERSATIONS if self.per == "conversation" else 1)

    def limit(self, known: ScoreCalibration) -> float:
        """The threshold by a calibration.

        Raises:
            SteeringError: too few chats for the rate.
        """
        if known.n_conversations < self.needed:
            raise SteeringError(
                f"{counted(known.n_conversations, 'chat')} cannot support {self}; calibrate on at least {self.needed}, "
                "or allow a higher rate."
            )
        chats = known.conversations[known.answers]
        if self.per == "token":
            sizes = torch.bincount(known.answers)[known.answers]
            return conformal_threshold(
                known.scores.numpy(), self.rate, units=chats.numpy(), weights=(1 / sizes.double()).numpy()
            )
        if self.per == "conversation":
            return conformal_threshold(known.largest(chats).numpy(), self.rate)
        of_answer = known.conversations[known.answers.unique()]
        return conformal_threshold(known.largest(known.answers).numpy(), self.rate, units=of_answer.numpy())

    def condition(self, probe: Direction) -> Condition:
        """What gates an intervention by this alarm: per token each token by itself, else from the alarm on.

        An intervention with it acts on a text's written tokens only, from the token that raised the alarm.

        Raises:
            SteeringError: as `threshold`; per conversation, since a gate knows one text at a time.
        """
        if self.per == "conversation":
            raise SteeringError(
                "A gate knows one text at a time and no conversation; gate with per='answer' or per='token'."
            )
        latched = self.per == "answer"
        return Condition(probe, threshold=self.threshold(probe), positions=None, latched=latched)

    def __str__(self) -> str:
        return f"an alarm rate of {self.rate:g} per {self.per}"


def losses(known: ScoreCalibration, per: Per, threshold: float) -> Float[torch.Tensor, " conversation"]:
    """Of each conversation the share of false alarms at a threshold: of its tokens, its answers, or itself."""
    if per == "conversation":
        chats = known.conversations[known.answers]
        return (known.largest(chats) > threshold).double()
    names = known.answers.unique()
    if per == "answer":
        of_answer = (known.largest(known.answers) > threshold).double()
    else:
        of_answer = _means((known.scores > threshold).double(), known.answers)
    return _means(of_answer, known.conversations[names])


def _means(
    values: Float[torch.Tensor, " row"], groups: Int[torch.Tensor, " row"]
) -> Float[torch.Tensor, " group"]:
    known, codes = groups.unique(return_inverse=True)
    sums = torch.zeros(len(known), dtype=torch.float64).index_add_(0, codes, values)
    return sums / torch.bincount(codes)
