"""What steering costs: `generate` inside `model.steering(...)` over `generate` without, same prompts and tokens.

    python benchmarks/steering.py            # writes results/steering.json and the table in README.md
    python benchmarks/steering.py --quick    # fewer turns, writes nothing
    python benchmarks/steering.py --device cuda --shape llama-3.2-1b    # a real shape in bfloat16; steering_cuda.json

The model has the Llama shape, 12 layers, width 768, 32,000 words, random float32 weights, and two threads; prompts have
64 tokens and every one is continued by 64. `_timing` says how the ratios are taken. Peers run in environments of their
own (made once below ~/.cache/steerlab-peers, torch is taken from here) against plain generation in the same process.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait sleep: spinning ones fight with the machine's other work, and some turns take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _inside import share_in_hooks
from _table import _COLUMNS, _cells, write_results
from _timing import Spread, Times, in_turn
from capture import HEADS, LAYERS, NEURONS, WIDTH, WORDS, row, save_checkpoint, text_of
from rich.console import Console
from rich.table import Table

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.steering import (
    Ablate,
    Add,
    Clamp,
    Condition,
    Decay,
    PerRow,
    Rotate,
    Slots,
    bake,
    generate_batch,
)

HERE = Path(__file__).parent
TOKENS, NEW = 64, 64
ONE_GOAL, ALL_GOAL, ROWS_GOAL, CONDITION_GOAL, BAKED_GOAL = 1.02, 1.05, 1.08, 1.05, 1.005
#: Peers from PyPI; None runs in this environment.
PEERS: dict[str, str | None] = {
    "repeng": "repeng==0.4.0",
    "steering-vectors": "steering-vectors==0.12.2",
    "pyvene": "pyvene==0.1.8",
    "nnsight": None,
    "transformer-lens": None,
}
#: Real configurations, filled with random weights.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 128, "vocab_size": 500},
    "llama-3.2-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
                     "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
                     "tie_word_embeddings": True},
    "qwen2.5-7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                   "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064},
}  # fmt: skip
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
    options.add_argument("--device", default="cpu", help="with --shape: cpu, cuda, ...")
    options.add_argument("--shape", choices=SHAPES, help="a real configuration in bfloat16 instead")
    chosen = options.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if chosen.shape:
        real_shape(chosen.shape, chosen.device, chosen.turns or 5, write=not chosen.quick)
        return
    turns = chosen.turns or (3 if chosen.quick else 9)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    # Nothing ends early: every prompt gets all its tokens.
    model.model.config.eos_token_id = model.model.generation_config.eos_token_id = None
    known, rows, threads = _known() if chosen.group else [], [], torch.get_num_threads()
    for name, measure in GROUPS.items():
        if chosen.group and name not in chosen.group:
            rows += [one for one in known if one["group"] == name]
        else:
            measured = measure(model, turns)
            rows += [{**one, "group": name, "turns": turns, "threads": threads} for one in measured]
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
    for cells in _cells({"rows": [one for one in rows if "inside the hooks" not in one]}):
        table.add_row(*cells)
    Console().print(table)
    if timed := [one for one in rows if "inside the hooks" in one]:
        Console().print(_inside(timed))
    if not chosen.quick:
        write_results(RESULTS, results)
        write_readme(HERE / "README.md", results)


def _known() -> list[dict[str, Any]]:
    """The rows of the last run, each with the threads it was measured on."""
    if not RESULTS.exists():
        return []
    results = json.loads(RESULTS.read_text())
    return [{"threads": results["configuration"]["threads"], **one} for one in results["rows"]]


def whole_batch(model: sl.LanguageModel, size: int, turns: int) -> list[dict[str, Any]]:
    """One intervention for all rows of a batch."""
    vectors, prompts = directions(model), texts(size)
    one = vectors.at(sl.Site("resid_post", 6))
    first = vectors.at(sl.Site("resid_post", 0))
    condition = Condition(first, threshold=0.0)
    token_condition = Condition(first, threshold=0.0, positions=None)
    cases: dict[str, tuple[list[Any], float | None]] = {
        "Add at one layer": ([Add(one, strength=0.1)], ONE_GOAL),
        "Add at every layer": ([Add(vectors, strength=0.1, layers="all")], ALL_GOAL),
        "Add at every layer, prompt's condition": (
            [Add(vectors, strength=0.1, layers="all", condition=condition)],
            CONDITION_GOAL,
        ),
    }
    if size > 1:
        cases |= {
            "Add at every layer, each token's condition": (
                [Add(vectors, strength=0.1, layers="all", condition=token_condition)],
                CONDITION_GOAL,
            ),
            "Add at every layer, decaying": (
                [Add(vectors, strength=0.1, layers="all", schedule=Decay(0.9))],
                ALL_GOAL,
            ),
            "three Adds and a Clamp at every layer": (
                [
                    *(Add(vectors, strength=0.1, layers="all") for _ in range(3)),
                    Clamp(vectors, value=0.5, layers="all"),
                ],
                None,
            ),
            "Rotate at every layer": ([Rotate(vectors, layers="all")], None),
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


def profile(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """Seconds inside the hooks over the seconds of the rest of the same run: resolves what whole runs do not."""
    vectors, prompts = directions(model), texts(8)
    first = vectors.at(sl.Site("resid_post", 0))
    condition, token_condition = (
        Condition(first, threshold=0.0),
        Condition(first, threshold=0.0, positions=None),
    )
    table = PerRow(*(Add(directions(model, seed), strength=0.1, layers="all") for seed in range(16)))
    cases: dict[str, tuple[list[str], Any]] = {
        "Add at one layer": (prompts, Add(vectors.at(sl.Site("resid_post", 6)), strength=0.1)),
        "Add at every layer": (prompts, Add(vectors, strength=0.1, layers="all")),
        "prompt's condition": (prompts, Add(vectors, strength=0.1, layers="all", condition=condition)),
        "each token's condition": (
            prompts,
            Add(vectors, strength=0.1, layers="all", condition=token_condition),
        ),
        "decaying": (prompts, Add(vectors, strength=0.1, layers="all", schedule=Decay(0.9))),
        "Rotate at every layer": (prompts, Rotate(vectors, layers="all")),
        "Ablate everywhere": (prompts, Ablate(vectors.at(sl.Site("resid_post", 6)))),
        "16 different interventions at every layer (batch 16)": (texts(16), table),
    }
    rows = []
    for name, (several, edit) in cases.items():
        runs = [
            share_in_hooks(lambda several=several, edit=edit: generate(model, several, edit))
            for _ in range(turns + 1)
        ]
        rows.append({"what": name, "inside the hooks": Spread.of(runs[1:]).to_dict(), "goal": None})
    return rows


def by_row(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """Sixteen prompts, each with an intervention of its own."""
    prompts = texts(16)
    everywhere = PerRow(*(Add(directions(model, seed), strength=0.1, layers="all") for seed in range(16)))
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


def baked(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """A vector added at every layer as biases, and a direction ablated from every writer, over the plain model.

    Where weights lie in memory moves the times of a processor by a few percent, so a copy of the plain weights is
    timed as well: what it costs is not the edit's.
    """
    prompts, vectors = texts(8), directions(model)
    made = {
        "Add at every layer, baked": bake(model, Add(vectors, strength=0.1, layers="all")),
        "Ablate everywhere, baked": bake(model, Ablate(vectors.at(sl.Site("resid_post", 6)))),
    }
    for one in made.values():
        one.model.config.eos_token_id = one.model.generation_config.eos_token_id = None
    variants: dict[str, Any] = {"plain": lambda: generate(model, prompts)}
    variants |= {name: lambda one=one: generate(one, prompts) for name, one in made.items()}
    twin = sl.load(copy.deepcopy(model.model), tokenizer=model.tokenizer)
    variants["copy"] = lambda: generate(twin, prompts)
    times = in_turn(variants, turns)
    over, copied = "unsteered generate, batch 8", "unsteered generate of the copy, batch 8"
    return [
        row("control: a copy of the plain weights, batch 8", over, times, "copy", "plain"),
        *[row(f"{name}, batch 8", over, times, name, "plain", goal=BAKED_GOAL) for name in made],
        *[row(f"{name}, batch 8", copied, times, name, "copy", goal=BAKED_GOAL) for name in made],
    ]


def continuous(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """`generate_batch` over `generate` on prompts of 8 to 64 tokens, both steered through slots at every layer."""
    slots = Slots(model, model.sites("resid_post"), rank=0)
    edit, rows = Add(directions(model), strength=0.1, layers="all"), []
    random = torch.Generator().manual_seed(2)
    try:
        for size in (1, 8, 32):
            lengths = torch.randint(8, TOKENS + 1, (size,), generator=random).tolist()
            prompts = [text_of(torch.randint(WORDS, (n,), generator=random).tolist()) for n in lengths]

            def packed(prompts: list[str] = prompts) -> None:
                with slots.steering(edit):
                    generate_batch(model, prompts, max_new_tokens=NEW)

            def padded(prompts: list[str] = prompts) -> None:
                with slots.steering(edit):
                    model.generate(prompts, max_new_tokens=NEW)

            times = in_turn({"packed": packed, "padded": padded}, max(3, turns // 3))
            found = row(
                f"generate_batch, {size} prompts", f"generate, {size} prompts", times, "packed", "padded"
            )
            speeds = {
                f"tokens per second, {name}": [round(size * NEW / one.wall, 1) for one in times[name]]
                for name in times
            }
            rows.append({**found, **speeds})
    finally:
        slots.remove()
    return rows


def peers(model: sl.LanguageModel, turns: int) -> list[dict[str, Any]]:
    """Each peer's generation over plain generation in its own process, and ours over the same here."""
    prompts = texts(8)
    ids, vectors = model.tokenize(prompts).input_ids, directions(model)
    rows: list[dict[str, Any]] = []
    one = Add(vectors.at(sl.Site("resid_post", 6)), strength=1.0)
    ours = {"one layer": one, "every layer": Add(vectors, strength=1.0, layers="all")}
    variants: dict[str, Any] = {"plain": lambda: generate(model, prompts)}
    variants |= {case: lambda edit=edit: generate(model, prompts, edit) for case, edit in ours.items()}
    times = in_turn(variants, turns)
    over = "plain generation in the same process, batch 8"
    rows += [row(f"steerlab: a vector at {case}", over, times, case, "plain") for case in ours]
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        stacked = torch.stack([vectors[site].float() for site in vectors.sites])
        torch.save({"ids": ids, "vectors": stacked}, Path(folder) / "task.pt")
        for name, requirement in PEERS.items():
            rows += _peer_rows(name, requirement, Path(folder), turns, over)
    return rows


