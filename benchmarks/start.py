"""How long a start takes and how large the package is: what a person waits for before anything of theirs runs.

    python benchmarks/start.py [--turns 7]

Every start is a process of its own, beside a Python that imports nothing; processor time is that of the process.
The wheel and the source distribution are built as an installer builds them. Writes `benchmarks/results/start.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from steerlab.environment import hardware, library_versions

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "start.json"
NOTHING = "python alone"
STARTS = {
    NOTHING: "pass",
    "import steerlab": "import steerlab",
    "steerlab --help": "import sys; sys.argv = ['steerlab', '--help']; from steerlab.cli import main; main()",
    "a wrong model name refused": "import sys; sys.argv = ['steerlab', 'doctor', 'zoo:none']; "
    "from steerlab.cli import main; main()",
    "import steerlab.models": "import steerlab.models",
    "import torch": "import torch",
}
FILES = ("steerlab", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff")


def started(code: str) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts(turns: int) -> list[dict[str, Any]]:
    """Seconds of every start, in turn after one that is not counted, and what is more than Python alone."""
    taken: dict[str, list[tuple[float, float]]] = {what: [] for what in STARTS}
    for turn in range(turns + 1):
        for what, code in STARTS.items():
            seconds = started(code)
            if turn:
                taken[what].append(seconds)
    wall, cpu = (
        {what: statistics.median(times[kind] for times in found) for what, found in taken.items()}
        for kind in (0, 1)
    )
    return [
        {
            "what": what,
            "wall seconds": round(wall[what], 3),
            "processor seconds": round(cpu[what], 3),
            "processor seconds beyond Python": round(cpu[what] - cpu[NOTHING], 3),
        }
        for what in STARTS
    ]


def sizes() -> list[dict[str, Any]]:
    """Megabytes of the wheel and the source distribution, and of the trained models in the wheel."""
    with TemporaryDirectory() as place:
        for name in FILES:
            if (ROOT / name).is_dir():
                skipped = lambda _, names: [name for name in names if name == "__pycache__"]  # noqa: E731
                copytree(ROOT / name, Path(place) / name, ignore=skipped)
            else:
                (Path(place) / name).write_bytes((ROOT / name).read_bytes())
        code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
        subprocess.run([sys.executable, "-c", code], cwd=place, check=True, capture_output=True)
        (wheel,), (source,) = (Path(place) / "dist").glob("*.whl"), (Path(place) / "dist").glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as zipped:
            entries = zipped.infolist()
        bytes_of = {
            "wheel": wheel.stat().st_size,
            "trained models in the wheel": sum(
                e.compress_size for e in entries if "/zoo/weights/" in e.filename
            ),
            "wheel, unpacked": sum(e.file_size for e in entries),
            "source distribution": source.stat().st_size,
        }
    return [{"what": what, "megabytes": round(size / 1e6, 1)} for what, size in bytes_of.items()]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    results = {
        "command": f"python benchmarks/start.py --turns {options.turns}",
        "machine": hardware(),
        "versions": library_versions(),
        "load of the machine": os.getloadavg()[0],
        "rows": [*starts(options.turns), *sizes()],
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for row in results["rows"]:  # type: ignore[attr-defined]
        print(row)


if __name__ == "__main__":
    main()
