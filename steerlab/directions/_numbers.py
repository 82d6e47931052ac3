"""The numbers inside a `Direction`: rows are checked as they come in, statistics follow the arithmetic."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions._header import Numbers, SiteHeader, SiteStatistics
from steerlab.errors import DirectionError, kind_of
from steerlab.models import Site, site_of

T = TypeVar("T")


def as_rows(site: Site, rows: Tensor) -> Tensor:
    """Vectors as float32 [k, width], or a sentence."""
    rows = torch.as_tensor(rows).detach().to("cpu", torch.float32)
    rows = (rows[None] if rows.dim() == 1 else rows).contiguous()
    if rows.dim() != 2 or not rows.numel():
        raise DirectionError(f"The vectors of {site} have shape {tuple(rows.shape)}; they need [k, width].")
    if not torch.isfinite(rows).all():
        raise DirectionError(
            f"The vectors of {site} hold values that are not finite; check the states they came from."
        )
    if (rows.norm(dim=1) == 0).any():
        raise DirectionError(
            f"A vector of {site} is zero and points nowhere: its classes have one mean; read other positions."
        )
    return rows


def by_site(given: Mapping[Any, T], sites: Container[Site]) -> dict[Site, T]:
    """What is known by site, of the sites that there are; a site's name ("resid_post.5") is a key as well."""
    return {site: value for name, value in given.items() if (site := site_of(name)) in sites}


def require_whole(site: Site, k: int, known: SiteStatistics) -> None:
    """Raise `DirectionError` for statistics that do not belong to `k` vectors, or that name a class without a mean."""
    lengths = {f"means of {label!r}": len(means) for label, means in known.class_means.items()}
    several = {name: getattr(known, name) for name in ("bias", "threshold")}
    lengths |= {name: len(numbers) for name, numbers in several.items() if numbers is not None}
    for name, length in lengths.items():
        if length != k:
            raise DirectionError(
                f"The {name} at {site} has {length} numbers for {k} vectors; give one a vector."
            )
    for end in (known.positive, known.negative):
        if end is not None and end not in known.class_means:
            raise DirectionError(f"The class {end!r} at {site} has no mean; give one for each end.")
    heads = known.heads
    if heads is not None and (
        site.name != "z" or len(set(heads)) != len(heads) or min(heads, default=-1) < 0
    ):
        raise DirectionError(f"The heads {list(heads)} at {site} are none; heads live at z and count from 0.")
    spreads = k if heads is None else len(heads)
    if known.sigma is not None and len(known.sigma) != spreads:
        raise DirectionError(f"There are {len(known.sigma)} sigmas at {site} for {spreads}; give one each.")


def same_width(site: Site, a: Tensor, b: Tensor) -> None:
    """Raise unless two vectors have one shape."""
    if a.shape != b.shape:
        raise DirectionError(
            f"At {site} the directions have shapes {tuple(a.shape)} and {tuple(b.shape)}; take one shape."
        )


def is_row(number: Any, rows: Float[Tensor, "k width"]) -> bool:
    """Whether there is a vector of this number, counted from 0."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(rows)


def one_of(statistics: SiteStatistics, number: int) -> SiteStatistics:
    """The statistics of one of several vectors."""

    def picked(known: Numbers | None) -> Numbers | None:
        return None if known is None else known[number : number + 1]

    of_heads = statistics.heads is not None
    return statistics.model_copy(
        update={
            "class_means": {
                label: means[number : number + 1] for label, means in statistics.class_means.items()
            },
            "bias": picked(statistics.bias),
            "threshold": picked(statistics.threshold),
            "sigma": statistics.sigma if of_heads else picked(statistics.sigma),
        }
    )


def site_statistics_of(site: SiteHeader) -> SiteStatistics:
    """The statistics in a site's header."""
    fields: dict[str, Any] = {name: getattr(site, name) for name in SiteStatistics.model_fields}
    return SiteStatistics(**fields)


def require_number(factor: Any) -> None:
    """Raise unless a direction can be multiplied with it."""
    if not hasattr(factor, "__float__") or getattr(factor, "ndim", 0) > 0:
        raise DirectionError(f"A direction is multiplied with a number, not with {kind_of(factor)}.")


def times(numbers: Numbers, factor: float) -> Numbers:
    """Every number times a factor."""
    return tuple(factor * number for number in numbers)


def sum_of(a: Numbers | None, b: Numbers | None) -> Numbers | None:
    """Sums in pairs; None where one side is not known."""
    return None if a is None or b is None else tuple(x + y for x, y in zip(a, b, strict=True))


def numbers(values: Tensor) -> Numbers:
    """The values as plain numbers."""
    return tuple(float(value) for value in values)


def added(
    mine: SiteStatistics,
    theirs: SiteStatistics,
    rows: Float[Tensor, "k width"],
    others: Float[Tensor, "k width"],
) -> SiteStatistics:
    """Statistics of a sum of two vectors read on the same data: projections are linear in the raw vector."""
    size = (rows + others).norm(dim=1)
    shared = mine.class_means.keys() & theirs.class_means.keys()
    means = {
        label: numbers(
            (
                torch.tensor(mine.class_means[label]) * rows.norm(dim=1)
                + torch.tensor(theirs.class_means[label]) * others.norm(dim=1)
            )
            / size
        )
        for label in sorted(shared)
    }
    ends = {mine.positive, mine.negative}
    known = ends <= shared and ends == {theirs.positive, theirs.negative}
    return SiteStatistics(
        class_means=means,
        positive=mine.positive if known else None,
        negative=mine.negative if known else None,
        stream_norm=mine.stream_norm if mine.stream_norm == theirs.stream_norm else None,
        bias=sum_of(mine.bias, theirs.bias),
    )
