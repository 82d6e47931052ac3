"""Does a capability of one model unlock another? The transfer study as a TOML file says, with variations beside it.

    python analyses/unlock.py analyses/unlock_zoo.toml
    python analyses/unlock.py analyses/unlock_qwen3_14b.toml --dry-run --models ~/checkpoints

The file names `name`, `source` (locked and unlocked model; the same twice contrasts prompts), `target`, perhaps
`target_unlocked`, and `task` (a JSONL file of questions and answers, or `sums:N` for bundled models); every other key
goes to `steerlab.studies.transfer`. Each `[[variation]]` is run as well with its keys in place of the file's; all
stand in one table, `figures/<name>/variations.csv`. `--dry-run` loads no weights: it reads configurations from
folders (below `--models`, by the last part of the name) and says what it can of layers, memory and time.
"""

from __future__ import annotations

import argparse
import csv
import tomllib
from pathlib import Path
from typing import Any

from base_vs_post import require_known, write_result

import steerlab as sl
from steerlab import studies, zoo
from steerlab.alignment import LayerMap
from steerlab.comparison import Run, run_alone
from steerlab.datasets import Task, read_task
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.results import StudyResult
from steerlab.run_data import Facts, task_facts
from steerlab.studies._transfer.study import TransferResult

_MODELS = ("source", "target", "target_unlocked")
_LOADING = ("dtype", "device")


