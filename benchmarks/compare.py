"""What a comparison of a real pair cost, as a table: tokens, seconds in the models and outside, memory.

    python benchmarks/compare.py runs/real [runs/real-knowledge ...]

Reads the manifests of runs that `steerlab compare` made of one pair, a study of a later run in place of an earlier
one's, and writes `benchmarks/results/compare.json` and the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from steerlab.run_folder import RunFolder

RESULT = Path(__file__).parent / "results" / "compare.json"
KINDS = ("read", "generated", "patched", "unembedded")


def rows(folder: Path) -> dict[str, Any]:
    """The cost of every study of a run, and what it was made with."""
    manifest = RunFolder.open(folder).manifest()
    studies = {}
    for study, cost in manifest.costs.items():
        seconds = manifest.timings[study]
        studies[study] = {
            **{kind: int(sum(cost[f"{role} {kind}"] for role in manifest.models)) for kind in KINDS},
            "seconds": seconds,
            "share outside the models": round(cost["seconds outside"] / max(seconds, 1e-9), 3),
            "peak MiB": manifest.peak_memory[study],
        }
    models = {
        role: {name: facts[name] for name in ("name", "fingerprint", "parameters", "dtype", "device")}
        for role, facts in manifest.models.items()
    }
    return {
        "models": models,
        "size": manifest.configuration["size"],
        "hardware": manifest.hardware,
        "studies": studies,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument(
        "--keep", action="store_true", help="studies that no run has stay as they are in the file"
    )
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text("utf-8")) if arguments.keep else {}
    for run in arguments.runs:
        one = rows(run)
        found = {**one, "studies": {**found.get("studies", {}), **one["studies"]}}
    found["minutes"] = round(sum(study["seconds"] for study in found["studies"].values()) / 60, 1)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"| study | {' | '.join(KINDS)} | seconds | outside | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for study, cost in found["studies"].items():
        numbers = " | ".join(f"{cost[kind]:,}" for kind in KINDS)
        peak = max(cost["peak MiB"].values(), default=0.0)
        print(
            f"| {study} | {numbers} | {cost['seconds']:.0f} | {cost['share outside the models']:.0%} | {peak:.0f} |"
        )


if __name__ == "__main__":
    main()
