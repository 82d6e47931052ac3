"""Published curves of large models, read from their CSV files, and drawn next to ours.

The files (model, series, x, bf) hold cumulative branching factors of random strings by position, as the revision of
arXiv 2506.17871 published them: from stored top-50 scores, so with a ceiling of about 51, and cumulative, so not to
be read as local values.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from steerlab import plots
from steerlab.errors import DatasetError
from steerlab.plots import Series

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Curve = tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]
_COLUMNS = ("model", "series", "x", "bf")


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Positions and factors by "model, series". Raises `DatasetError` for another kind of file."""
    place = Path(path)
    try:
        with place.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{place} cannot be read: {error}.") from error
    if not rows or any(name not in rows[0] for name in _COLUMNS):
        raise DatasetError(f"{place} holds no curves: it needs the columns {', '.join(_COLUMNS)}.")
    points: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows, 2):
        try:
            points.setdefault(f"{row['model']}, {row['series'].replace('_', ' ')}", []).append(
                (float(row["x"]), float(row["bf"]))
            )
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{place}, row {number}: x and bf are numbers.") from error
    return {
        name: (np.array([x for x, _ in points]), np.array([y for _, y in points]))
        for name, points in points.items()
    }


def beside(ours: Mapping[str, Sequence[float]], published: Mapping[str, Curve]) -> Figure:
    """Our cumulative curves and the published ones."""
    series = [Series(name, values, x=np.arange(len(values))) for name, values in ours.items()]
    series += [Series(name, y, x=x, role="control") for name, (x, y) in published.items()]
    return plots.curves(
        series,
        title="Cumulative branching factor, ours beside published ones",
        x_title="Position in the output (tokens)",
        y_title="Branching factor",
    )
