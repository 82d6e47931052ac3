"""What an audit of large checkpoints costs: peak memory on a pair of 30 GB in parts, and time by bytes on real weights.

    python benchmarks/audit.py [--quick] [--models FOLDER] [--note TEXT]    # writes benchmarks/results/audit.json

Memory: a pair of checkpoints in bfloat16 parts whose files are sparse (zeros, no room on the disk) with a tail of ones
in the last matrix of the candidate, audited in a process of its own; the peak is what the system counts for it, less
pages of files that it maps, which the system takes back when it needs them. Time: a real model against itself, and
against itself with noise on every matrix of its blocks, on one thread; processor seconds by gigabyte of the base say
what 30 GB take. Changes of matrices above 16 million entries are not kept in memory but read again for each product: so
the second is also measured with all of them read again, which is what models of 30 GB do. Zeros say nothing of time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steerlab.environment import hardware, library_versions

RESULT = Path(__file__).parent / "results" / "audit.json"
GOAL = {"gigabytes": 30, "peak gigabytes": 1.5, "minutes": 30}
#: The matrices of one block of a Llama of the width of 14 billion parameters, [rows, columns]; 52 blocks are 30 GB.
WIDTH, NEURONS, BLOCKS = 5120, 13_824, 52
SHAPES = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qo"},
    **{f"self_attn.{name}_proj": (1024, WIDTH) for name in "kv"},
    **{f"mlp.{name}_proj": (NEURONS, WIDTH) for name in ("gate", "up")},
    "mlp.down_proj": (WIDTH, NEURONS),
}
WORDS = 152_064
MODEL = "qwen2.5-coder-1.5b-instruct"


def sparse(folder: Path, blocks: int, words: int, ones: int) -> int:
    """A checkpoint of zeros in parts, with `ones` at the end of its last matrix; its nominal bytes."""
    folder.mkdir()
    parts = [("model.embed_tokens", {"weight": (words, WIDTH)})]
    parts += [
        (f"model.layers.{number}", {f"{name}.weight": shape for name, shape in SHAPES.items()})
        for number in range(blocks)
    ]
    places, total = {}, 0
    for number, (prefix, tensors) in enumerate(parts):
        head, size = {}, 0
        for name, (rows, columns) in tensors.items():
            head[f"{prefix}.{name}"] = {
                "dtype": "BF16",
                "shape": [rows, columns],
                "data_offsets": [size, size + 2 * rows * columns],
            }
            size += 2 * rows * columns
            places[f"{prefix}.{name}"] = f"model-{number}.safetensors"
        written = json.dumps(head).encode()
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(written)) + written)
            file.truncate(8 + len(written) + size)
        total += size
    if ones:
        with (folder / f"model-{len(parts) - 1}.safetensors").open("r+b") as file:
            file.seek(-2 * ones, os.SEEK_END)
            file.write(b"\x80\x3f" * ones)  # 1 in bfloat16
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def watched(work: Callable[[], Any]) -> dict[str, Any]:
    """What some work takes in this process: seconds, and peak bytes with and without pages of mapped files."""
    peak, over = {"held": 0, "with mapped files": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            said = Path("/proc/self/status").read_text()
            sizes = {name: 1024 * int(size) for name, size in re.findall(r"(Rss\w+|VmRSS):\s+(\d+)", said)}
            peak["held"] = max(peak["held"], sizes["VmRSS"] - sizes["RssFile"])
            peak["with mapped files"] = max(peak["with mapped files"], sizes["VmRSS"])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began, spent = time.perf_counter(), time.process_time()
    found = work()
    taken = {"seconds": time.perf_counter() - began, "cpu seconds": time.process_time() - spent}
    over.set()
    watcher.join()
    return {"found": found, **taken, "peak gigabytes": peak["held"] / 1e9, "peak bytes": peak}


def audited(base: Path, candidate: Path, *, again: bool) -> dict[str, Any]:
    """An audit in this process, on one thread; again: no change is kept in memory."""
    import torch

    import steerlab as sl
    from steerlab.auditing import _spectrum

    torch.set_num_threads(1)
    if again:
        _spectrum._KEPT = 0
    result = watched(lambda: sl.audit(base, candidate))
    audit = result.pop("found")
    changed = sum(row.rows * row.columns for row in audit.matrices if row.label != "same")
    every = sum(row.rows * row.columns for row in audit.matrices)
    return {"kind": audit.kind, "share changed": changed / every, **result}


def in_process(base: Path, candidate: Path, *options: str) -> dict[str, Any]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--work", str(base), str(candidate), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def large(folder: Path, blocks: int, words: int) -> dict[str, Any]:
    """An audit of a sparse pair."""
    total = sparse(folder / "base", blocks, words, 0)
    sparse(folder / "candidate", blocks, words, 4 * NEURONS)
    return {
        "bytes of each side": total,
        "files": blocks + 1,
        **in_process(folder / "base", folder / "candidate"),
    }


def real(models: Path, folder: Path) -> dict[str, Any]:
    """A real model against itself, and against itself with noise of a fiftieth on every matrix of its blocks."""
    import torch
    from transformers import AutoModelForCausalLM

    base = models / MODEL
    module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("_proj.weight"):
                weight.add_(0.02 * weight.float().std() * torch.randn(weight.shape))
    module.save_pretrained(folder / "changed")
    size = (base / "model.safetensors").stat().st_size
    del module
    found = {
        "same": in_process(base, base),
        "changed": in_process(base, folder / "changed"),
        "changed, read again": in_process(base, folder / "changed", "--again"),
    }
    for one in found.values():
        one["cpu seconds a gigabyte"] = one["cpu seconds"] / size * 1e9
        one["minutes of 30 GB"] = one["cpu seconds a gigabyte"] * GOAL["gigabytes"] / 60
    return {"model": MODEL, "bytes": size, **found}


def main() -> None:
    """Measure, print and, unless quick, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one block, few words and no real model; writes nothing"
    )
    parser.add_argument(
        "--models", type=Path, help=f"the folder with {MODEL}; without it no time is measured"
    )
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--note", default="", help="what else the machine did, written beside the numbers")
    chosen = parser.parse_args()
    if chosen.work:
        print(json.dumps(audited(*chosen.work, again=chosen.again)))
        return
    if not Path("/proc/self/status").exists():
        raise SystemExit("Memory is read from /proc, which this system has not.")
    found: dict[str, Any] = {"goal": GOAL}
    with tempfile.TemporaryDirectory() as place:
        found["sparse pair"] = large(Path(place), *((1, 1000) if chosen.quick else (BLOCKS, WORDS)))
    if chosen.models and not chosen.quick:
        with tempfile.TemporaryDirectory() as place:
            found["real pair"] = real(chosen.models, Path(place))
    found |= {"machine": hardware(), "versions": library_versions(), "beside it": chosen.note}
    print(json.dumps(found, indent=1))
    if not chosen.quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
