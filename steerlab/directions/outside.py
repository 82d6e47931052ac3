"""What of a direction lies at right angles to others: v ← v − P v, P the projection on the span of what is left out.

What is left out are directions, or mean states by name. Tools that publish ablated weights take the mean harmless state
out of a refusal direction first ("projected abliteration", Lai 2025): where every token shares a large mean, any
direction has a part of it, and ablating that part changes all text. `Ablate(keep=…)` does the same with directions
while it ablates; with this the result is a direction, which every intervention, `preserve="norm"` too, and every file
takes. Class means along what is left are worked out anew where they are known as whole states.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steerlab.directions._header import SiteStatistics
from steerlab.directions.direction import Direction
from steerlab.errors import DirectionError, kind_of
from steerlab.models import Site

_INSIDE = 1e-5  # of its length: what is left of a vector that lies in the span of the others


def outside(direction: Direction, *others: Direction | str) -> Direction:
    """The part of every vector at right angles to other directions and to mean states.

    Args:
        direction: k vectors a site.
        others: directions with a vector at each of its sites (or at one site, which then acts everywhere); or names of
            mean states that the direction knows: "negative", "positive", "mean", the name of a class.

    Raises:
        DirectionError: nothing to leave out, a mean that is not known, another model or width, or nothing is left.

    Example:
        >>> outside(refusal, "negative", truth)  # doctest: +SKIP
    """
    if not others:
        raise DirectionError(
            "Nothing is left out of the direction; name a mean state ('negative') or give directions."
        )
    vectors = {site: _left(direction, site, others) for site in direction.sites}
    statistics = {site: _statistics(direction, site, rows) for site, rows in vectors.items()}
    named: list[JsonValue] = [other if isinstance(other, str) else other.estimator for other in others]
    return replace(
        direction,
        vectors=vectors,
        statistics=statistics,
        accuracy={},
        calibration=None,
        parameters={**direction.parameters, "outside": named},
    )


# -- private, in the order they are called --


def _left(direction: Direction, site: Site, others: tuple[Direction | str, ...]) -> Float[Tensor, "k width"]:
    """The vectors of a site without their part in the span of the others; float64."""
    rows = direction.vectors[site].double()
    spanned = torch.cat([_rows(direction, site, other) for other in others])
    _, sizes, axes = torch.linalg.svd(
        spanned / spanned.norm(dim=1, keepdim=True).clamp_min(1e-30), full_matrices=False
    )
    axes = axes[sizes > _INSIDE * sizes[0]]
    rest: Tensor = rows - (rows @ axes.T) @ axes
    rest -= (rest @ axes.T) @ axes  # once more, so that rounding leaves nothing
    if not bool((rest.norm(dim=1) > _INSIDE * rows.norm(dim=1)).all()):
        raise DirectionError(
            f"{direction!r} lies in the span of what is left out at {site}, so nothing of it remains; leave out less."
        )
    return rest


def _rows(direction: Direction, site: Site, other: Direction | str) -> Float[Tensor, "k width"]:
    if isinstance(other, str):
        return direction.mean(site, other).double()[None]
    if not isinstance(other, Direction):
        raise DirectionError(
            f"What a direction is to be at right angles to are directions or names of mean states, not "
            f"{kind_of(other)}."
        )
    if other.fingerprint and direction.fingerprint and other.fingerprint != direction.fingerprint:
        raise DirectionError(
            f"{other!r} belongs to another model than {direction!r}; move one with moved_to(...)."
        )
    rows = other.vectors[other.source(site)].double()
    if rows.shape[1] != direction.vectors[site].shape[1]:
        raise DirectionError(f"{other!r} has another width than {direction!r} at {site}; fit both there.")
    return rows


def _statistics(direction: Direction, site: Site, rows: Float[Tensor, "k width"]) -> SiteStatistics:
    """Where the classes lie along what is left; only the stream's norm where their means are not known."""
    before, known = direction.statistics[site], direction.means.get(site, {})
    ends = (before.positive, before.negative)
    if None in ends or not all(end in known for end in ends):
        return SiteStatistics(stream_norm=before.stream_norm)
    units = torch.nn.functional.normalize(rows, dim=1)
    high, low = (units @ known[str(end)].double() for end in ends)
    middle = (high + low) / 2
    return SiteStatistics(
        class_means={str(end): tuple(mean.tolist()) for end, mean in zip(ends, (high, low), strict=True)},
        positive=before.positive,
        negative=before.negative,
        stream_norm=before.stream_norm,
        bias=tuple((-middle * rows.norm(dim=1)).tolist()),
        threshold=tuple(middle.tolist()),
    )
