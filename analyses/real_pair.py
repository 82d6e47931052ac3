"""The five studies on a pair of real models: a hub model, or an adapter of `post_training/` on it, against another.

    python analyses/real_pair.py analyses/gemma_base_safe.toml [--dry-run] [--only refusal ...] [--figures figures]

The file names `name`, the `model` with its `sha256`, and `base` and `post`: "" for the model itself, the name of an
adapter in `post_training/`, or "random": an adapter of random weights whose every update is as large as that of `safe`,
the null of any fine-tuning. `studies`, `size` and `seed` go to `sl.compare`. STEERLAB_REAL_MODELS names the folder of
local copies. A part is a study: its tables go to `figures/<name>/` when it is done, each row with the weights' SHA-256,
and a study whose tables are there for these weights is not run again. `--dry-run` states tokens and time and runs
nothing; `summary.json` holds what each study says and what it took.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import torch
from _local_copies import digest, model_folder
from safetensors.torch import load_file, save_file

import steerlab as sl
from steerlab.comparison import Run, foresee
from steerlab.errors import SteerlabError
from steerlab.plots import save_all
from steerlab.report import csv_text
from steerlab.results import StudyResult

ADAPTERS = Path(__file__).parent / "post_training"
ADAPTER = "adapter_model.safetensors"
STUDIES = ("truthfulness", "refusal", "confidence", "branching", "knowledge")
MATCHED = "safe"  # whose norms a random adapter has


def adapter_folder(name: str, runs: Path, seed: int) -> Path:
    """The folder of an adapter; "random" is made below `runs`."""
    if name != "random":
        return ADAPTERS / name
    made = runs / f"random_adapter_{seed}"
    made.mkdir(parents=True, exist_ok=True)
    for file in ("adapter_config.json", "chat_template.jinja"):
        (made / file).write_bytes((ADAPTERS / MATCHED / file).read_bytes())
    save_file(random_weights(load_file(ADAPTERS / MATCHED / ADAPTER), seed), made / ADAPTER)
    return made


def random_weights(given: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Random A and B of the same shapes, B A as large as before (Frobenius norm) in every matrix."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name in sorted(given):
        if ".lora_A." not in name:
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        a, b = given[name].float(), given[other].float()
        new_a, new_b = (torch.randn(part.shape, generator=generator) for part in (a, b))
        scale = (b @ a).norm() / (new_b @ new_a).norm()
        made |= {name: new_a.to(given[name].dtype), other: (scale * new_b).to(given[other].dtype)}
    if len(made) != len(given):
        raise SystemExit(f"The adapter {MATCHED} holds more than A and B; no random one is made of it.")
    return made


def weights_of(plan: dict[str, Any], runs: Path) -> dict[str, str]:
    """SHA-256 of base and post: of the model, and of the adapter behind a plus sign."""
    found = {}
    for role in ("base", "post"):
        folder = adapter_folder(plan[role], runs, plan["seed"]) if plan[role] else None
        found[role] = plan["sha256"] + (f"+{digest(folder / ADAPTER)}" if folder else "")
    return found


def load(plan: dict[str, Any], runs: Path) -> dict[str, sl.LanguageModel]:
    """Both models; the weights of the model are read once, and twice where a model is compared with itself."""
    folder = model_folder(plan["model"], plan["sha256"])
    model = sl.load(folder, dtype="float32")
    models = {}
    for role in ("base", "post"):
        if plan[role]:
            adapter = adapter_folder(plan[role], runs, plan["seed"])
            models[role] = sl.load(adapter, base=model, merge=False)
        else:
            models[role] = model if not models else sl.load(folder, dtype="float32")
        models[role].name = plan["model"] + (f" + {plan[role]}" if plan[role] else "")
    return models


def with_weights(text: str, weights: dict[str, str]) -> str:
    """A table with the weights' SHA-256 in every row."""
    header, *rows = csv.reader(io.StringIO(text))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*header, *(f"{role}_sha256" for role in weights)])
    writer.writerows([*row, *weights.values()] for row in rows)
    return written.getvalue()


def write(result: StudyResult, run: Run, folder: Path, weights: dict[str, str]) -> None:
    """A study's figures and tables, and what it says; the summary last, since it says that the study is done."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in result.tables():
        path = folder / f"{result.study}_{table.key}.csv"
        path.write_text(with_weights(csv_text(table), weights), encoding="utf-8", newline="")
    pictures = {folder / f"{result.study}_{name}.svg": figure for name, figure in result.figures().items()}
    for saved in save_all(pictures):
        if saved.reason:  # no browser draws here
            saved.path.unlink(missing_ok=True)
    said = summary(folder)
    said[result.study] = {
        "weights": weights,
        "status": result.status,
        "says": list(result.summary),
        "costs": run.manifest.costs.get(result.study),
    }
    partial = folder / "summary.part"
    partial.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / "summary.json")


def summary(folder: Path) -> dict[str, Any]:
    """What is known of earlier parts."""
    path = folder / "summary.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known


def main() -> None:
    """Read the arguments, run the studies that are left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="a TOML file of this folder, or your own")
    parser.add_argument("--dry-run", action="store_true", help="state tokens and time, and run nothing")
    parser.add_argument("--only", nargs="+", choices=STUDIES, help="some of the studies")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where tables and figures go")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    arguments = parser.parse_args()
    plan = {"studies": STUDIES, "size": "quick", "seed": 0} | tomllib.loads(
        arguments.configuration.read_text(encoding="utf-8")
    )
    folder, runs = arguments.figures / plan["name"], arguments.runs / plan["name"]
    weights, known = weights_of(plan, runs), summary(folder)
    asked = arguments.only or plan["studies"]
    left = [name for name in asked if known.get(name, {}).get("weights") != weights]
    print(f"{plan['name']}: left are {', '.join(left) or 'none'}", flush=True)
    if not left:
        return
    try:
        models = load(plan, runs)
        if arguments.dry_run:
            print(foresee(models["base"], models["post"], studies=left, size=plan["size"]))
            return
        for name in left:
            run = sl.compare(
                models["base"], models["post"], out=runs / name, studies=[name], size=plan["size"],
                seed=plan["seed"], overwrite=True,
            )  # fmt: skip
            write(run[name], run, folder, weights)
            print(f"{name}: {run[name].status}", *run[name].summary, sep="\n  ", flush=True)
    except SteerlabError as error:
        raise SystemExit(f"{arguments.configuration}: {error}") from error


if __name__ == "__main__":
    main()
