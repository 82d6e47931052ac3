"""Rows about causal tracing: mean effects with intervals, and how far the early and the late site stand out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.statistics import Estimate, bootstrap_mean, paired_difference
from steerlab.studies._knowledge.noise_effects import NoiseEffects

Row = dict[str, object]
LAST, END = "last subject", "last token"
OTHERS = ("first subject", "middle subject", "after subject", "further")


def map_rows(found: NoiseEffects, seed: int) -> Iterator[Row]:
    """A row a kind, layer and role; the interval is over facts that have such a token."""
    for at, window in enumerate(found.rows):
        for column, role in enumerate(found.roles):
            values = found.by_role[:, at, column]
            values = values[~np.isnan(values)]
            row: Row = {"kind": window.kind, "window": window.width, "layer": window.layer, "role": role}
            yield (
                row
                | {"n": len(values)}
                | (_named("effect", bootstrap_mean(values, seed=seed)) if len(values) else {})
            )


def site_rows(found: NoiseEffects, seed: int) -> Iterator[Row]:
    """The total effect, and each site beside the same kind elsewhere and the other kind at the same token."""
    yield {"question": "total effect"} | _named(
        "value", bootstrap_mean(found.clean - found.corrupted, seed=seed)
    )
    for site, kind, role, other in (
        ("early site", "mlp_out", LAST, "attn_out"),
        ("late site", "attn_out", END, "mlp_out"),
    ):
        mine, layers = at_best_layer(found, kind, (role,))
        controls = {
            f"{kind} at the subject's other tokens and behind it"
            if role == LAST
            else f"{kind} before the last token": (
                kind,
                OTHERS if role == LAST else (*OTHERS, LAST),
            ),
            f"{other} at the {role}": (other, (role,)),
        }
        for name, (what, roles) in controls.items():
            control, _ = at_best_layer(found, what, roles)
            both = ~np.isnan(mine) & ~np.isnan(control)
            yield {
                "question": f"{site}: {kind} at the {role}",
                "layers": layers,
                "n": int(both.sum()),
                **_named("value", bootstrap_mean(mine[both], seed=seed)),
                "control": name,
                **_named("control_value", bootstrap_mean(control[both], seed=seed)),
                **_named("difference", paired_difference(mine[both], control[both], seed=seed)),
            }


def at_best_layer(
    found: NoiseEffects, kind: str, roles: tuple[str, ...]
) -> tuple[Float[np.ndarray, " fact"], str]:
    """Each fact's effect at the layer and role that are best on the other half of the facts; those layers."""
    rows = [at for at, window in enumerate(found.rows) if window.kind == kind]
    columns = [found.roles.index(role) for role in roles]
    cells = found.by_role[:, rows][:, :, columns].reshape(len(found.clean), -1)
    values, chosen = np.full(len(cells), np.nan), []
    for half in (0, 1):
        here = np.arange(len(cells)) % 2 == half
        best = _best(cells[~here])
        values[here] = cells[here, best]
        chosen.append(found.rows[rows[best // len(columns)]].layer)
    return values, " and ".join(map(str, dict.fromkeys(chosen)))


def _best(cells: NDArray[np.float64]) -> int:
    """The column with the greatest mean over the facts that have it; columns that few have are none."""
    known = ~np.isnan(cells)
    means = np.where(known, cells, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return int(np.where(known.mean(axis=0) >= 0.5, means, -np.inf).argmax())


def _named(name: str, estimate: Estimate) -> Row:
    """A number with the ends of its interval."""
    part = "" if name in ("effect", "value") else name.removesuffix("_value") + "_"
    return {name: estimate.value, f"{part}low": estimate.low, f"{part}high": estimate.high}
