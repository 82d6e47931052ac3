"""Does a direction of truth found on some topics read another one, in small real models, and what decides it?

    python analyses/truth_topics.py analyses/truth_topics.toml [--dry-run] [--figures figures] [--runs runs]

Each model reads every statement once, at its last token. Three kinds of statements: "affirmed" (six topics),
"affirmed and negated" (the same six with the negation of each statement) and "all" (comparisons of numbers and found
statements as well). `by_layer.csv`: accuracy with every topic held out in turn, for each estimator, layer and way of
centring. `within_topics.csv`: accuracy from one half of a topic to the other, where it says which topics a model knows.
`chosen.csv`: the estimator and layer chosen on training topics alone, judged on the held-out one. Every accuracy stands
beside the same with shuffled labels, its interval is over topics (over statements within one). A part is a model and a
kind of statements; a part whose rows are in the files is not run again. States are kept below --runs, never committed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _local_copies import data_files, model_folder
from _topic_probes import (
    AFFIRMED_ONLY,
    APART,
    CHOICES,
    ESTIMATORS,
    MIXED_ONLY,
    SETS_APART,
    TOGETHER,
    WITHIN,
    centred,
    control_of,
    draws_of,
    held_out,
    judged,
    leave_one_out,
    nested,
    once,
    within_topic,
)
from _topic_statements import NEGATED, Statements, read_states, statements_of

import steerlab as sl
from steerlab.errors import SteerlabError
from steerlab.plots import Series, curves, save
from steerlab.statistics import Estimate, proportion

ACCURACY = ("accuracy", "low", "high", "control", "control_low", "control_high", "shuffles")
PART = ("model", "weights_sha256", "statements")
COLUMNS = {
    "by_layer": (*PART, "centring", "estimator", "layer", "judged_on", "n", *ACCURACY),
    "within_topics": (*PART, "topic", "estimator", "layer", "n", *ACCURACY),
    "chosen": (
        *PART,
        "held_out",
        "known",
        "estimator",
        "layer",
        "accuracy_on_training_topics",
        "n",
        *ACCURACY,
    ),
}
KINDS = {
    "affirmed": (APART, TOGETHER),
    "affirmed and negated": (APART, SETS_APART, TOGETHER),
    "all": (APART,),
}
Stack = dict[int, np.ndarray]
Row = dict[str, Any]


def part_of(given: Statements, kind: str, plan: Mapping[str, Any]) -> np.ndarray:
    """The rows of a kind of statements."""
    rows = np.arange(len(given.texts))
    place = np.array([int((given.sets[:row] == given.sets[row]).sum()) for row in rows])
    with_negation = np.isin(given.topics, [topic for topic, sets in plan["topics"].items() if _negated(sets)])
    if kind == "affirmed":
        return rows[with_negation & (given.polarity > 0)]
    fewer = place < plan["per_mixed_set"]
    return rows[fewer & (with_negation if kind == "affirmed and negated" else True)]


def some(given: Statements, rows: np.ndarray) -> Statements:
    """Some of the statements."""
    taken = {field.name: np.array(getattr(given, field.name))[rows] for field in fields(given)}
    return replace(given, **(taken | {"texts": [given.texts[row] for row in rows]}))


def by_layer(stack: Stack, given: Statements, kind: str, plan: Mapping[str, Any]) -> Iterator[Row]:
    """Held-out accuracy of every estimator at every layer, also on affirmed and negated statements apart."""
    labels = draws_of(given, plan["shuffles"], plan["seed"])
    groups = {"all": np.ones(len(given.texts), dtype=bool)}
    if kind != "affirmed":
        groups |= {"affirmed": given.polarity > 0, "negated": given.polarity < 0}
    for centring in KINDS[kind]:
        for layer, states in stack.items():
            x = centred(states, given, centring)
            for name in estimators_of(kind, centring):
                right = [leave_one_out(ESTIMATORS[name], x, given, draw) for draw in labels]
                for on, rows in groups.items():
                    control = control_of([float(one[rows].mean()) for one in right[1:]])
                    yield {
                        **{"centring": centring, "estimator": name, "layer": layer, "judged_on": on},
                        **accuracy(judged(right[0], given, rows), control, int(rows.sum())),
                    }


def estimators_of(kind: str, centring: str) -> list[str]:
    """The estimators that mean something on a kind of statements; CCS needs every statement's negation."""
    other = MIXED_ONLY if kind == "affirmed" else AFFIRMED_ONLY
    paired = (kind, centring) == ("affirmed and negated", APART)
    return [name for name in ESTIMATORS if name not in other and (name != "CCS" or paired)]


