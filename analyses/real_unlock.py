"""Is a capability carried across scales of real models, and if not, is it the aligner, the direction or the capability?

    python analyses/real_unlock.py analyses/real_unlock.toml [--dry-run] [--only LABEL ...] [--figures figures]

The transfer study on each `[[run]]` of the file: a source model's change between a locked and an unlocked wording (or
between itself and itself with an adapter) is carried to the target by a map fitted on locked prompts alone.
`conditions.csv`: what the target does locked, asked in the unlocked wording, steered by the carried direction, by its
own, and by every control. `maps.csv`: the map's diagnostics by layer. `runs.csv`: strength, verdict and reason of each
run. A part is a run; a part whose rows are in the files is not run again. STEERLAB_REAL_MODELS names the folder of
local copies. Answers are graded in memory; harmless all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _local_copies import digest, model_folder
from _part_files import Row
from _script import arguments_of, draw, ends, estimate_of, named, part_files, settings_of, slug
from _sums import sums
from post_training.examples import read_answers, requests

import steerlab as sl
from steerlab import studies
from steerlab.datasets import Task
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.plots import Series, bars
from steerlab.studies._pair import LARGE
from steerlab.studies._transfer.result import TransferResult
from steerlab.studies._transfer.study import transfer_amount

ADAPTERS = Path(__file__).parent / "post_training"
PART = ("run", "source_sha256", "target_sha256", "settings")


COLUMNS = {
    "conditions": (
        *PART,
        *("condition", "role", "strength", "n"),
        *ends("manner", "manner_change", "right", "right_change", "first_kl"),
        *("length", "repeats", "furthest_draw"),
    ),
    "maps": (
        *PART,
        *(
            "layer",
            "source_layer",
            "verdict",
            "r2_diff",
            "r2_point",
            "cos_native",
            "energy_in",
            "specificity",
        ),
        "split_half",
    ),
    "runs": (
        *PART,
        *("source", "target", "task", "template", "rule", "fit", "dev", "test", "strength", "how", "layers"),
        *("map", "manner_reason", "right_reason"),
    ),
}


def task_of(name: str, plan: Mapping[str, Any]) -> Task:
    """A task of the file: everyday requests of `post_training/`, which have no right answer, or word problems."""
    mine, seed = plan["tasks"][name], plan["seed"]
    if mine["questions"] == "sums":
        asked = sums(220, seed)
    else:
        trained = read_answers(ADAPTERS / "answers.jsonl")  # what an adapter saw says nothing of others
        asked = [
            (text, "")
            for text in requests(seed)["everyday"]
            if "ranslate" not in text and text not in trained
        ]
    return Task(
        name=name,
        locked=tuple(mine["locked"].format(question=text) for text, _ in asked),
        unlocked=tuple(mine["unlocked"].format(question=text) for text, _ in asked),
        answers=tuple(answer for _, answer in asked),
        behaviour=mine.get("behaviour"),
        max_new_tokens=mine["new_tokens"],
    )


def weights(each: Mapping[str, Any], plan: Mapping[str, Any]) -> Row:
    """What tells a run's part apart: its label, the weights and what it is run with."""
    source = plan["models"][each["source"]]
    if "adapter" in each:
        source += "+" + digest(ADAPTERS / each["adapter"] / "adapter_model.safetensors")
    return {
        **{"run": each["label"], "source_sha256": source, "target_sha256": plan["models"][each["target"]]},
        "settings": settings_of(each, plan["tasks"][each["task"]], plan["seed"]),
    }


def load(
    each: Mapping[str, Any], plan: Mapping[str, Any], known: Mapping[str, LanguageModel]
) -> dict[str, LanguageModel]:
    """The models of a run by name; those that are loaded already, in the run's dtype, stay."""
    models = {}
    dtype = each.get("dtype", "float32")
    for name in dict.fromkeys((each["source"], each["target"])):
        found = known.get(name)
        if found is None or str(found.model.dtype) != f"torch.{dtype}":
            found = sl.load(model_folder(name, plan["models"][name]), dtype=dtype)
        models[name] = found
        models[name].name = name
    if "adapter" in each:
        tuned = f"{each['source']} + {each['adapter']}"
        fresh = sl.load(model_folder(each["source"], plan["models"][each["source"]]), dtype="float32")
        models[tuned] = sl.load(ADAPTERS / each["adapter"], base=fresh)
        models[tuned].name = tuned
        for model in models.values():
            model.tokenizer.chat_template = models[tuned].tokenizer.chat_template
    return models


