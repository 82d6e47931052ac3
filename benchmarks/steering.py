"""What steering costs: `generate` inside `model.steering(...)` over `generate` without, same prompts and tokens.

    python benchmarks/steering.py            # writes results/steering.json and the table in README.md
    python benchmarks/steering.py --quick    # fewer turns, writes nothing

The model has the Llama shape, 12 layers, width 768, 32,000 words, random float32 weights, and two threads; prompts have
64 tokens and every one is continued by 64. `_timing` says how the ratios are taken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait sleep: spinning ones fight with the machine's other work, and some turns take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _table import _COLUMNS, _cells
from _timing import in_turn
from capture import HEADS, LAYERS, NEURONS, WIDTH, WORDS, row, save_checkpoint, text_of
from rich.console import Console
from rich.table import Table

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.steering import Ablate, Add, Clamp, Condition, Decay, PerRow, Rotate

HERE = Path(__file__).parent
TOKENS, NEW = 64, 64
ONE_GOAL, ALL_GOAL, ROWS_GOAL, CONDITION_GOAL = 1.02, 1.05, 1.08, 1.05
RESULTS = HERE / "results" / "steering.json"
_START, _END = "<!-- steering: written by steering.py -->", "<!-- end of steering -->"


def main() -> None:
    """Measure, print the table and, unless quick, write results and README."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="three turns; writes nothing")
    options.add_argument("--turns", type=int, default=None, help="turns of every comparison (default 9)")
    options.add_argument(
        "--group",
        choices=GROUPS,
        action="append",
        help="measure only these and keep the other rows of the results",
    )
    chosen = options.parse_args()
    torch.set_num_threads(2)
    turns = chosen.turns or (3 if chosen.quick else 9)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    # Nothing ends early: every prompt gets all its tokens.
    model.model.config.eos_token_id = model.model.generation_config.eos_token_id = None
    known = json.loads(RESULTS.read_text())["rows"] if chosen.group and RESULTS.exists() else []
    rows = []
    for name, measure in GROUPS.items():
        if chosen.group and name not in chosen.group:
            rows += [one for one in known if one["group"] == name]
        else:
            rows += [{**one, "group": name, "turns": turns} for one in measure(model, turns)]
    results = {
        "configuration": {
            "shape": f"Llama, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words",
            "weights": "random, float32",
            "threads": torch.get_num_threads(),
            "prompts": f"{TOKENS} tokens, {NEW} new ones, greedy",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/steering.py", *sys.argv[1:]]),
        "rows": rows,
    }
    table = Table(*_COLUMNS, title="Steered generation: time ratios")
    for cells in _cells(results):
        table.add_row(*cells)
    Console().print(table)
    if not chosen.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        write_readme(HERE / "README.md", results)


def whole_batch(model: sl.LanguageModel, size: int, turns: int) -> list[dict[str, Any]]:
    """One intervention for all rows of a batch."""
    vectors, prompts = directions(model), texts(size)
    one = vectors.at(sl.Site("resid_post", 6))
    first = vectors.at(sl.Site("resid_post", 0))
    condition = Condition(first, threshold=0.0)
    token_condition = Condition(first, threshold=0.0, positions=None)
    cases: dict[str, tuple[list[Any], float | None]] = {
        "Add at one layer": ([Add(one, strength=0.1)], ONE_GOAL),
        "Add at every layer": ([Add(vectors, strength=0.1)], ALL_GOAL),
        "Add at every layer, prompt's condition": (
            [Add(vectors, strength=0.1, condition=condition)],
            CONDITION_GOAL,
        ),
    }
    if size > 1:
        cases |= {
            "Add at every layer, each token's condition": (
                [Add(vectors, strength=0.1, condition=token_condition)],
                CONDITION_GOAL,
            ),
            "Add at every layer, decaying": ([Add(vectors, strength=0.1, schedule=Decay(0.9))], ALL_GOAL),
            "three Adds and a Clamp at every layer": (
                [*(Add(vectors, strength=0.1) for _ in range(3)), Clamp(vectors, value=0.5)],
                None,
            ),
            "Rotate at every layer": ([Rotate(vectors)], None),
            "Ablate everywhere (37 sites)": ([Ablate(one)], None),
        }
    variants: dict[str, Any] = {"plain": lambda: generate(model, prompts)}
    for name, (edits, _) in cases.items():
        variants[name] = lambda edits=edits: generate(model, prompts, *edits)
    times = in_turn(variants, turns)
    over = f"unsteered generate, batch {size}"
    return [
        row(f"{name}, batch {size}", over, times, name, "plain", goal=goal)
        for name, (_, goal) in cases.items()
    ]


def by_row(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """Sixteen prompts, each with an intervention of its own."""
    prompts = texts(16)
    everywhere = PerRow(*(Add(directions(model, seed), strength=0.1) for seed in range(16)))
    site = sl.Site("resid_post", 6)
    one = PerRow(*(Add(directions(model, seed).at(site), strength=0.1) for seed in range(16)))
    mixed = PerRow(
        *(
            [Add(directions(model, seed).at(site)), Clamp(directions(model, 99).at(site))]
            for seed in range(16)
        )
    )
    cases = {"at one layer": one, "at every layer": everywhere}
    variants: dict[str, Any] = {"plain": lambda: generate(model, prompts)}
    for name, table in (cases | {"of an Add and a Clamp at one layer": mixed}).items():
        variants[name] = lambda table=table: generate(model, prompts, table)
    times = in_turn(variants, turns)
    over = "unsteered generate, batch 16"
    return [
        row(f"16 different interventions {name}, batch 16", over, times, name, "plain", goal=ROWS_GOAL)
        for name in variants
        if name != "plain"
    ]


def generate(model: sl.LanguageModel, prompts: list[str], *edits: Any) -> None:
    if not edits:
        model.generate(prompts, max_new_tokens=NEW)
        return
    with model.steering(*edits):
        model.generate(prompts, max_new_tokens=NEW)


def directions(model: sl.LanguageModel, seed: int = 0) -> sl.Direction:
    """A random unit vector at every layer."""
    random = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(model.d_model, generator=random) for site in model.sites("resid_post")}
    return sl.Direction(vectors, model.name, model.fingerprint).unit()


def texts(size: int) -> list[str]:
    random = torch.Generator().manual_seed(1)
    return [text_of(words) for words in torch.randint(WORDS, (size, TOKENS), generator=random).tolist()]


def write_readme(path: Path, results: dict[str, Any]) -> None:
    """Replace what stands between the markers of the README."""
    setting, machine = results["configuration"], results["machine"]
    lines = [
        f"- Model: {setting['shape']}; {setting['weights']}. Prompts: {setting['prompts']}. "
        f"Threads: {setting['threads']}.",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"accelerator: {machine['accelerator']}.",
        f"- Command: `{results['command']}`; {setting['turns']} turns.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *("| " + " | ".join(cells) + " |" for cells in _cells(results)),
        "",
    ]
    before, _, rest = path.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_START}\n\n" + "\n".join(lines) + f"\n{_END}{after}")


GROUPS: dict[str, Callable[[sl.LanguageModel, int], list[dict[str, Any]]]] = {
    "batch-1": lambda model, turns: whole_batch(model, 1, turns),
    "batch-8": lambda model, turns: whole_batch(model, 8, turns),
    "rows": by_row,
}


if __name__ == "__main__":
    main()
