"""Do two commits give the same results? Runs the main jobs of both on this machine and compares every byte.

    python tests/same_results.py OLD [NEW]        # NEW: HEAD by default; `.` is this folder as it stands

The jobs are `compare`, `trace`, `transfer` and `branching` on the bundled models and `neurons` on one of them, each
with seed 0. Compared are the stored results, their tables as CSV, the directions and what `neurons` prints. Timings
and times of day are kept apart by where they are stored: in the manifest and the report.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
JOBS = {
    "compare": ["compare", "zoo:small-base", "zoo:small-post"],
    "trace": ["trace", "zoo:large-base", "zoo:large-post"],
    "transfer": ["transfer", "zoo:large-base", "zoo:large-post", "zoo:small-base"],
    "branching": ["branching", "zoo:small-base", "zoo:small-post"],
}
NEURONS = ["neurons", "zoo:small-post"]
#: An editable installation would fill what an old commit lacks with this folder's modules.
ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
"""
COMMAND = (
    ALONE
    + """
import runpy
runpy.run_module("steerlab.cli", run_name="__main__", alter_sys=True)
"""
)
TABLES = (
    ALONE
    + """
import json, pathlib
from steerlab.report import csv_text
try:
    from steerlab.results import result_from_dict
except ImportError:  # before results had a room of their own
    from steerlab.studies import result_from_dict
for file in sorted(pathlib.Path(sys.argv[1]).glob("*/results/*.json")):
    for table in result_from_dict(json.loads(file.read_text())).tables():
        file.with_name(f"{file.stem}_{table.key}.csv").write_text(csv_text(table), newline="")
"""
)


def short(commit: str) -> str:
    """The commit's short hash."""
    command = ["git", "rev-parse", "--short", commit]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def checkout(commit: str, folder: Path) -> Path:
    """The files of `commit` below `folder`; this folder itself for `.`."""
    if commit == ".":
        return ROOT
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", commit, "steerlab"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def run_jobs(code: Path, out: Path) -> None:
    """Every job with the code below `code`, its files below `out`; what is there already is kept."""
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def python(script: str, *arguments: str) -> str:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(
            command, cwd=code, env=environment, check=True, capture_output=True, text=True
        ).stdout

    for name, words in JOBS.items():
        if not (out / name / "report.html").exists():
            python(COMMAND, *words, "--out", str(out / name), "--overwrite")
    (out / "neurons.txt").write_text(python(COMMAND, *NEURONS))
    python(TABLES, str(out))


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of everything that must be equal, by its place below `out`."""
    patterns = ("*/results/*", "*/directions/*", "neurons.txt")
    files = sorted(file for pattern in patterns for file in out.glob(pattern))
    return {str(file.relative_to(out)): hashlib.sha256(content(file)).hexdigest()[:16] for file in files}


def content(file: Path) -> bytes:
    """The bytes of a file; safetensors writes the entries of its header in an order of the day, so they are sorted."""
    data = file.read_bytes()
    if file.suffix != ".safetensors":
        return data
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True)
    return header.encode() + data[8 + length :]


def apart(old: Any, new: Any, tolerance: float, where: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The places where two JSON values differ: numbers by more than `tolerance` of the larger one."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from apart(old[key], new[key], tolerance, f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for row, pair in enumerate(zip(old, new, strict=True)):
            yield from apart(*pair, tolerance, f"{where}[{row}]")
    elif isinstance(old, int | float) and isinstance(new, int | float):
        if abs(old - new) > tolerance * max(1.0, abs(old), abs(new)):
            yield where, (old, new)
    elif old != new:
        yield where, (old, new)


def main() -> None:
    """Run both commits and print what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="another commit, or `.` for this folder")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-6,
        help="which numbers of differing results are shown: relative difference",
    )
    parser.add_argument("--keep", type=Path, help="where the runs are kept, to use them again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept = arguments.keep or Path(temporary)
        found, places = {}, {}
        for role, commit in (("old", arguments.old), ("new", arguments.new)):
            out = kept / (role if commit == "." else short(commit))
            out.mkdir(parents=True, exist_ok=True)
            run_jobs(checkout(commit, Path(temporary) / role), out)
            found[role], places[role] = digests(out), out
    old, new = found["old"], found["new"]
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    print(json.dumps({"files": len(old), "differ": differing}, indent=1))
    for name in differing:
        if name.endswith(".json") and all((place / name).exists() for place in places.values()):
            old_value, new_value = (json.loads((places[role] / name).read_text()) for role in places)
            for where, values in apart(old_value, new_value, arguments.tolerance):
                print(f"{name}{where}: {values[0]!r} {values[1]!r}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
