"""Write steerlab/costs.json from runs that were made: what each study puts through a pair of models.

    python analyses/costs.py quick=runs/zoo-small large=runs/real full=runs/zoo-full

Each run folder's manifest holds the tokens of every study and the seconds inside and outside of the models. `quick` and
`full` are of a small pair (bundled), `large` of a pair above 20 million parameters, whose quick amounts are others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import steerlab
from steerlab.run_folder import RunFolder
from steerlab.studies._pair import LARGE

TARGET = Path(steerlab.__file__).parent / "costs.json"
KINDS = ("read", "generated", "patched", "unembedded")


def costs(folder: Path) -> tuple[int, dict[str, dict[str, float]]]:
    """Layers of a run's models, and by study the tokens of both together and the share outside of the models."""
    manifest = RunFolder.open(folder).manifest()
    found: dict[str, dict[str, float]] = {}
    for study, cost in manifest.costs.items():
        tokens = {kind: sum(cost[f"{role} {kind}"] for role in manifest.models) for kind in KINDS}
        inside, outside = cost["seconds in the models"], cost["seconds outside"]
        found[study] = {**tokens, "outside": round(outside / max(inside, 1e-9), 3)}
    return max(int(str(facts["layers"])) for facts in manifest.models.values()), found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="AMOUNTS=FOLDER")
    written: dict[str, Any] = json.loads(TARGET.read_text("utf-8")) if TARGET.exists() else {}
    written = {"layers": {}, "amounts": {}, **written}
    for given in parser.parse_args().runs:
        amounts, _, folder = given.partition("=")
        key = LARGE if amounts == "large" else amounts
        layers, found = costs(Path(folder))
        written["layers"][key] = layers
        written["amounts"].setdefault(key, {}).update(found)
    TARGET.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