def run_part(
    each: Mapping[str, Any], models: Mapping[str, LanguageModel], plan: Mapping[str, Any]
) -> TransferResult:
    """The transfer study of one run."""
    unlocked = (
        models[f"{each['source']} + {each['adapter']}"] if "adapter" in each else models[each["source"]]
    )
    result: TransferResult = studies.transfer(
        (models[each["source"]], unlocked),
        models[each["target"]],
        task_of(each["task"], plan),
        target_unlocked=unlocked if "adapter" in each else None,
        template=each["template"],
        rule=each.get("rule", "last_prompt"),
        seed=plan["seed"],
    )
    return result


def condition_rows(result: TransferResult, graded: bool) -> Iterator[Row]:
    """A row a condition; what was right only where questions have an answer."""
    for one in result.conditions:
        row: Row = {"condition": one.name, "role": one.role, "n": one.behaves.n}
        row |= {"length": one.length, "repeats": one.repeats}
        if not math.isnan(one.strength):
            row["strength"] = one.strength
        if one.draws:
            row["furthest_draw"] = max(one.draws)
        row |= named("manner", one.behaves) | named("manner_change", one.behaves_change)
        row |= named("first_kl", one.first_kl)
        if graded:
            row |= named("right", one.right) | named("right_change", one.right_change)
        yield row


def map_rows(result: TransferResult) -> Iterator[Row]:
    """The diagnostics of each layer's map."""
    for layer in result.report.layers:
        known = layer.model_dump()
        row = {column: known.get(column, "") for column in COLUMNS["maps"][len(PART) :]}
        yield row | {"layer": layer.target, "source_layer": layer.source, "verdict": layer.verdict}


def run_row(each: Mapping[str, Any], result: TransferResult, graded: bool) -> Row:
    """What was run and what came of it."""
    setting = result.setting
    return {
        **{name: each[name] for name in ("source", "target", "task", "template")},
        "rule": each.get("rule", "last_prompt"),
        **{name: getattr(setting, name) for name in ("fit", "dev", "test", "strength", "how")},
        "layers": " ".join(map(str, setting.layers)),
        "map": result.report.verdict,
        "manner_reason": result.reason("behaves"),
        "right_reason": result.reason("right") if graded else "",
    }


def figure(rows: Sequence[Row], label: str) -> Any:
    """Shares in the unlocked manner by condition, with their intervals."""
    mine = [row for row in rows if row["run"] == label]
    values = [estimate_of(row, "manner") for row in mine]
    return bars(
        [row["condition"] for row in mine],
        [Series.of("in the unlocked manner", values, role="post")],
        title=label,
        y_title="Share of answers",
        y_range=(0.0, 1.05),
    )


def forecast(left: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> Iterator[str]:
    """About how many tokens the target of each run reads and writes."""
    from transformers import AutoTokenizer

    amount = transfer_amount(LARGE)
    for each in left:
        task = task_of(each["task"], plan)
        folder = model_folder(each["target"], plan["models"][each["target"]])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        length = sum(map(len, tokenizer(list(task.locked[:50]))["input_ids"])) / 50 + 20  # the template's own
        answers = 13 * amount.test + (14 + len(amount.ranks)) * amount.dev + amount.samples * amount.test
        answers += amount.randoms * max(4, amount.test // 3)
        yield (
            f"{each['label']}: about {int(length * (answers + 2 * amount.fit))} tokens to read and at most "
            f"{answers * task.max_new_tokens} to write"
        )


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="runs, by their labels")
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left = [
        each
        for each in plan["run"]
        if not files["runs"].holds(weights(each, plan))
        and (arguments.only is None or each["label"] in arguments.only)
    ]
    print(f"{plan['name']}: left are {'; '.join(each['label'] for each in left) or 'none'}", flush=True)
    if arguments.dry_run:
        print("\n".join(forecast(left, plan)))
        return
    models: dict[str, LanguageModel] = {}
    for each in left:
        part = weights(each, plan)
        try:
            models = load(each, plan, models)
            result = run_part(each, models, plan)
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}, {each['label']}: {error}") from error
        graded = plan["tasks"][each["task"]]["questions"] == "sums"
        files["conditions"].write(part, condition_rows(result, graded))
        files["maps"].write(part, map_rows(result))
        files["runs"].write(part, [run_row(each, result, graded)])  # last: it says that the part is done
        print(*result.summary, sep="\n  ", flush=True)
        picture = figure(files["conditions"].rows(), each["label"])
        draw(picture, arguments.folder / f"{slug(each['label'])}.svg", height=520)


if __name__ == "__main__":
    main()