def _peer_rows(
    name: str, requirement: str | None, folder: Path, turns: int, over: str
) -> list[dict[str, Any]]:
    python = sys.executable if requirement is None else _environment(name, requirement)
    worker = [python, str(HERE / "_steering_peer.py"), name, str(folder), str(turns), str(NEW)]
    ran = subprocess.run(worker, capture_output=True, text=True, check=False, cwd=HERE)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        reason = (ran.stderr.strip().splitlines() or ["no output"])[-1][:160]
        return [{"what": f"{name}: failed", "over": reason, "goal": None}]
    result = json.loads(lines[-1].removeprefix("RESULT "))
    rows = []
    for case, found in result["cases"].items():
        times = {key: [Times(**one) for one in turn] for key, turn in found["times"].items()}
        said = "" if found["same tokens"] else ", other tokens than a plain hook's"
        version = requirement or name
        made = row(f"{version} (transformers {result['versions']['transformers']}): a vector at {case}{said}",
                   over, times, "peer", "plain")  # fmt: skip
        rows.append({**made, "same tokens": found["same tokens"]})
    return rows


def _environment(name: str, requirement: str) -> str:
    """The Python of a peer's environment; what it does not bring itself (torch) is this one's."""
    folder = Path.home() / ".cache" / "steerlab-peers" / requirement.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        venv.create(folder, with_pip=True, clear=True)
        here = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        (next(folder.glob("lib/python*/site-packages")) / "zz_base.pth").write_text(f"{here}\n")
        ran = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode == 0:
            (folder / "made").touch()
    return str(python)


