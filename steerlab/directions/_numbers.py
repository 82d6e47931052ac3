"""The numbers inside a `Direction`: rows are checked as they come in, statistics follow the arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steerlab.directions._header import Numbers, SiteHeader, SiteStatistics
from steerlab.errors import DirectionError, kind_of
from steerlab.models import Site


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


def same_width(site: Site, a: Tensor, b: Tensor) -> None:
    """Raise unless two vectors have one shape."""
    if a.shape != b.shape:
        raise DirectionError(
            f"At {site} the directions have shapes {tuple(a.shape)} and {tuple(b.shape)}; take one shape."
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
