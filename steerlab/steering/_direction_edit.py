"""What every edit made from a direction shares: which vector acts at which site, and the edit as plain data."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steerlab import models
from steerlab.directions import Direction
from steerlab.errors import DirectionError, SteeringError
from steerlab.models import Selector, Site

Cache: TypeAlias = dict[tuple[Site, torch.device, torch.dtype], Tensor]


def vectors_at(direction: Direction, site: Site) -> Tensor:
    """The rows [k, width] that act at a site: its own, or those of a direction with a single site.

    Raises:
        DirectionError: when the direction has several sites and this is none of them.
    """
    return direction.vectors[source(direction, site)]


def source(direction: Direction, site: Site) -> Site:
    """The site whose vector acts at ``site``."""
    if site in direction.vectors:
        return site
    if len(direction.sites) == 1:
        return direction.sites[0]
    raise DirectionError(
        f"The direction has no vector at {site} and {len(direction.sites)} others to choose from; "
        "pick one with direction.at(site)."
    )


def cached(cache: Cache, site: Site, like: Tensor, made: Tensor) -> Tensor:
    """``made`` on the device and in the precision of ``like``, moved there once."""
    key = (site, like.device, like.dtype)
    if key not in cache:
        cache[key] = made.to(like.device, like.dtype)
    return cache[key]


def check_width(model: models.LanguageModel, direction: Direction, sites: Iterable[Site]) -> None:
    """Raise `DirectionError` unless the direction belongs to the model and fits these sites."""
    direction.check(model)
    for site in sites:
        model.require(site)
        width = vectors_at(direction, site).shape[1]
        if width != model.width(site):
            raise DirectionError(
                f"The direction has width {width} but {site} of {model.name} has width {model.width(site)}; "
                "choose sites of its own width."
            )


def positions_to_text(positions: Selector) -> str:
    """A selector as text: its constructor call."""
    return repr(positions)


def positions_from_text(text: str) -> Selector:
    """The selector written by :func:`positions_to_text`; only selectors and their plain arguments are understood."""
    try:
        return _selector(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise SteeringError(
            f"{text!r} is not a position selector; write it like 'Index(-1)' or 'All()'."
        ) from error


def _selector(node: ast.expr) -> Selector:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("not a call")
    kind = getattr(models, node.func.id, None)
    if not (isinstance(kind, type) and issubclass(kind, Selector)):
        raise ValueError("not a selector")
    return kind(*map(_argument, node.args), **{str(k.arg): _argument(k.value) for k in node.keywords})


def _argument(node: ast.expr) -> Any:
    return _selector(node) if isinstance(node, ast.Call) else ast.literal_eval(node)


def find_direction(data: Mapping[str, Any], directions: Iterable[Direction]) -> Direction:
    """The direction an edit's data refers to by its hash."""
    for direction in directions:
        if direction.hash == data["direction"]:
            return direction
    raise SteeringError(f"The edit refers to direction {data['direction']}, which is not among those given.")
