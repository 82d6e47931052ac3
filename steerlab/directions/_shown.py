"""How a direction shows itself: by site its norm, the scale of its classes, and its accuracy where that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.showing import html_table

if TYPE_CHECKING:
    from steerlab.directions.direction import Direction


def direction_html(direction: Direction) -> str:
    """One row a site; columns that nothing is known for are left out."""
    columns: dict[str, list[object]] = {
        "Site": list(direction.sites),
        "Vectors": [len(rows) for rows in direction.vectors.values()],
        "Norm": [float(rows.norm(dim=1).mean()) for rows in direction.vectors.values()],
    }
    columns["Class gap"] = [_gap(direction, site) for site in direction.sites]
    columns["Stream norm"] = [direction.statistics[site].stream_norm for site in direction.sites]
    columns["Held-out accuracy"] = [direction.accuracy.get(site) for site in direction.sites]
    kept = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    if set(kept["Vectors"]) == {1}:
        del kept["Vectors"]
    where = f", {direction.position}" if direction.position else ""
    best = f"; best at {direction.best}" if direction.best else ""
    caption = f"{direction.estimator} in {direction.model_name}{where}{best}"
    return html_table(caption, list(kept), zip(*kept.values(), strict=True))


def _gap(direction: Direction, site: object) -> float | None:
    s = direction.statistics[site]  # type: ignore[index]
    if s.positive is None or s.negative is None or len(s.class_means[s.positive]) != 1:
        return None
    return s.class_means[s.positive][0] - s.class_means[s.negative][0]
