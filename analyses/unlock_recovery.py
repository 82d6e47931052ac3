"""How well does each aligner bring a planted direction back? Two linear-Gaussian models that share latents, no
real ones.

    python analyses/unlock_recovery.py

120 latents with a power-law spectrum reach 256 and 384 dimensions through known maps, with private noise and a few
massive channels on either side; a sparse latent shift is the capability. Drawn: cosine of the carried with the
true target direction by number of rows, by rank and by noise, mean and range of six seeds;
`figures/unlock_recovery/recovery.csv` holds the numbers.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from steerlab import alignment as al
from steerlab.plots import Series, curves, save

LATENTS, SOURCE, TARGET, SEEDS = 120, 256, 384, 6
ROWS, RANKS, NOISES = (32, 64, 128, 256, 512), (1, 4, 16, 64, 128, 256), (0.0, 0.1, 0.3, 1.0, 3.0)
USUAL_ROWS, USUAL_NOISE = 256, 0.3


def world(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of both models, and the planted direction in each."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, LATENTS + 1) ** -0.7
    maps = [rng.standard_normal((LATENTS, width)) / np.sqrt(LATENTS) for width in (SOURCE, TARGET)]
    latent = rng.standard_normal((n, LATENTS)) * scale
    shift = np.zeros(LATENTS)
    shift[rng.choice(np.arange(20, LATENTS), 6, replace=False)] = rng.standard_normal(6)
    rows = []
    for one in maps:
        found = latent @ one
        found = found + noise * np.median(found.std(axis=0)) * rng.standard_normal(found.shape)
        found[:, :3] += 20 * found.std() * (1 + 0.05 * rng.standard_normal((n, 3)))  # massive channels
        rows.append(found)
    return rows[0], rows[1], shift @ maps[0], shift @ maps[1]


def aligners(n: int, rank: int) -> dict[str, Callable[[], Any]]:
    """All of them, at a rank where they have one."""
    k = min(rank, n - 1)
    return {
        "ridge": lambda: al.Ridge(),
        "reduced rank": lambda: al.ReducedRank(k),
        "SVD regression, centred": lambda: al.SvdRegression(k),
        "SVD regression, published": lambda: al.SvdRegression(k, center=False),
        "Procrustes": lambda: al.Procrustes(k),
        "CCA": lambda: al.Cca(k, reg=0.1),
        "affine with cycle": lambda: al.AffineMap(epochs=60),
        "anchors": lambda: al.Anchor(),
        "shuffled pairs": lambda: al.ShuffledPairs(al.Ridge()),
        "random turn": lambda: al.RandomOrthogonal(),
        "zero padding": lambda: al.ZeroPad(),
    }


def recovered(make: Callable[[], Any], n: int, noise: float, seed: int) -> tuple[float, float]:
    """Cosine of the carried with the true direction, and R² of differences on rows that were not fitted on."""
    x, y, source, target = world(n + 200, noise, seed)
    fitted = make().fit(x[:n], y[:n])
    moved = fitted.transform_direction(source)
    norms = np.linalg.norm(moved) * np.linalg.norm(target)
    return float(moved @ target / norms) if norms else 0.0, al.r2_diff(fitted, x[n:], y[n:])


def main() -> None:
    """Fit everything, draw three figures, write one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--figures", type=Path, default=Path("figures"), help="where figures and the table go"
    )
    folder = parser.parse_args().figures / "unlock_recovery"
    folder.mkdir(parents=True, exist_ok=True)
    table: list[dict[str, Any]] = []
    sweeps = {
        "rows": [(n, n, 64, USUAL_NOISE) for n in ROWS],
        "rank": [(rank, USUAL_ROWS, rank, USUAL_NOISE) for rank in RANKS],
        "noise": [(noise, USUAL_ROWS, 64, noise) for noise in NOISES],
    }
    titles = {
        "rows": "Rows fitted on (rank 64)",
        "rank": f"Rank, of those that have one ({USUAL_ROWS} rows)",
        "noise": f"Private noise, in standard deviations of the shared part ({USUAL_ROWS} rows, rank 64)",
    }
    for what, points in sweeps.items():
        found: dict[str, list[tuple[float, float, float, float]]] = {}
        for at, n, rank, noise in points:
            for name, make in aligners(n, rank).items():
                each = [recovered(make, n, noise, seed) for seed in range(SEEDS)]
                cosines = [cosine for cosine, _ in each]
                row = (
                    float(np.mean(cosines)),
                    min(cosines),
                    max(cosines),
                    float(np.mean([r2 for _, r2 in each])),
                )
                found.setdefault(name, []).append(row)
                table.append(dict(zip(("sweep", "at", "aligner", "cosine", "least", "greatest", "r2_diff"),
                                      (what, at, name, *(round(value, 4) for value in row)), strict=True)))  # fmt: skip
            print(what, at)
        controls = ("shuffled pairs", "random turn", "zero padding")
        figure = curves(
            [
                Series(
                    name,
                    [row[0] for row in rows],
                    role="control" if name in controls else "other",
                )
                for name, rows in found.items()
            ],
            list(range(len(points))),
            title="Cosine of the carried with the true direction",
            x_title=titles[what],
            y_title="Cosine",
            y_range=(-0.3, 1.02),
        )
        figure.update_xaxes(tickvals=list(range(len(points))), ticktext=[f"{point[0]:g}" for point in points])
        figure.update_layout(height=520, width=900)
        for name in ("affine with cycle", "anchors"):  # the palette begins again with these
            figure.update_traces(line_dash="dash", selector={"name": name})
        print(save(figure, folder / f"{what}.svg").path)
    with (folder / "recovery.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    print(folder / "recovery.csv")


if __name__ == "__main__":
    main()