def main() -> None:
    """Read the arguments; say what would happen, or run everything and write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="a TOML file of this folder, or your own")
    parser.add_argument("--dry-run", action="store_true", help="load nothing; check what can be checked")
    parser.add_argument("--models", type=Path, default=Path("."), help="where configuration folders lie")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders go")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where figures and tables go")
    arguments = parser.parse_args()
    try:
        plan = read_plan(arguments.configuration)
        if arguments.dry_run:
            print("\n".join(line for each in plan for line in foresee(each, arguments.models)))
            return
        run(plan, arguments.runs, arguments.figures)
    except SteerlabError as error:
        raise SystemExit(f"{arguments.configuration}: {error}") from error


def read_plan(path: Path) -> list[dict[str, Any]]:
    """The runs of a file: itself, and each variation of it."""
    try:
        base = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}.") from error
    variations = base.pop("variation", [])
    plan = [base, *({**base, **one} for one in variations)]
    for number, each in enumerate(plan):
        if missing := {"name", "source", "target", "task"} - each.keys():
            raise SystemExit(f"{path} does not say {', '.join(sorted(missing))}.")
        if not (isinstance(each["source"], list) and len(each["source"]) == 2):
            raise SystemExit(f"{path}: source is a locked and an unlocked model, as in source = ['a', 'b'].")
        require_known(options_of(each), studies.transfer)
        each["label"] = each.get("label", "as named" if number == 0 else described(each, base))
    return plan


def options_of(each: dict[str, Any]) -> dict[str, Any]:
    """What goes to the study."""
    apart = {"name", "label", "task", "template_locked", "template_unlocked", *_MODELS, *_LOADING}
    return {key: value for key, value in each.items() if key not in apart}


def described(each: dict[str, Any], base: dict[str, Any]) -> str:
    """A variation by what it changes."""
    return ", ".join(f"{key} = {value}" for key, value in each.items() if base.get(key) != value)


def task_of(each: dict[str, Any], directory: Path = Path(".")) -> Task:
    """The task that the file names."""
    name = str(each["task"])
    if name.startswith("sums"):
        return zoo.sums_task(400 if each.get("size", "quick") == "quick" else 1000, count=int(name[5:] or 4))
    templates = {key: each[f"template_{key}"] for key in ("locked", "unlocked") if f"template_{key}" in each}
    return read_task(directory / name, **templates)


def run(plan: list[dict[str, Any]], runs: Path, figures: Path) -> None:
    """Every run of the plan; the first one's figures and tables, and a table of all."""
    models: dict[str, LanguageModel] = {}
    folder = figures / plan[0]["name"]
    rows: list[dict[str, Any]] = []
    for number, each in enumerate(plan):
        place = runs / f"{each['name']}_transfer{f'_{number}' if number else ''}"
        finished = run_one(each, models, place)
        result = finished["transfer"]
        print(each["label"], *result.summary, finished.report, sep="\n  ")
        rows.append(row_of(each, result))
        if number == 0:
            write_result(result, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "variations.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(folder / "variations.csv")


def run_one(each: dict[str, Any], models: dict[str, LanguageModel], folder: Path) -> Run:
    """One run of the plan in a folder of its own; models stay loaded in `models` for the next one."""
    names = dict(zip(("locked source", "unlocked source"), each["source"], strict=True))
    names |= {"target": each["target"]}
    names |= {"unlocked target": each["target_unlocked"]} if "target_unlocked" in each else {}
    for name in names.values():
        if name not in models:
            models[name] = sl.load(name, **{key: each[key] for key in _LOADING if key in each})
    task = task_of(each)

    def study(roles: dict[str, LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        result = studies.transfer(
            (roles["locked source"], roles["unlocked source"]),
            roles["target"],
            task,
            target_unlocked=roles.get("unlocked target"),
            **options_of(each),
        )
        return result, {"task": task_facts(task, str(each["task"]))}

    return run_alone(
        study,
        {role: models[name] for role, name in names.items()},
        out=folder,
        configuration={key: str(value) for key, value in options_of(each).items()},
        overwrite=True,
    )


def row_of(each: dict[str, Any], result: TransferResult) -> dict[str, Any]:
    """One run in a line: UNLOCK and its controls."""
    found: dict[str, Any] = {
        "variation": each["label"],
        "source": " and ".join(each["source"]),
        "target": each["target"],
        "layers": " ".join(map(str, result.setting.layers)),
        "strength": result.setting.strength,
        "verdict of the map": result.report.verdict,
    }
    for outcome in ("behaves", "right"):
        for one in result.conditions:
            found[f"{one.name}: {'manner' if outcome == 'behaves' else 'right'}"] = str(getattr(one, outcome))
    furthest = max(result.condition("random directions").draws)
    known = ("locked", "unlocked prompt", "UNLOCK", "native, same layers", "native, all layers, own strength",
             "rank one", "shuffled pairs", "negated", "another task", "random source direction", "another layer",
             "random directions", "first 1 forced", "first 4 forced", "logit arithmetic")  # fmt: skip
    ordered = {key: found[key] for key in list(found)[:6]}
    for name in known:
        for what in ("manner", "right"):
            ordered[f"{name}: {what}"] = found.get(f"{name}: {what}", "")
    return {**ordered, "furthest random: manner": f"{furthest:.2f}"}


# -- the dry run --


def foresee(each: dict[str, Any], folders: Path) -> list[str]:
    """What a run would take, as far as configurations tell; what only the hub knows is listed as unresolved."""
    said = [f"{each['name']}: {each['label']}"]
    shapes = {name: shape_of(name, folders) for name in dict.fromkeys([*each["source"], each["target"]])}
    unresolved = [f"the configuration of {name}" for name, shape in shapes.items() if shape is None]
    source, target = shapes[each["source"][0]], shapes[each["target"]]
    fit = studies.transfer_amount(each.get("size", "quick")).fit
    if source is not None and target is not None:
        layers = LayerMap.proportional(source["layers"], target["layers"])
        said.append(f"  layer map (target: source): {dict(layers.layers)}")
        widths = source["width"], target["width"]
        rows = 4 * fit * (2 * source["layers"] * widths[0] + target["layers"] * widths[1])
        factors = 8 * target["layers"] * (sum(widths) * min(fit, min(widths)) + min(fit, min(widths)) ** 2)
        said.append(
            f"  states of {fit} questions: {rows / 2**20:.0f} MiB; factors of the map: "
            f"{factors / 2**30:.2f} GiB"
        )
    for name, shape in shapes.items():
        if shape is not None:
            size = 2 if each.get("dtype", "auto") != "float32" else 4
            said.append(
                f"  {name}: {shape['layers']} layers of width {shape['width']}, about "
                f"{shape['parameters'] / 1e9:.2f} G "
                f"parameters, {size * shape['parameters'] / 2**30:.1f} GiB of weights"
            )
    if target is not None:
        said.append(f"  time: {tokens_of(each) * 2 * target['parameters'] / 1e15:.1f} PFLOP of generation in "
                    f"the target, "
                    "times what your machine wastes")  # fmt: skip
    try:
        task = task_of(each)
        said += [
            f"  task: {len(task)} questions; locked: {task.locked[0]!r}",
            f"  unlocked: {task.unlocked[0]!r}",
        ]
    except SteerlabError as error:
        unresolved.append(f"the task ({error})")
    unresolved += [
        f"tokenizer and chat template of {name}" for name, shape in shapes.items() if shape is None
    ]
    if unresolved:
        said.append(f"  unresolved: {'; '.join(unresolved)}")
    return said


def shape_of(name: str, folders: Path) -> dict[str, int] | None:
    """Layers, width and parameters from a configuration folder, or None where there is none."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    place = zoo.path(name.removeprefix("zoo:")) if name.startswith("zoo:") else folders / Path(name).name
    if not (place / "config.json").is_file():
        return None
    config = AutoConfig.from_pretrained(place, local_files_only=True)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    return {
        "layers": int(text.num_hidden_layers),
        "width": int(text.hidden_size),
        "parameters": sum(one.numel() for one in model.parameters()),
    }


def tokens_of(each: dict[str, Any]) -> int:
    """Tokens that the target writes: conditions × test questions, the sweep and the strengths on dev questions,
    samples."""
    amount = studies.transfer_amount(each.get("size", "quick"))
    cells = len(amount.ranks) * len(amount.rows)
    answers = 13 * amount.test + (10 + cells) * amount.dev + amount.samples * amount.test
    answers += amount.randoms * amount.test // 3
    return answers * 512


if __name__ == "__main__":
    main()
