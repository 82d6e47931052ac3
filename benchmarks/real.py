"""What reading, steering and baking cost on real models on a CPU, in float32.

    python benchmarks/real.py FOLDER...              # writes results/real.json and its table in README.md
    python benchmarks/real.py --quick FOLDER...      # one turn, writes nothing

Each folder holds a transformers checkpoint. Pieces of this package's licence are read, and continued greedily with
the end of a text switched off. Reading is measured over the headless forward pass on the same padded batch. Whole runs
differ by more than the hooks cost, so what they add is clocked inside the run, too; baked weights have none, and are
timed against a copy of the plain weights, which lies elsewhere in memory as they do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from _inside import share_beside, share_in_hooks
from _table import _cells, write_results, write_section
from _timing import Spread, in_turn
from capture import row

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.errors import SteerlabError
from steerlab.steering import Ablate, Add, bake

HERE = Path(__file__).parent
READ, WRITE, NEW = (4, 320), (2, 160), 12  # texts and their characters; new tokens
READ_GOAL, INSIDE_GOAL, WATCH_GOAL, BAKED_GOAL = 1.03, 0.02, 0.01, 1.005


def main() -> None:
    """Measure every model, print and, unless quick, write results and README."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    options.add_argument("--quick", action="store_true", help="one turn; writes nothing")
    options.add_argument("--turns", type=int, default=5, help="turns of every comparison (default 5)")
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some of what is measured"
    )
    options.add_argument("--note", default="", help="what else the machine did, written beside the numbers")
    chosen = options.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = 1 if chosen.quick else chosen.turns
    for folder in chosen.folders:
        found = measure(folder, turns, chosen.parts)
        where = {"machine": hardware()["processor"], "threads": torch.get_num_threads()}
        rows = [{"model": folder.name, "beside it": chosen.note, **where, **one} for one in found]
        write(rows, turns, chosen.quick)