def within_topics(stack: Stack, given: Statements, plan: Mapping[str, Any]) -> list[Row]:
    """Halves of each topic; the layer where the other topics' halves read each other best."""
    names = list(dict.fromkeys(given.topics.tolist()))
    labels = draws_of(given, plan["chosen_shuffles"], plan["seed"])
    made = []
    for name in WITHIN:
        right = {
            layer: {
                topic: within_topic(ESTIMATORS[name], x[rows], given.labels[rows], plan["seed"])
                for topic, rows in ((topic, given.topics == topic) for topic in names)
            }
            for layer, x in stack.items()
        }
        for topic in names:
            layer = max(stack, key=lambda at: sum(float(right[at][o].mean()) for o in names if o != topic))
            rows, x = given.topics == topic, stack[layer]
            control = control_of(
                [
                    float(within_topic(ESTIMATORS[name], x[rows], draw[rows], plan["seed"]).mean())
                    for draw in labels[1:]
                ]
            )
            found = proportion(right[layer][topic])
            made.append(
                {
                    "topic": topic,
                    "estimator": name,
                    "layer": layer,
                    **accuracy(found, control, int(rows.sum())),
                }
            )
    return made


def chosen(
    stack: Stack, given: Statements, kind: str, known: Sequence[str], plan: Mapping[str, Any]
) -> Iterator[Row]:
    """What is best on the training topics, on the held-out one; then all topics, and those that the model knows."""
    labels = draws_of(given, plan["chosen_shuffles"], plan["seed"])
    centred_stack = {layer: centred(x, given, APART) for layer, x in stack.items()}
    right = np.zeros(labels.shape, dtype=bool)
    names = [*CHOICES, "TTPD, standardised"] if kind != "affirmed" else CHOICES
    for topic, name, layer, inner in nested(centred_stack, given, names):
        rows, x = given.topics == topic, centred_stack[layer]
        for number, draw in enumerate(labels):
            right[number, rows] = held_out(ESTIMATORS[name], x, given, draw, [topic])
        what = {"held_out": topic, "known": topic in known, "estimator": name, "layer": layer}
        yield {
            **what,
            "accuracy_on_training_topics": round(inner, 4),
            **_judged_all(right, rows, None),
        }
    for name, rows in (
        ("all topics", np.ones(len(given.texts), dtype=bool)),
        ("known topics", np.isin(given.topics, known)),
    ):
        if rows.any():
            yield {"held_out": name, **_judged_all(right, rows, given)}


def accuracy(found: Estimate, control: Estimate, n: int) -> Row:
    """The columns of an accuracy."""
    numbers = (found.value, found.low, found.high, control.value, control.low, control.high)
    return {"n": n, **dict(zip(ACCURACY, (*(round(x, 4) for x in numbers), control.n), strict=True))}


def run_part(
    part: Row, stack: Callable[[], Stack], given: Statements, plan: Mapping[str, Any], folder: Path
) -> None:
    """Measure a part and add its rows to the files, those of `by_layer.csv` last: they say that it is done."""
    kind = part["statements"]
    rows = part_of(given, kind, plan)
    step = plan["models"][part["model"]]["layer_step"] * (1 if kind == "affirmed" else 2)
    mine = some(given, rows)
    states = {layer: x[rows] for layer, x in stack().items() if layer % step == 0}
    if kind == "affirmed":
        write(folder, "within_topics", part, within_topics(states, mine, plan))
    if kind != "all":
        write(folder, "chosen", part, chosen(states, mine, kind, known_topics(folder, part), plan))
    write(folder, "by_layer", part, by_layer(states, mine, kind, plan))


def known_topics(folder: Path, part: Row) -> list[str]:
    """Topics that the model knows: some estimator's halves lie above one half and above all shuffled labels."""
    return sorted(
        {
            row["topic"]
            for row in read(folder, "within_topics")
            if all(row[key] == part[key] for key in PART[:2])
            and float(row["low"]) > max(0.5, float(row["control_high"]))
        }
    )


