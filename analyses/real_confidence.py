"""How sure are small real models, which neurons set it, are they right as often, and in how many ways do they go on?

    python analyses/real_confidence.py analyses/real_confidence.toml [--dry-run] [--only MODEL ...] [--figures figures]

Each model alone, by the functions of the confidence and branching studies. `confidence_neurons.csv`: entropy neurons of
the last layer by weights and by mean ablation, and frequency neurons, beside random neurons of like norm; what a model
cannot give stands as the reason of its row. `calibration.csv`: calibration error beside the floor of a calibrated
model, and what one temperature leaves of it. `branching.csv`: the branching factor with the chat template and in a
plain rendering, beside the model against itself (halves of its samples). A model without a chat template takes that of
the file, which it was not trained with. A part is a model and a file (and a set of prompts); a part whose rows are in
its file is not run again. STEERLAB_REAL_MODELS names the folder of local copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from _confidence_rows import Rendering, branching_rows, calibration_rows, neuron_rows
from _local_copies import model_folder
from _part_files import PartFile, Row
from _script import arguments_of

import steerlab as sl
from steerlab.datasets import open_prompts, plain_text, statements
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.models.prompts import Template
from steerlab.neurons.weights import Spaces
from steerlab.studies._confidence.study import Budget

HERE = Path(__file__).parent
PART = ("model", "weights_sha256")


def with_ends(*names: str) -> list[str]:
    """The columns of numbers with their intervals."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high", "_n")]


KEYS = {"confidence_neurons": PART, "calibration": PART, "branching": (*PART, "prompts")}
COLUMNS = {
    "confidence_neurons": [
        *("quantity", "rule", "neurons", "interval_over"),
        *with_ends("value", "control"),
        "reason",
    ],
    "calibration": [
        *("on", "n", "chance"),
        *with_ends("accuracy", "confidence", "entropy", "error", "adaptive", "floor"),
        "temperature",
        *with_ends("error_after"),
        "reason",
    ],
    "branching": [
        *("rendering", "template", "n_prompts", "n_sequences", "n_tokens"),
        *with_ends("factor", "itself", "over_first", "untruncated", "nats_per_byte", "length", "ended"),
        "martingale_z",
    ],
}


def parts_of(name: str, plan: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Every part of a model: the file that it goes to, and what tells it apart there."""
    mine = plan["models"][name]
    key = {"model": name, "weights_sha256": mine["sha256"]}
    yield from (("branching", key | {"prompts": prompts}) for prompts in prompt_sets(mine, plan))
    yield from (("calibration", key), ("confidence_neurons", key))


def prompt_sets(mine: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, list[str]]:
    """The packaged open prompts and, where the file asks for them, everyday instructions of `post_training/`."""
    n = plan["branching"]["prompts"]
    sets = {"open prompts": list(open_prompts())[:n]}
    if mine.get("everyday"):
        from post_training.examples import requests

        sets["everyday instructions"] = requests(plan["seed"])["everyday"][:n]
    return sets


def run_part(
    file: str, part: Row, model: LanguageModel, spaces: Spaces, plan: Mapping[str, Any]
) -> list[Row]:
    """The rows of a part."""
    seed, budget, mine = plan["seed"], Budget(**plan["confidence"]), plan["models"][part["model"]]
    if file == "confidence_neurons":
        rows = list(neuron_rows(model, plain_text(), budget, spaces, seed))
        reasons = ({"reason": row.get("reason", "").replace(model.name, part["model"])} for row in rows)
        return [row | reason for row, reason in zip(rows, reasons, strict=True)]
    if file == "calibration":
        return list(calibration_rows(model, plain_text(), statements(), budget, seed))
    renderings: dict[Rendering, Template] = {"plain": "plain", "chat": "chat"}
    amounts = plan["branching"]
    rows = branching_rows(
        model,
        prompt_sets(mine, plan)[part["prompts"]],
        renderings,
        samples=amounts["samples"],
        steps=amounts["steps"],
        seed=seed,
    )
    template = mine.get("chat_template", "the model's own")
    return [row | {"template": template if row["rendering"] == "chat" else "none"} for row in rows]


def load(folder: Path, mine: Mapping[str, Any]) -> LanguageModel:
    """The model, with the chat template of the file where it has none of its own."""
    model = sl.load(folder, dtype="float32")
    if "chat_template" in mine:
        model.tokenizer.chat_template = (HERE / mine["chat_template"]).read_text("utf-8")
    return model


def forecast(
    folder: Path, left: list[tuple[str, Row]], mine: Mapping[str, Any], plan: Mapping[str, Any]
) -> str:
    """About how many tokens the parts that are left read and write."""
    from transformers import AutoTokenizer

    def length(texts: list[str]) -> int:
        return sum(map(len, AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]))

    budget, drawn, read, written = Budget(**plan["confidence"]), plan["branching"], 0, 0
    known = statements()
    a_statement = length(list(known.texts)) / len(known)
    for file, part in left:
        if file == "branching":
            prompts = prompt_sets(mine, plan)[part["prompts"]]
            read += 2 * length(prompts)
            written += 2 * len(prompts) * drawn["samples"] * drawn["steps"]
        elif file == "calibration":
            asked = 2 * budget.statements_a_topic * len(set(known.topics)) * 5
            read += length(list(plain_text())[: budget.texts + 2 * budget.ablation_texts]) + int(
                asked * a_statement
            )
        else:
            read += 2 * length(list(plain_text())[: budget.ablation_texts])
    return f"about {read} tokens to read, at most {written} to write"


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models")
    plan = arguments.plan
    files = {
        name: PartFile(arguments.folder / f"{name}.csv", [*KEYS[name], *COLUMNS[name]], KEYS[name])
        for name in KEYS
    }
    try:
        for name in arguments.only or plan["models"]:
            mine = plan["models"][name]
            place = model_folder(name, mine["sha256"])
            left = [(file, part) for file, part in parts_of(name, plan) if not files[file].holds(part)]
            if arguments.dry_run:
                print(
                    f"{name}: {forecast(place, left, mine, plan)}; parts left: {[file for file, _ in left]}"
                )
                continue
            if left:
                model, spaces = load(place, mine), Spaces(plan["seed"])
                for file, part in left:
                    files[file].write(part, run_part(file, part, model, spaces, plan))
    except SteerlabError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
