"""Alarms: a threshold on a probe's scores that keeps a promised rate where the thing is absent.

    per "token"          the expected share of an answer's tokens above the threshold is at most the rate
    per "answer"         the chance that an answer's largest score passes it is
    per "conversation"   the chance that the largest score of all answers of a conversation passes it is

The threshold is learnt from the scores that `sl.calibrate` put into the probe, by conformal risk control
(`statistics.conformal`): the promise holds for chats like those, whatever the scores' law, and says nothing of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from steerlab.directions import Direction, ScoreCalibration
from steerlab.errors import SteeringError
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
        if not isinstance(self.rate, int | float) or not 0 < self.rate < 1:
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

    def limit(self, known: ScoreCalibration) -> float:
        """The threshold by a calibration.

        Raises:
            SteeringError: too few chats for the rate.
        """
        units = known.conversations[known.answers] if self.per == "conversation" else known.answers
        count = len(units.unique())
        least = max(units_needed(self.rate), CONVERSATIONS if self.per == "conversation" else 1)
        if count < least:
            raise SteeringError(
                f"{count} {'answer' if self.per == 'token' else self.per}s cannot support {self}; calibrate on at "
                f"least {least}, or allow a higher rate."
            )
        if self.per == "token":
            return conformal_threshold(known.scores.numpy(), self.rate, units=units.numpy())
        return conformal_threshold(known.largest(units).numpy(), self.rate)

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


def losses(known: ScoreCalibration, per: Per, threshold: float) -> torch.Tensor:
    """Of each unit whose rate an alarm promises, the share of false alarms at a threshold, [unit]."""
    units = known.conversations[known.answers] if per == "conversation" else known.answers
    if per != "token":
        return (known.largest(units) > threshold).double()
    _, codes = units.unique(return_inverse=True)
    above = torch.zeros(int(codes.max()) + 1, dtype=torch.float64)
    above.index_add_(0, codes, (known.scores > threshold).double())
    return above / torch.bincount(codes)
