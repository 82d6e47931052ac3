"""What fitting the maps between two models of real widths costs: time and peak memory on synthetic rows.

    python benchmarks/alignment.py            # 32 layers, 4096 to 5120 dimensions, 512 rows; writes
    results/alignment.json python benchmarks/alignment.py --quick    # two layers; writes nothing

Each layer's rows are made when they are needed, as they would be read; factors of all layers are kept, as `align`
keeps them. Goals: two minutes and 4 GB on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

from steerlab import alignment as al
from steerlab.environment import hardware, library_versions

HERE = Path(__file__).parent
LAYERS, SOURCE, TARGET, ROWS, LATENTS = 32, 4096, 5120, 512, 400
GOAL_SECONDS, GOAL_GB = 120.0, 4.0


def rows_of(layer: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Matched float32 rows of one layer pair."""
    rng = np.random.default_rng(layer)
    latent = rng.standard_normal((n, LATENTS)) * np.arange(1, LATENTS + 1) ** -0.5
    sides = []
    for width in (SOURCE, TARGET):
        made = latent @ rng.standard_normal((LATENTS, width)) + 0.3 * rng.standard_normal((n, width))
        sides.append(made.astype(np.float32))
    return sides[0], sides[1]


def fit(aligner: Any, layers: int) -> dict[str, float]:
    """Seconds of fitting (making the rows is not counted), peak memory so far, and a held-out R²."""
    kept, seconds, r2 = [], 0.0, []
    for layer in range(layers):
        x, y = rows_of(layer, ROWS + 64)
        started = time.perf_counter()
        fitted = type(aligner)(**aligner.get_params(deep=False)).fit(x[:ROWS], y[:ROWS])
        seconds += time.perf_counter() - started
        r2.append(al.r2_diff(fitted, x[ROWS:], y[ROWS:]))
        kept.append(fitted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "layers": layers,
        "seconds": round(seconds, 2),
        "peak GB": round(peak, 2),
        "r2 held out": round(float(np.mean(r2)), 4),
    }


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two layers; writes nothing")
    quick = parser.parse_args().quick
    layers = 2 if quick else LAYERS
    found = {
        "Ridge(), strength by five-fold": fit(al.Ridge(), layers),
        "SvdRegression(512, center=False), published": fit(
            al.SvdRegression(ROWS, center=False), min(layers, 4)
        ),
    }
    one = found["Ridge(), strength by five-fold"]
    results = {
        "configuration": {
            "layers": layers,
            "source width": SOURCE,
            "target width": TARGET,
            "rows": ROWS,
            "dtype": "float64 fit of float32 rows",
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/alignment.py", *sys.argv[1:]]),
        "goal": {"seconds": GOAL_SECONDS, "peak GB": GOAL_GB},
        "met": bool(one["seconds"] <= GOAL_SECONDS and one["peak GB"] <= GOAL_GB),
        "fits": found,
    }
    print(json.dumps(results, indent=1))
    if not quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "alignment.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
