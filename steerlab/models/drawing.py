"""Random tokens: seed, prompt and step decide each, however text is batched, cached or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Sampler:
    """Draws the next token of rows from the tempered and nucleus-cut law of their scores.

    Args:
        seed: None takes one from torch's global random state.
        rows: the prompt's number of each row.
        steps: the most tokens that are drawn.
        temperature: scores are divided by it.
        top_p: mass of the nucleus, as transformers cuts it.
    """

    def __init__(
        self, seed: int | None, rows: Sequence[int], steps: int, *, temperature: float, top_p: float
    ) -> None:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        build: Any = LogitsProcessorList
        self._warped = build(
            [TemperatureLogitsWarper(temperature), *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]
        )
        chosen = new_seed() if seed is None else seed & (2**63 - 1)  # any whole number is a seed
        self._uniform = torch.from_numpy(np.stack([uniforms(chosen, row, 0, steps) for row in rows]))

    def draw(self, scores: Float[Tensor, "row vocab"], step: int) -> Int[Tensor, " row"]:
        """The token of every row at a step, counted from 0."""
        law = self._warped(None, scores.float()).softmax(dim=-1)
        return draw(law, self._uniform[:, step].to(law.device, wide_dtype(law.device)))


class DrawnScores:
    """For transformers' `generate`: leaves each row the token that is drawn, which greedy decoding then takes."""

    def __init__(self, sampler: Sampler, width: int) -> None:
        self._sampler, self._width = sampler, width

    def __call__(
        self, input_ids: Int[Tensor, "row position"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """-inf at all tokens but the drawn ones."""
        token = self._sampler.draw(scores, input_ids.shape[1] - self._width)
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)


def new_seed() -> int:
    """A seed from torch's global random state."""
    return int(torch.randint(2**31, ()))


def uniforms(seed: int, prompt: int, sample: int, steps: int) -> Float[np.ndarray, " step"]:
    """The numbers in [0, 1) that decide one sequence; more steps only append."""
    return np.random.default_rng([seed, prompt, sample]).random(steps)


def draw(probs: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The token at which the cumulative law, in token order, first exceeds `uniform` in [0, 1)."""
    # token order, not order of probability: near ties must not swap with the last bit of a logit
    wide = wide_dtype(probs.device)
    cumulative = probs.cumsum(-1, dtype=wide)
    whole = cumulative[:, -1:]
    # strictly below the whole mass, or rounding could land on an impossible token after the last possible one
    target = torch.minimum(uniform.to(wide)[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating point of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
