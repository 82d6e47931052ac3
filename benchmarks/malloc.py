"""Page faults on Linux: what large logits on a CPU cost with glibc's defaults, and with memory that is kept.

    python benchmarks/malloc.py [--quick]     # writes benchmarks/results/malloc.json

glibc gives every block above 32 MB back to the system, so logits of a large vocabulary are fresh pages in every step,
and the kernel clears each of them. The environment of `KEPT` lets the process keep them. Each turn runs both in
processes of their own, one after the other, in an order that alternates: log-softmax of 32 rows of 262,144 words.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _timing import Spread

from steerlab.environment import hardware, library_versions

RESULT = Path(__file__).parent / "results" / "malloc.json"
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
ROWS, WORDS, STEPS, TURNS = 32, 262_144, 40, 5


def work(steps: int) -> dict[str, float]:
    """Seconds and page faults of some steps, in this process."""
    import torch

    torch.set_num_threads(1)
    logits = torch.zeros(ROWS, WORDS)
    torch.log_softmax(logits, dim=-1)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    for _ in range(steps):
        torch.log_softmax(logits + 1.0, dim=-1)
    seconds = time.process_time() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt
    return {"seconds": seconds, "page faults": faults}


def in_process(extra: dict[str, str], steps: int) -> dict[str, float]:
    """The same in a fresh process under these variables."""
    plain = {name: value for name, value in os.environ.items() if name not in KEPT}
    command = [sys.executable, __file__, "--work", str(steps)]
    done = subprocess.run(command, env={**plain, **extra}, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(turns: int, steps: int) -> dict[str, Any]:
    """Processor time with kept memory over that of the defaults, and page faults of both."""
    ratios, faults = [], {"default": 0.0, "kept": 0.0}
    for turn in range(turns):
        ways = {"default": {}, "kept": KEPT}
        found = {name: in_process(ways[name], steps) for name in (ways if turn % 2 else reversed(ways))}
        ratios.append(found["kept"]["seconds"] / found["default"]["seconds"])
        faults = {name: found[name]["page faults"] for name in ways}
    return {"cpu ratio": Spread.of(ratios).to_dict(), "page faults": faults, "turns": turns}


def main() -> None:
    """Measure, print and, unless quick, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short turn; writes nothing")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--note", default="", help="what else the machine did, written beside the numbers")
    chosen = parser.parse_args()
    if chosen.work:
        print(json.dumps(work(chosen.work)))
        return
    if platform.libc_ver()[0] != "glibc":
        raise SystemExit("These variables are glibc's, and this machine runs another C library.")
    found = measure(1 if chosen.quick else TURNS, 2 if chosen.quick else STEPS)
    found |= {"work": f"log-softmax of {ROWS} rows of {WORDS:,} words, {STEPS} times", "environment": KEPT}
    found |= {"machine": hardware(), "versions": library_versions(), "beside it": chosen.note}
    print(json.dumps(found, indent=1))
    if not chosen.quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
