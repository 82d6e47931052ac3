"""Parts that interventions share: layers and strengths as people write them, a direction's vectors as matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.sites import is_layer

Strength: TypeAlias = "float | Mapping[int, float]"
LayersGiven: TypeAlias = "int | Iterable[int] | str | None"
#: The sine of an angle below which a float32 vector lies in a span.
_INSIDE = 1e-5


def layers_given(layers: Any) -> tuple[int, ...]:
    """Layers as somebody wrote them down: one number, (first, last) with both in it, or a list of numbers.

    Raises:
        SteeringError: something else.
    """
    listed = list(layers) if isinstance(layers, Iterable) else [layers]
    if isinstance(layers, str) or not all(is_layer(n) for n in listed):
        raise SteeringError(
            f"The layers are {layers!r}; write layers=18, layers=(10, 18), layers=[10, 14, 18] or layers='all'."
        )
    if isinstance(layers, tuple) and len(listed) == 2:
        first, last = listed
        if first > last:
            raise SteeringError(
                f"The layers {first} to {last} are none; write (first, last) in ascending order."
            )
        return tuple(range(first, last + 1))
    return tuple(map(index, listed))


def at_layers(direction: Direction, layers: Sequence[int]) -> tuple[Site, ...]:
    """The sites at some layers of the kind of site a direction has."""
    names = {site.name for site in direction.sites}
    if len(names) != 1 or direction.sites[0].layer is None:
        raise SteeringError(
            f"Layers of {direction!r} mean nothing, which has vectors at {', '.join(sorted(names))}; name the sites."
        )
    if not layers or min(layers) < 0:
        raise SteeringError(
            f"The layers {list(layers)} name no sites; count from 0, or take model.sites(name, [-1]) for the last."
        )
    (name,) = names
    return tuple(Site(name, layer) for layer in layers)


def where_it_works(direction: Direction) -> tuple[Site, ...]:
    """The only site of a direction, or the one where it works best.

    Raises:
        SteeringError: a direction of several sites that does not know it.
    """
    if len(direction.sites) == 1:
        return direction.sites
    if direction.best is None:
        layer = direction.sites[len(direction.sites) // 2].layer
        named = f"sites='{direction.sites[0].name}'" if layer is None else f"layers={layer}"
        raise SteeringError(
            f"{direction!r} has {len(direction.sites)} sites and does not know where it works best; name some, for "
            f"example {named}, or layers='all'."
        )
    return (direction.best,)


def strength_at(strength: Strength, site: Site) -> float:
    """The strength at a site; a mapping gives one a layer.

    Raises:
        SteeringError: the mapping has none for the site's layer, or it is no number.
    """
    return _number(at_layer(strength, site, "strength"))


def at_layer(given: Any, site: Site, what: str) -> Any:
    """What a mapping by layer has for a site; anything else as it is.

    Raises:
        SteeringError: the mapping has nothing for the site's layer.
    """
    if not isinstance(given, Mapping):
        return given
    if site.layer is None or site.layer not in given:
        known = ", ".join(map(str, given))
        raise SteeringError(f"There is no {what} for {site}; the mapping has the layers {known}.")
    return given[site.layer]


def _number(strength: Any) -> float:
    if isinstance(strength, str | bool) or not hasattr(strength, "__float__"):
        raise SteeringError(
            f"The strength is {strength!r}; give a number, or one by layer: {{8: 0.5, 9: 1.0}}."
        )
    return float(strength)


def orthonormal(direction: Direction, site: Site) -> Float[Tensor, "width k"]:
    """An orthonormal basis of the span of a direction's vectors at a site, float64."""
    rows = direction.vectors[direction.source(site)].double()
    basis: Tensor = torch.linalg.qr(rows.T).Q
    return basis


def unit_rows(direction: Direction, site: Site) -> Float[Tensor, "k width"]:
    """A direction's vectors at a site, each at length one, float64."""
    rows = direction.vectors[direction.source(site)].double()
    return torch.nn.functional.normalize(rows, dim=1)


def outside(
    columns: Float[Tensor, "width k"], keep: Sequence[Direction], site: Site
) -> Float[Tensor, "width k"]:
    """The columns without their part in the span of the directions to keep at a site.

    Raises:
        DirectionError: a direction to keep has no vector at the site.
        SteeringError: it has another width there.
    """
    rows = torch.cat([unit_rows(_of_width(one, site, len(columns)), site) for one in keep])
    left, sizes, _ = torch.linalg.svd(rows.T, full_matrices=False)
    basis = left[:, sizes > _INSIDE * sizes[0]]
    rest: Tensor = columns - basis @ (basis.T @ columns)
    rest -= basis @ (basis.T @ rest)  # once more, so that rounding leaves nothing
    return rest


def basis_outside(direction: Direction, keep: Sequence[Direction], site: Site) -> Float[Tensor, "width r"]:
    """An orthonormal basis of what a direction's span has at right angles to the directions to keep, float64.

    With sines s of the angles between the two spans, r ≤ k is the number of those that are not zero.

    Raises:
        SteeringError: all of it lies in the kept span.
    """
    basis = orthonormal(direction, site)
    if not keep:
        return basis
    left, sines, _ = torch.linalg.svd(outside(basis, keep, site), full_matrices=False)
    if float(sines[0]) <= _INSIDE:
        raise SteeringError(
            f"{direction!r} lies in the span of what is to be kept at {site}, so nothing of it is left to ablate; keep "
            "other directions, or ablate another one."
        )
    return outside(left[:, sines > _INSIDE], keep, site)


def _of_width(direction: Direction, site: Site, width: int) -> Direction:
    found = direction.vectors[direction.source(site)].shape[1]
    if found != width:
        raise SteeringError(
            f"{direction!r}, which is to be kept, has width {found} at {site}, and what is ablated there has {width}; "
            "give directions of one model."
        )
    return direction


def require_finite(what: str, *numbers: float) -> None:
    """Raise a sentence for a number that is not finite."""
    for number in numbers:
        if not torch.isfinite(torch.tensor(float(number))):
            raise SteeringError(f"The {what} is {number}; give a finite number.")
