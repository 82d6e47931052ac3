"""The law of the next token: what is read off logits, all of it in nats.

    p = softmax(logits),    log-odds(R) = ln P(R) − ln P(not R),    KL(p ‖ q) = Σ_v p(v) (ln p(v) − ln q(v))

The last axis is the vocabulary, axes before it are whatever the caller has. Sums over tokens run in float64 (`exact`);
`kl` keeps the precision it is given, since it is also taken at every token of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def exact(logits: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row vocab"]:
    """The same numbers in float64; MPS has none, so its tensors move to the CPU."""
    return (logits.cpu() if logits.device.type == "mps" else logits).double()


def log_odds(
    logits: Float[Tensor, "*row vocab"],
    towards: Sequence[int],
    away: Sequence[int] = (),
    *,
    floor: float = 0.0,
) -> Float[Tensor, "*row"]:
    """ln P(towards) − ln P(away) of each row, float64.

    Args:
        logits: any precision.
        towards: token ids; NaN where there are none.
        away: token ids; without any, all others than `towards`.
        floor: added to both probabilities inside the logarithms, as some published code does (1e-8); 0 is exact.
    """
    if not len(towards):
        return torch.full(logits.shape[:-1], torch.nan, dtype=torch.float64)
    wide = exact(logits)
    inside = _mask(wide, towards)
    outside = _mask(wide, away) if len(away) else ~inside
    if floor:
        law = wide.softmax(dim=-1)
        share = law[..., inside].sum(dim=-1)
        rest = law[..., outside].sum(dim=-1) if len(away) else 1 - share
        return (share + floor).log() - (rest + floor).log()
    return wide[..., inside].logsumexp(dim=-1) - wide[..., outside].logsumexp(dim=-1)


def log_probability(
    logits: Float[Tensor, "*row vocab"], tokens: Int[Tensor, "*row"]
) -> Float[Tensor, "*row"]:
    """ln P(token) of one token a row, in the precision of the logits."""
    return at_tokens(logits.log_softmax(dim=-1), tokens)


def at_tokens(values: Float[Tensor, "*row vocab"], tokens: Int[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """The value of one token a row."""
    return values.gather(-1, tokens[..., None].to(values.device))[..., 0]


def kl(log_p: Float[Tensor, "*row vocab"], log_q: Float[Tensor, "*#row vocab"]) -> Float[Tensor, "*row"]:
    """KL(p ‖ q) of two laws given as log-probabilities, in their precision; rounding below zero becomes zero."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)


def entropy(log_probs: Float[Tensor, "*row vocab"]) -> Float[Tensor, "*row"]:
    """-sum q ln q over the last axis, in nats; impossible tokens (-inf) add nothing."""
    return (log_probs.exp() * -log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1).clamp(min=0)


def divergence(
    plain: Float[Tensor, "*row vocab"], changed: Float[Tensor, "*row vocab"], *, floor: float = 0.0
) -> Float[Tensor, "*row"]:
    """KL(plain ‖ changed) of the laws of two sets of logits, float64.

    With a `floor` it is added to the probabilities inside both logarithms, as in published code; such a sum may be
    negative and is left so.
    """
    if floor:
        p, q = exact(plain).softmax(dim=-1), exact(changed).softmax(dim=-1)
        return (p * ((p + floor).log() - (q + floor).log())).sum(dim=-1)
    return kl(exact(plain).log_softmax(dim=-1), exact(changed).log_softmax(dim=-1))


def _mask(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """[vocab], True at the tokens."""
    mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    mask[list(tokens)] = True
    return mask
