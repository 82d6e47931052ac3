"""Which law does a step draw from? From logits to a token: float32, temperature, truncation, renormalisation, the draw.

What is recorded is exactly the law that was drawn from. Of a large vocabulary a truncated law is looked for among the
likeliest tokens, and a few rows are worked on at a time, so that a step costs little beside the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.models.drawing import draw

Rule = Literal["none", "top_p", "top_k", "min_p", "floor"]
_TOLERANCE = 1e-6  # a cumulative mass this close to top_p has reached it: ten times 0.1 does not, in binary
_CANDIDATES = 256  # likeliest tokens in which a truncated law is looked for first
_CELLS = 2**20  # logits that are worked on together: 4 MB of float32, which a cache holds
_CELLS_OF_ACCELERATORS = 2**26  # where launching work costs more than memory does: 256 MB


@dataclass(frozen=True)
class SamplingLaw:
    """How logits become the law that is sampled: divide by `temperature`, truncate by `rule`, renormalise.

    rule, value: "top_p" keeps the shortest prefix of tokens, by falling probability (ties: smaller id first), whose
    mass reaches `value`; "top_k" the `value` likeliest; "min_p" those with at least `value` times the largest
    probability; "floor" those with at least the probability `value` (the likeliest alone when none has); "none" all.
    temperature 0 is greedy: all mass on the likeliest token. Raises ValueError for values out of range.
    """

    temperature: float = 1.0
    rule: Rule = "top_p"
    value: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"a temperature is 0 (greedy) or more, got {self.temperature}")
        if self.rule == "top_k" and (self.value < 1 or self.value != int(self.value)):
            raise ValueError(f"top_k keeps a whole number of tokens, at least one, got {self.value}")
        if self.rule in ("top_p", "min_p", "floor") and not 0 < self.value <= 1:
            raise ValueError(f"{self.rule} needs a value above 0 and at most 1, got {self.value}")

    def __str__(self) -> str:
        truncation = "no truncation" if self.rule == "none" else f"{self.rule} {self.value:g}"
        return f"temperature {self.temperature:g}, {truncation}"


class StepLaw(NamedTuple):
    """The law of one step, and what is recorded of it; entropies in nats.

    tokens: ids, ascending, of the likeliest tokens, every kept one among them. probs: their law, 0 at those that are
    not kept. untruncated: entropy before truncation. kept: size of the kept set.
    """

    tokens: Int[Tensor, "row candidate"]
    probs: Float[Tensor, "row candidate"]
    entropy: Float[Tensor, " row"]
    untruncated: Float[Tensor, " row"]
    kept: Int[Tensor, " row"]


class Step(NamedTuple):
    """What was drawn for each row, and what is recorded of its law; nats."""

    token: Int[Tensor, " row"]
    entropy: Float[Tensor, " row"]
    surprisal: Float[Tensor, " row"]
    untruncated: Float[Tensor, " row"]
    kept: Int[Tensor, " row"]


def step_law(logits: Float[Tensor, "row vocab"], law: SamplingLaw) -> StepLaw:
    """The law that `law` makes of `logits`, in float32. -inf logits stay impossible."""
    scores = logits.float()
    if law.temperature == 0:
        token = scores.argmax(-1, keepdim=True)
        zero = scores.new_zeros(len(scores))
        return StepLaw(token, torch.ones_like(token, dtype=scores.dtype), zero, zero, zero.long() + 1)
    # the whole vocabulary is walked through a few times and written twice; all else is done to the likeliest tokens
    scores = (scores - scores.amax(-1, keepdim=True)).div_(law.temperature)
    probs = scores.exp()
    mass = probs.sum(-1, keepdim=True)
    probs.div_(mass)
    # H = ln(mass) - sum p score, to which impossible tokens add 0
    terms = scores.clamp_(min=torch.finfo(scores.dtype).min).mul_(probs)
    untruncated = mass.log().squeeze(-1) - terms.sum(-1)
    if law.rule == "none":
        tokens = torch.arange(probs.shape[-1], device=probs.device).expand_as(probs)
        return StepLaw(tokens, probs, untruncated, untruncated, (probs > 0).sum(-1))
    tokens, kept, count = _kept(probs, law)
    kept /= kept.sum(-1, keepdim=True)
    entropy_ = torch.special.entr(kept).sum(-1).clamp(min=0)
    return StepLaw(tokens, kept, entropy_, untruncated, count)


def draw_step(logits: Float[Tensor, "row vocab"], law: SamplingLaw, uniform: Float[Tensor, " row"]) -> Step:
    """Draw a token of each row's law at its number in [0, 1); a few rows at a time, so that memory stays small."""
    rows = rows_at_once(logits.shape[-1], logits.device)
    steps = [
        _drawn(step_law(some, law), at)
        for some, at in zip(logits.split(rows), uniform.split(rows), strict=True)
    ]
    return Step(*(torch.cat(column) for column in zip(*steps, strict=True)))


def rows_at_once(vocab: int, device: torch.device) -> int:
    """How many rows of logits are worked on together."""
    return max(1, (_CELLS if device.type == "cpu" else _CELLS_OF_ACCELERATORS) // vocab)


# -- private, in the order they are called --


def _drawn(law: StepLaw, uniform: Float[Tensor, " row"]) -> Step:
    at = draw(law.probs, uniform)[:, None]
    token, surprisal = law.tokens.gather(-1, at).squeeze(-1), -law.probs.gather(-1, at).squeeze(-1).log()
    return Step(token, law.entropy, surprisal, law.untruncated, law.kept)


def _kept(
    probs: Float[Tensor, "row vocab"], law: SamplingLaw
) -> tuple[Int[Tensor, "row candidate"], Float[Tensor, "row candidate"], Int[Tensor, " row"]]:
    """Ids of the likeliest tokens, ascending, their probabilities (0 where not kept), and how many are kept."""
    vocab = probs.shape[-1]
    width = min(_CANDIDATES, vocab)
    while True:
        ordered, tokens = probs.topk(width, dim=-1)
        count = _count(ordered, law).clamp(max=vocab)
        edge = ordered.gather(-1, count.clamp(max=width) - 1)  # the smallest kept probability
        if width == vocab or bool((ordered[:, -1:] < edge).all()):  # all its ties are seen, too
            break
        width = min(4 * width, vocab)
    tokens, order = tokens.sort(dim=-1)
    likeliest = ordered.gather(-1, order)
    # everything above the edge, and of its ties as many as fit, by token id
    above, tied = likeliest > edge, likeliest == edge
    mask = above | (tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    return tokens, likeliest * mask, count.squeeze(-1)


def _count(ordered: Float[Tensor, "row candidate"], law: SamplingLaw) -> Int[Tensor, "row 1"]:
    """How many of the falling probabilities the rule keeps; no fewer than all of them where it keeps more."""
    if law.rule == "top_k":
        return torch.full((len(ordered), 1), int(law.value), device=ordered.device)
    if law.rule == "min_p":
        return (ordered >= law.value * ordered[:, :1]).sum(-1, keepdim=True)
    if law.rule == "floor":
        return (ordered >= law.value).sum(-1, keepdim=True).clamp(min=1)
    # rounding may leave the whole law short of a mass of 1: then everything is kept
    return (ordered.cumsum(-1) < law.value - _TOLERANCE).sum(-1, keepdim=True) + 1
