"""How much of every token's state is one shared mean, and what follows where that is nearly all of it.

By layer, over the tokens of some plain texts but for each text's first one:

    share    ‖mean x‖ / mean ‖x‖                       1: every token has the same state
    top      max |mean| / median |mean| over coordinates
    first    ‖x of the first token‖ / mean ‖x‖         the first token is an attention sink in many models
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from steerlab import datasets
from steerlab.activations import capture
from steerlab.directions.coordinates import DOMINANT as DOMINANT
from steerlab.models import All, LanguageModel, Prompt
from steerlab.record import Record

_TEXTS = 6


class MeanShare(Record):
    """The shared mean at the output of one layer; see the module."""

    layer: int
    share: float
    top: float
    first: float


def mean_shares(model: LanguageModel, texts: Sequence[str | Prompt] | None = None) -> tuple[MeanShare, ...]:
    """The shared mean at every layer's output, on a few plain texts of at least two tokens.

    Raises:
        PromptError: no text.
    """
    given = list(datasets.plain_text()[:_TEXTS] if texts is None else texts)
    states = capture(model, given, "resid_post", positions=All())
    is_first = torch.zeros(len(states.example), dtype=torch.bool)
    is_first[torch.searchsorted(states.example, torch.arange(states.n_prompts))] = True
    return tuple(
        _share(layer, states[site][~is_first].double(), states[site][is_first].double())
        for layer, site in enumerate(states.sites)
    )


def dominates(shares: Sequence[MeanShare]) -> bool:
    """Whether one mean is nearly all of every token's norm in the middle half of the layers."""
    return bool(np.median([row.share for row in _middle(shares)]) >= DOMINANT)


def dominance_sentence(shares: Sequence[MeanShare]) -> str:
    """What the shared mean is in the middle of the model, and what follows where it dominates."""
    middle = _middle(shares)
    row = middle[len(middle) // 2]
    said = (
        f"One mean is {row.share:.0%} of every token's norm at layer {row.layer}, its largest coordinate "
        f"{row.top:,.0f} times the median one; the first token is {row.first:,.1f} times as long as the others"
    )
    if not dominates(shares):
        return f"{said}."
    return (
        f"{said}. Every direction has a part of such a mean, so removing one toward 0 breaks the model: ablate toward "
        "the mean of a class, in a window of layers, without the first token; and read in standardised coordinates."
    )


# -- private --


def _middle(shares: Sequence[MeanShare]) -> Sequence[MeanShare]:
    n = len(shares)
    return shares[n // 4 : max(n // 4 + 1, -(-3 * n // 4))]


def _share(layer: int, rest: torch.Tensor, first: torch.Tensor) -> MeanShare:
    mean = rest.mean(dim=0)
    norm = rest.norm(dim=1).mean()
    coordinates = mean.abs()
    return MeanShare(
        layer=layer,
        share=float(mean.norm() / norm),
        top=float(coordinates.max() / coordinates.median().clamp(min=torch.finfo(torch.float64).tiny)),
        first=float(first.norm(dim=1).mean() / norm),
    )
