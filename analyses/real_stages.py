"""Which stage of training changed what in a real model, beside contrasts that training did not aim at?

    python analyses/real_stages.py analyses/real_stages.toml [--dry-run] [--figures figures] [--runs runs]

The file names a hub model with its SHA-256 and the stages made from it. Every stage is measured by itself and kept in
the run folder (`--runs`) as soon as it is, so an interrupted run goes on. `changes.csv`, `values.csv` and
`controls.csv` are the tables of the study, with the weights' SHA-256 in each row; `leak.csv` says how much of an
ablated direction the last layer still holds; `summary.json` what the study says and what each stage took.
STEERLAB_REAL_MODELS names the folder of local copies.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _local_copies import WEIGHTS, digest, model_folder
from _part_files import PartFile
from _script import arguments_of
from torch import Tensor, nn

import steerlab as sl
from steerlab.datasets import plain_text
from steerlab.errors import SteerlabError
from steerlab.plots import save_all
from steerlab.report import csv_text

ADAPTERS = Path(__file__).parent / "post_training"
WRITERS = ("o_proj.weight", "down_proj.weight")
TEXTS = 4  # on which the leak is measured
LEAK = ("stage", "weights_sha256", "read_at", "before", "after")


def main() -> None:
    """Read the file, make what is not there yet, and compare."""
    arguments = arguments_of(__doc__, only="stages", runs=True)
    plan, folder, runs = arguments.plan, arguments.folder, arguments.runs / arguments.plan["name"]
    root = model_folder(plan["model"], plan["sha256"])
    labels = [stage["label"] for stage in plan["stage"]]
    if arguments.dry_run:
        print(f"{plan['name']}: {' → '.join(labels)}, {', '.join(plan['studies'])}; nothing is loaded")
        return
    leak = PartFile(folder / "leak.csv", LEAK, ("stage", "weights_sha256"))
    try:
        checkpoints = [_checkpoint(stage, root, runs, leak) for stage in plan["stage"]]
        run = sl.compare(
            checkpoints, labels=labels, out=runs / "run", studies=plan["studies"], size=plan["size"],
            seed=plan["seed"], resume=True, dtype="float32", announce=lambda line: print(line, flush=True),
        )  # fmt: skip
    except SteerlabError as error:
        raise SystemExit(f"{arguments.configuration}: {error}") from error
    weights = {label: _digest(one) for label, one in zip(labels, checkpoints, strict=True)}
    _write(run, folder, weights)
    print(*run["stages"].summary, sep="\n  ", flush=True)


def _checkpoint(stage: Mapping[str, Any], root: Path, runs: Path, leak: PartFile) -> Path:
    """The folder of a stage; an ablated one is made below `runs`."""
    if not stage.get("ablated"):
        return ADAPTERS / stage["adapter"] if "adapter" in stage else root
    made = runs / stage["label"]
    if not (made / WEIGHTS).is_file():
        model = sl.load(root, dtype="float32")
        if "adapter" in stage:
            model = sl.load(ADAPTERS / stage["adapter"], base=model)
        direction = sl.extract(model, "refusal")
        assert direction.best is not None  # the packaged requests are enough to choose a layer
        unit = torch.nn.functional.normalize(direction[direction.best].float(), dim=0)
        before = _share(model, unit)
        remove(model.model, unit)
        after = _share(model, unit)
        model.model.save_pretrained(made)
        model.tokenizer.save_pretrained(made)
        leak.write(
            {"stage": stage["label"], "weights_sha256": digest(made / WEIGHTS)},
            [{"read_at": str(direction.best), "before": before, "after": after}],
        )
    return made


def remove(module: nn.Module, unit: Tensor) -> None:
    """W - u u^T W in every output of attention and MLP (Arditi et al., 2024), whether a norm follows or not."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith(WRITERS):
                weight -= torch.outer(unit, unit @ weight.float()).to(weight.dtype)


def _share(model: sl.LanguageModel, unit: Tensor) -> float:
    """The mean share of the last layer's squared norm along `unit`, over the tokens of some plain texts."""
    last = sl.Site("resid_post", model.n_layers - 1)
    texts = list(plain_text())[:TEXTS]
    rows = sl.capture(model, texts, [last], positions=sl.All() - sl.Index(0))[last].float()
    return float(((rows @ unit) ** 2 / rows.pow(2).sum(-1)).mean())


def _digest(place: Path) -> str:
    file = place / WEIGHTS
    return digest(file if file.is_file() else place / "adapter_model.safetensors")


def _write(run: Any, folder: Path, weights: Mapping[str, str]) -> None:
    """Tables, pictures and the summary."""
    result = run["stages"]
    folder.mkdir(parents=True, exist_ok=True)
    for table in result.tables():
        path = folder / f"{table.key}.csv"
        path.write_text(_with_weights(csv_text(table), weights), encoding="utf-8", newline="")
    for saved in save_all({folder / f"{name}.svg": figure for name, figure in result.figures().items()}):
        if saved.reason:  # no browser draws here
            saved.path.unlink(missing_ok=True)
    said = {
        "weights": dict(weights),
        "status": result.status,
        "says": list(result.summary),
        "seconds": run.manifest.timings,
        "costs": run.manifest.costs,
    }
    (folder / "summary.json").write_text(
        json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _with_weights(text: str, weights: Mapping[str, str]) -> str:
    """A table with the weights' SHA-256 in every row, one column a stage."""
    header, *rows = csv.reader(io.StringIO(text))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*header, *(f"{label}_sha256" for label in weights)])
    writer.writerows([*row, *weights.values()] for row in rows)
    return written.getvalue()


if __name__ == "__main__":
    main()
