"""What is measured after the last token of a patched run, and which rows of the unembedding it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.errors import PromptError
from steerlab.models.laws import kl, log_probability


class PatchMeasure(Protocol):
    """A number (or several) of each patched run.

    Attributes:
        tokens: by prompt the tokens whose logits it needs [prompt, k]; None for those of the whole vocabulary.
    """

    tokens: Int[Tensor, "prompt k"] | None

    def __call__(self, logits: Float[Tensor, "row logit"], prompts: Int[Tensor, " row"]) -> Tensor:
        """[row, ...] from logits [row, k] of `tokens`, or [row, vocab] of the vocabulary, and the prompts' numbers."""

    def identity(self) -> str:
        """Name of the measure and of everything its values depend on; equal strings mean equal measures."""


class LogitDifference:
    """logit(first) - logit(second), each one token a prompt.

    Raises:
        PromptError: both are one token for some prompt, so that the difference is always zero.
    """

    def __init__(self, first: Sequence[int], second: Sequence[int]) -> None:
        self.tokens: Int[Tensor, "prompt 2"] | None = torch.tensor([list(first), list(second)]).T
        for prompt, (first_token, second_token) in enumerate(zip(first, second, strict=True)):
            if first_token == second_token:
                raise PromptError(
                    f"Both answers of prompt {prompt} are token {first_token}, so their logits never differ; choose "
                    "words that are different tokens."
                )

    def __call__(self, logits: Float[Tensor, "row 2"], prompts: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """[row] logit(first) − logit(second)."""
        return logits[:, 0] - logits[:, 1]

    def identity(self) -> str:
        """The measure's name and its tokens."""
        assert self.tokens is not None
        return f"logit difference {self.tokens.tolist()}"


class LogProbability:
    """ln P(token), nats; one token a prompt, after a softmax over the whole vocabulary."""

    def __init__(self, of: Sequence[int]) -> None:
        self._of = torch.tensor(list(of))
        self.tokens: Int[Tensor, "prompt k"] | None = None

    def __call__(
        self, logits: Float[Tensor, "row vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """[row] ln P(token), nats."""
        return log_probability(logits, self._of[prompts])

    def identity(self) -> str:
        """The measure's name and its tokens."""
        return f"log-probability {self._of.tolist()}"


class Probability(LogProbability):
    """P(token); one token a prompt."""

    def __call__(
        self, logits: Float[Tensor, "row vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """[row] P(token)."""
        return super().__call__(logits, prompts).exp()

    def identity(self) -> str:
        """The measure's name and its tokens."""
        return f"probability {self._of.tolist()}"


class Divergence:
    """KL(reference || patched) of the next token's law, nats.

    Args:
        reference: logits of the clean runs [prompt, vocab].
    """

    def __init__(self, reference: Float[Tensor, "prompt vocab"]) -> None:
        self._law = reference.float().log_softmax(dim=-1)
        self.tokens: Int[Tensor, "prompt k"] | None = None

    def __call__(
        self, logits: Float[Tensor, "row vocab"], prompts: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """[row] KL(reference ‖ patched), nats."""
        law = self._law[prompts.to(self._law.device)].to(logits.device)
        return kl(law, logits.log_softmax(dim=-1))

    def identity(self) -> str:
        """A hash of the reference's laws."""
        return "KL " + hashlib.sha256(self._law.cpu().numpy().tobytes()).hexdigest()
