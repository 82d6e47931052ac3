"""Pairs of prompts read as a stream of their differences, for estimators that look at pairs.

For pair i with states p_i (positive member) and n_i (negative member) three classes of rows go into one `Moments`:

    1: p_i        0: n_i        "difference": p_i − n_i

Only the differences keep second moments, so that memory is one d × d map a site, whatever the number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from steerlab.activations.moments import Moments
from steerlab.activations.reading import capture
from steerlab.activations.states import Activations
from steerlab.errors import PromptError
from steerlab.models import LanguageModel, Last, Prompt, Selector, Site, SitesGiven, sites_of

DIFFERENCE = "difference"
_WINDOW = 256  # pairs whose rows are held at a time


def capture_differences(
    model: LanguageModel,
    positives: Sequence[str | Prompt],
    negatives: Sequence[str | Prompt],
    sites: SitesGiven,
    *,
    positions: Selector = Last(),  # noqa: B008  # frozen
    token_budget: int = 4096,
    memory_budget: int = 4 * 2**30,
) -> Moments:
    """Moments of both members of every pair and of their differences.

    Args:
        positives: one prompt a pair; ``negatives[i]`` is the other member of pair i.
        negatives: the other members.
        sites: where to read.
        positions: which tokens; one that picks several gives a pair as many rows, the k-th of one member
            against the k-th of the other.
        token_budget: padded tokens in one forward pass.
        memory_budget: bytes that the second moments of the differences may take.

    Raises:
        PromptError: the two lists are empty or differ in length, or the members of a pair have different numbers
            of tokens there.
        SteerlabError: second moments exceed their budget.
    """
    if len(positives) != len(negatives):
        raise PromptError(
            f"{len(positives)} positive prompts came with {len(negatives)} negative ones; give one of each a pair."
        )
    if not len(positives):
        raise PromptError("Differences need at least one pair of prompts.")
    positives, negatives = model.as_prompts(positives), model.as_prompts(negatives)
    moments = Moments("scatter", classes=[DIFFERENCE], memory_budget=memory_budget)
    moments.belongs_to(model)
    wanted = sites_of(model, sites)
    moments.reserve({site: model.width(site) for site in wanted}, classes=3)
    for start in range(0, len(positives), _WINDOW):
        window = slice(start, start + _WINDOW)
        prompts = list(chain.from_iterable(zip(positives[window], negatives[window], strict=True)))
        states = capture(model, prompts, wanted, positions=positions, token_budget=token_budget)
        _take(moments, states, start)
        moments.came_from(prompts, positions, [1, 0] * (len(prompts) // 2))
    return moments


def _take(moments: Moments, states: Activations, first: int) -> None:
    """The rows of a window whose prompts alternate between positive and negative members."""
    rows_of = torch.bincount(states.example, minlength=states.n_prompts).view(-1, 2)
    uneven = (rows_of[:, 0] != rows_of[:, 1]).nonzero()
    if len(uneven):
        pair = int(uneven[0])
        high, low = rows_of[pair].tolist()
        raise PromptError(
            f"The members of pair {first + pair} have {high} and {low} tokens at these positions and cannot be "
            "subtracted; choose positions that both have, such as Last()."
        )
    is_positive = states.example % 2 == 0
    high_rows, low_rows = (_pick(states, chosen) for chosen in (is_positive, ~is_positive))
    moments.update(high_rows, [1] * int(is_positive.sum()))
    moments.update(low_rows, [0] * int(is_positive.sum()))
    differences = {site: rows - low_rows[site] for site, rows in high_rows.items()}
    moments.update(differences, [DIFFERENCE] * int(is_positive.sum()))


def _pick(states: Activations, chosen: Tensor) -> dict[Site, Tensor]:
    return {site: rows[chosen] for site, rows in states.states.items()}