def real_shape(name: str, device: str, turns: int, *, write: bool) -> None:
    """Hooks, conditions, tables and slots at batch 1, 16 and 64 on a real shape in bfloat16, eager and compiled."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), 1, 64, 4, 64, 500)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.device(device):
        source = (
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPES[name])).to(torch.bfloat16).eval()
        )
    source.config.eos_token_id = source.generation_config.eos_token_id = None
    model = sl.load(source, tokenizer=tokenizer, dtype="auto")
    rows: list[dict[str, Any]] = []
    for size in (1, 16, 64):
        rows += _real_rows(model, size, turns, "eager")
    slots = Slots(model, model.sites("resid_post"), rank=0)
    model.model.compile()
    for size in (1, 16, 64):
        rows += _compiled_rows(model, slots, size, turns)
    results = {
        "configuration": {
            "shape": name, **SHAPES[name], "weights": "random, bfloat16", "turns": turns,
            "prompts": f"{TOKENS} tokens, {NEW} new ones, greedy",
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/steering.py", *sys.argv[1:]]),
        "rows": rows,
    }  # fmt: skip
    print(json.dumps(rows, indent=1))
    if write:
        (HERE / "results" / f"steering_{name}_{device.partition(':')[0]}.json").write_text(
            json.dumps(results, indent=1) + "\n"
        )


def _real_rows(model: sl.LanguageModel, size: int, turns: int, mode: str) -> list[dict[str, Any]]:
    vectors, prompts = directions(model), texts(size, 500)
    first = vectors.sites[0]
    condition = Condition(vectors.at(first), threshold=0.0)
    table = PerRow(*(Add(directions(model, seed % 16), strength=0.1, layers="all") for seed in range(size)))
    cases: dict[str, tuple[Any, float | None]] = {
        "Add at one layer": (Add(vectors.at(vectors.sites[len(vectors.sites) // 2]), strength=0.1), ONE_GOAL),
        "Add at every layer": (Add(vectors, strength=0.1, layers="all"), ALL_GOAL),
        "Add at every layer, prompt's condition": (
            Add(vectors, strength=0.1, layers="all", condition=condition),
            CONDITION_GOAL,
        ),
        "16 different interventions": (table, ROWS_GOAL if size > 1 else None),
    }
    variants: dict[str, Any] = {"plain": lambda: _synced(model, prompts)}
    variants |= {name: lambda edit=edit: _synced(model, prompts, edit) for name, (edit, _) in cases.items()}
    times = in_turn(variants, turns)
    over = f"unsteered generate, {mode}, batch {size}"
    return [
        row(f"{name}, {mode}, batch {size}", over, times, name, "plain", goal=goal)
        for name, (_, goal) in cases.items()
    ]


def _compiled_rows(model: sl.LanguageModel, slots: Slots, size: int, turns: int) -> list[dict[str, Any]]:
    prompts, edit = texts(size, 500), Add(directions(model), strength=0.1, layers="all")

    def steered() -> None:
        with slots.steering(edit):
            _synced(model, prompts)

    times = in_turn({"plain": lambda: _synced(model, prompts), "slots": steered}, turns)
    over = f"unsteered generate with empty slots, compiled, batch {size}"
    return [row(f"Add at every layer through slots, compiled, batch {size}", over, times, "slots", "plain")]


def _synced(model: sl.LanguageModel, prompts: list[str], *edits: Any) -> None:
    """Generation to its end, the device's queue included."""
    generate(model, prompts, *edits)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


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


