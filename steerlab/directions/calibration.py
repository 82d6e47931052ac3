"""What a probe's scores are where the thing it looks for is absent: kept in the direction's file, for alarms.

Scores are projections x·v̂ of single tokens. Each belongs to an answer and each answer to a conversation, so that a
threshold can promise a rate of tokens, of answers or of conversations (`statistics.conformal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.errors import DirectionError

NAMES = ("scores", "answers", "conversations")


@dataclass(frozen=True, eq=False)
class ScoreCalibration:
    """A probe's scores on chats without the thing.

    Attributes:
        scores: x·v̂ of each written token, float32.
        answers: the answer of each token, counted from 0.
        conversations: the conversation of each answer, counted from 0.
        dataset_hash: of the chats.

    Raises:
        DirectionError: scores that are not finite, or answers and conversations that do not fit.
    """

    scores: Float[Tensor, " token"]
    answers: Int[Tensor, " token"]
    conversations: Int[Tensor, " answer"]
    dataset_hash: str = ""

    def __post_init__(self) -> None:
        kinds = (torch.float32, torch.int64, torch.int64)
        given = {name: torch.as_tensor(getattr(self, name)).cpu() for name in NAMES}
        whole = not any(given[name].is_floating_point() for name in NAMES[1:])
        for name, kind in zip(NAMES, kinds, strict=True):
            object.__setattr__(self, name, given[name].to(kind).contiguous())
        fits = self.scores.shape == self.answers.shape and self.scores.dim() == self.conversations.dim() == 1
        if (
            not (whole and fits and len(self.scores))
            or min(int(self.answers.min()), int(self.conversations.min())) < 0
            or int(self.answers.max()) >= len(self.conversations)
        ):
            raise DirectionError(
                "A calibration has one answer for each score and one conversation for each answer; make it again with "
                "sl.calibrate."
            )
        if not bool(torch.isfinite(self.scores).all()):
            raise DirectionError("A calibration holds scores that are not finite; check the chats' states.")

    @property
    def n_answers(self) -> int:
        """How many answers were read."""
        return len(self.answers.unique())

    @property
    def n_conversations(self) -> int:
        """How many conversations they belong to."""
        return len(self.conversations[self.answers.unique()].unique())

    def largest(self, units: Int[Tensor, " token"]) -> Float[Tensor, " unit"]:
        """The largest score of each unit that has one."""
        known, codes = units.unique(return_inverse=True)
        empty = torch.full((len(known),), -torch.inf)
        return empty.scatter_reduce(0, codes, self.scores, "amax", include_self=False)

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name, for a file."""
        return {name: getattr(self, name) for name in NAMES}