def read(folder: Path, name: str) -> list[Row]:
    """The rows of a file, none where there is none."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, name: str, part: Row, rows: Any) -> None:
    """Put a part's rows in place of those of before; the file is whole at every moment."""
    rows = [part | row for row in rows]
    kept = [row for row in read(folder, name) if any(row[key] != part[key] for key in PART)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.with_suffix(".part").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS[name], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
    os.replace(path.with_suffix(".part"), path)
    print(f"{part['model']}, {part['statements']}: {len(rows)} rows of {path}", flush=True)


def is_done(folder: Path, part: Row) -> bool:
    """Whether the part's rows are in the files."""
    return any(all(row[key] == part[key] for key in PART) for row in read(folder, "by_layer"))


def states_of(name: str, folder: Path, texts: Sequence[str], step: int, kept: Path) -> Stack:
    """States by layer, from the file of an earlier run where there is one."""
    if kept.exists():
        with np.load(kept) as stored:
            return {int(layer): stored[layer] for layer in stored.files}
    made = read_states(sl.load(folder, dtype="float32"), texts, step)
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, allow_pickle=False, **{str(layer): x for layer, x in made.items()})
    print(f"{name}: {len(texts)} statements read", flush=True)
    return made


def used_statements(plan: Mapping[str, Any]) -> Statements:
    """Every statement that some kind reads."""
    given = statements_of(data_files(plan["data"]), plan["topics"], plan["per_set"], plan["seed"])
    rows = np.unique(np.concatenate([part_of(given, kind, plan) for kind in KINDS]))
    return some(given, rows)


def tokens(folder: Path, texts: Sequence[str]) -> int:
    """How many tokens the texts are for a model."""
    from transformers import AutoTokenizer

    return sum(map(len, AutoTokenizer.from_pretrained(folder)(list(texts))["input_ids"]))


def draw(folder: Path, name: str) -> None:
    """Held-out accuracy on affirmed statements by layer, topics apart, one figure a model."""
    rows = [
        row
        for row in read(folder, "by_layer")
        if (row["model"], row["statements"], row["centring"]) == (name, "affirmed", APART)
    ]
    lines = []
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        mine = [row for row in rows if row["estimator"] == estimator]
        values = [Estimate(**{k: float(row[c]) for k, c in _BOUNDS}) for row in mine]
        lines.append(Series.of(estimator, values, x=[int(row["layer"]) for row in mine], role="other"))
    figure = curves(
        lines,
        title=f"Truth on topics never seen, {name}",
        x_title="Layer",
        y_title="Accuracy",
        y_range=(0.4, 1.0),
    )
    saved = save(figure, folder / f"{name.rpartition('/')[2].lower()}.svg")
    if saved.reason:
        saved.path.unlink()
        print(f"No figure: {saved.reason}")


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configuration", type=Path, help="truth_topics.toml, or your own")
    parser.add_argument(
        "--dry-run", action="store_true", help="state the tokens and parts, and load no model"
    )
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where tables and figures go")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where states are kept between runs")
    parser.add_argument("--only", nargs="+", help="some of the models")
    arguments = parser.parse_args()
    plan = tomllib.loads(arguments.configuration.read_text(encoding="utf-8"))
    folder = arguments.figures / plan["name"]
    given = used_statements(plan)
    texts_hash = hashlib.sha256("\n".join(given.texts).encode()).hexdigest()[:16]
    try:
        for name in arguments.only or plan["models"]:
            sha256, step = plan["models"][name]["sha256"], plan["models"][name]["layer_step"]
            place = model_folder(name, sha256)
            parts = [dict(zip(PART, (name, sha256, kind), strict=True)) for kind in KINDS]
            left = [part for part in parts if not is_done(folder, part)]
            if arguments.dry_run:
                print(
                    f"{name}: {len(given.texts)} statements, {tokens(place, given.texts)} tokens to read, parts left: "
                    f"{[part['statements'] for part in left]}"
                )
                continue
            kept = arguments.runs / plan["name"] / f"{sha256[:16]}_{step}_{texts_hash}.npz"
            stack = once(lambda: states_of(name, place, given.texts, step, kept))  # noqa: B023
            for part in left:
                run_part(part, stack, given, plan, folder)
            draw(folder, name)
    except SteerlabError as error:
        raise SystemExit(str(error)) from error


# -- private --

_BOUNDS = (("value", "accuracy"), ("low", "low"), ("high", "high"))


def _negated(sets: Sequence[str]) -> bool:
    return any(name.startswith(NEGATED) for name in sets)


def _judged_all(right: np.ndarray, rows: np.ndarray, given: Statements | None) -> Row:
    """Real labels beside shuffled ones; the interval is over topics where `given` tells them."""
    found = proportion(right[0, rows]) if given is None else judged(right[0], given, rows)
    control = control_of([float(one[rows].mean()) for one in right[1:]])
    return accuracy(found, control, int(rows.sum()))


if __name__ == "__main__":
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    main()