def texts(size: int, words: int = WORDS) -> list[str]:
    random = torch.Generator().manual_seed(1)
    return [text_of(one) for one in torch.randint(words, (size, TOKENS), generator=random).tolist()]


def write_readme(path: Path, results: dict[str, Any]) -> None:
    """Replace what stands between the markers of the README."""
    setting, machine = results["configuration"], results["machine"]
    timed = [one for one in results["rows"] if "inside the hooks" in one]
    compared = [one for one in results["rows"] if "inside the hooks" not in one]
    lines = [
        f"- Model: {setting['shape']}; {setting['weights']}. Prompts: {setting['prompts']}. "
        f"Threads: {setting['threads']}.",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"accelerator: {machine['accelerator']}.",
        f"- Command: `{results['command']}`; {setting['turns']} turns.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *("| " + " | ".join(cells) + " |" for cells in _cells({"rows": compared})),
        "",
        *([_inside(timed)] if timed else []),
        "",
    ]
    before, _, rest = path.read_text().partition(_START)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_START}\n\n" + "\n".join(lines) + f"\n{_END}{after}")


def _inside(rows: list[dict[str, Any]]) -> str:
    """What the profile found, as a sentence."""
    shares = [(one["what"], Spread(**one["inside the hooks"])) for one in rows]
    listed = "; ".join(
        f"{what}: {100 * found.median:.1f} % ({100 * found.low:.1f} … {100 * found.high:.1f})"
        for what, found in shares
    )
    return f"Time inside the hooks over the rest of the same run (batch 8 where nothing is said): {listed}."


GROUPS: dict[str, Callable[[sl.LanguageModel, int], list[dict[str, Any]]]] = {
    "batch-1": lambda model, turns: whole_batch(model, 1, turns),
    "profile": profile,
    "batch-8": lambda model, turns: whole_batch(model, 8, turns),
    "rows": by_row,
    "baked": baked,
    "continuous": continuous,
    "peers": peers,
}


if __name__ == "__main__":
    main()