def write(found: list[dict[str, Any]], turns: int, quick: bool) -> None:
    """Print the rows of a model beside those that are known and, unless quick, write them."""
    rows = kept(found) + found
    results = {
        "configuration": {
            "shape": ", ".join(dict.fromkeys(one["model"] for one in rows)),
            "weights": "trained, float32",
            "threads": torch.get_num_threads(),
            "batch": f"{READ[0]} texts of {READ[1]} characters, {WRITE[0]} of {WRITE[1]} with {NEW} new tokens",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/real.py", *sys.argv[1:]]),
        "rows": rows,
    }
    inside = [one for one in rows if "inside the hooks" in one]
    shown = {**results, "rows": [one for one in rows if "wall ratio" in one]}
    note = (
        "Clocked inside the run, hooks (and for reading all else that is not the pass) over the rest: "
        + "; ".join(map(said, inside))
        + ". In the weights: "
        + " ".join(f"{one['what']}: {one['baked']}" for one in rows if "baked" in one)
        + f" Beside it: {'; '.join(dict.fromkeys(one['beside it'] for one in rows)) or 'nothing'}."
    )
    for cells in _cells(shown):
        print(*cells, sep=" | ")
    print(note)
    if not quick:
        write_results(HERE / "results" / "real.json", results)
        write_section(HERE / "README.md", "real.py", shown, note)


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that an earlier run measured and this one did not."""
    path = HERE / "results" / "real.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    now = {one["what"] for one in rows}
    return [one for one in before if one["what"] not in now]


def measure(folder: Path, turns: int, parts: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one model."""
    model = sl.load(str(folder), device="cpu", dtype="float32")
    model.model.generation_config.eos_token_id = model.model.config.eos_token_id = None
    return [
        {**one, "what": f"{folder.name}: {one['what']}"}
        for name in parts
        for one in PARTS[name](model, texts(*(READ if name == "reading" else WRITE)), turns)
    ]


def texts(count: int, characters: int) -> list[str]:
    """Pieces of the licence, one behind the other."""
    text = (HERE.parent / "LICENSE").read_text()
    return [text[start * characters :][:characters] for start in range(count)]


def reading(model: sl.LanguageModel, given: list[str], turns: int) -> list[dict[str, Any]]:
    """The last token at every layer over the headless forward pass, and what it adds, clocked inside the run."""
    tokens = model.tokenize(given, padding_side="right")

    def headless() -> None:
        with torch.inference_mode():
            model.model.model(tokens.input_ids, use_cache=False)

    budget = len(tokens) * tokens.width

    def read() -> None:
        sl.capture(model, given, "resid_post", token_budget=budget)

    times = in_turn({"plain": headless, "read": read}, turns)
    over, what = "plain headless forward, same batch", "last token at every layer, rows kept"
    shares = [share_beside(read, model.model.model) for _ in range(turns)]
    return [
        row(what, over, times, "read", "plain", goal=READ_GOAL),
        {"what": "reading", "inside the hooks": Spread.of(shares).to_dict(), "goal": READ_GOAL - 1},
    ]


def steering(model: sl.LanguageModel, given: list[str], turns: int) -> list[dict[str, Any]]:
    """Seconds inside the hooks over the seconds of the rest of the same run."""
    vectors = directions(model)
    middle = vectors.at(vectors.sites[len(vectors.sites) // 2])
    cases = {
        "Add at one layer": (Add(middle, strength=0.1), INSIDE_GOAL),
        "Add at every layer": (Add(vectors, strength=0.1, layers="all"), None),
    }
    rows = []
    for name, (edit, goal) in cases.items():
        shares = [share_in_hooks(lambda edit=edit: written(model, given, edit)) for _ in range(turns + 1)]
        rows.append({"what": name, "inside the hooks": Spread.of(shares[1:]).to_dict(), "goal": goal})
    return rows


def watching(model: sl.LanguageModel, given: list[str], turns: int) -> list[dict[str, Any]]:
    """The same of a watch: one probe, and three at three sites."""
    vectors = directions(model)
    sites = [vectors.sites[round(share * (model.n_layers - 1))] for share in (0.5, 0.25, 0.75)]
    probes = [vectors.at(site) for site in sites]

    def watched(count: int) -> None:
        with model.watch(*probes[:count]):
            written(model, given)

    rows = []
    for name, count, goal in (("one probe", 1, WATCH_GOAL), ("three probes at three sites", 3, None)):
        shares = [share_in_hooks(lambda count=count: watched(count)) for _ in range(turns + 1)]
        rows.append(
            {"what": f"watch, {name}", "inside the hooks": Spread.of(shares[1:]).to_dict(), "goal": goal}
        )
    return rows


def baking(model: sl.LanguageModel, given: list[str], turns: int) -> list[dict[str, Any]]:
    """Generation with a vector in the weights over that of a copy of the plain weights, or why there is none."""
    vectors = directions(model)
    edit = Add(vectors.at(vectors.sites[len(vectors.sites) // 2]), strength=0.1)
    try:
        baked = bake(model, edit)
    except SteerlabError as error:
        return [{"what": "Add, baked", "baked": f"refused: {error}"}]
    twin = sl.load(deepcopy(model.model), tokenizer=model.tokenizer)
    if written(baked, given) != written(model, given, edit):
        raise SystemExit(
            f"{model.name} writes other tokens baked than steered; look at bake before its speed."
        )
    times = in_turn({"copy": lambda: written(twin, given), "baked": lambda: written(baked, given)}, turns)
    over = "unsteered generate of a copy"
    return [row("Add at one layer, baked", over, times, "baked", "copy", goal=BAKED_GOAL)]


def ablating(model: sl.LanguageModel, given: list[str], turns: int) -> list[dict[str, Any]]:
    """A direction taken out of the weights: that it writes the tokens of the hooks, or the sentence that refuses."""
    edit = Ablate(directions(model).at(f"resid_post.{model.n_layers // 2}"))
    try:
        baked = bake(model, edit)
    except SteerlabError as error:
        return [{"what": "Ablate, baked", "baked": f"refused: {error}"}]
    if written(baked, given) != written(model, given, edit):
        raise SystemExit(f"{model.name} writes other tokens with the ablation baked than with hooks.")
    return [{"what": "Ablate, baked", "baked": "the tokens of the hooks."}]


def written(model: sl.LanguageModel, given: list[str], *edits: Any) -> list[tuple[int, ...]]:
    """The tokens written, inside `steering` where there are edits."""
    if not edits:
        return [one.token_ids for one in model.generate(given, max_new_tokens=NEW)]
    with model.steering(*edits):
        return [one.token_ids for one in model.generate(given, max_new_tokens=NEW)]


def directions(model: sl.LanguageModel) -> sl.Direction:
    """A random unit vector at every layer."""
    random = torch.Generator().manual_seed(0)
    vectors = {site: torch.randn(model.d_model, generator=random) for site in model.sites("resid_post")}
    return sl.Direction(vectors, model.name, model.fingerprint).unit()


def said(one: dict[str, Any]) -> str:
    """A share inside the hooks, in percent."""
    found = Spread(**one["inside the hooks"])
    return f"{one['what']}: {100 * found.median:.2f} % ({100 * found.low:.2f} … {100 * found.high:.2f})"


PARTS = {
    **{"reading": reading, "steering": steering, "watching": watching},
    **{"baking": baking, "ablating": ablating},
}

if __name__ == "__main__":
    main()
