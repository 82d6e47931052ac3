"""What choosing a direction costs: shared work and early leaving against one plain forward pass a candidate and score.

    python benchmarks/selection.py            # writes results/selection.json and its table in README.md
    python benchmarks/selection.py --quick    # one turn, fewer candidates, writes nothing

The naive loop runs, for every candidate, the whole stack under ablation on harmful and on harmless prompts and with
the vector added on harmless ones, unembedding at the last position only, as ours does. The choice must be the same.
Target tokens are picked so that about a fifth of the candidates has induce >= 0, as in two published runs (14 of 70
and 19 of 95). Token-layers are counted with hooks and set beside the cost model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from _table import write_section
from _timing import in_turn
from capture import HEADS, LAYERS, NEURONS, WIDTH, WORDS, row, save_checkpoint, text_of

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.readouts.requests import ClassMeans, Reading, direction_at
from steerlab.selection.scores import Odds, Scorer, divergence
from steerlab.selection.select import (
    KL_BOUND,
    USABLE_DEPTH,
    Candidate,
    _Places,
    _published,
    _Race,
    survivors,
)
from steerlab.steering import Ablate, Add

HERE = Path(__file__).parent
PROMPTS, TOKENS, POSITIONS, PASS = 8, 24, 5, 0.2
GOAL = 0.25


def main() -> None:
    """Measure, print and, unless quick, write results and README."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="one turn, one position; writes nothing")
    options.add_argument("--turns", type=int, default=3, help="turns (default 3)")
    chosen = options.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    setting = Setting(model, 1 if chosen.quick else POSITIONS)
    turns = 1 if chosen.quick else chosen.turns
    rows, work = measure(setting, turns)
    results = {
        "configuration": {
            "shape": f"Llama, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words",
            "weights": "random, float32",
            "threads": torch.get_num_threads(),
            "batch": f"{PROMPTS} harmful and {PROMPTS} harmless prompts of {TOKENS} tokens, "
            f"{len(setting.vectors)} candidates",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/selection.py", *sys.argv[1:]]),
        "rows": rows,
        "work": work,
    }
    print(json.dumps({"rows": rows, "work": work}, indent=1))
    if not chosen.quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "selection.json").write_text(json.dumps(results, indent=1) + "\n")
        write_section(HERE / "README.md", "selection.py", results, note(work))


class Setting:
    """Random prompts and candidate vectors of a model, and tokens that a fifth of the candidates induces."""

    def __init__(self, model: sl.LanguageModel, positions: int) -> None:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(WORDS, (2 * PROMPTS, TOKENS), generator=generator).tolist()
        prompts = [sl.Prompt(text_of(row)) for row in ids]
        self.model, self.harmful, self.harmless = model, prompts[:PROMPTS], prompts[PROMPTS:]
        rng = np.random.default_rng(0)
        differences = rng.standard_normal((LAYERS, positions, WIDTH))
        states = sl.capture(model, prompts, model.sites("resid_post"))
        norms = [float(states[site].norm(dim=1).mean()) for site in states.sites]
        # vectors as long as a third of the stream, which is what a real class gap is
        differences *= (
            np.array(norms)[:, None, None] / np.linalg.norm(differences, axis=-1, keepdims=True) / 3
        )
        labels = np.arange(2 * PROMPTS) < PROMPTS
        rows = np.stack([states[site].numpy() for site in states.sites])
        self.reading = Reading(np.repeat(rows[:, :, None], positions, axis=2), labels)
        self.means = ClassMeans(differences, np.zeros_like(differences))
        self.odds = Odds(())
        self.vectors = self.places.vectors
        self.odds = Odds(self._tokens())

    @property
    def places(self) -> _Places:
        """Candidates without scores."""
        return _Places(self.model, self.means, self.reading, False)

    def scorer(self) -> Scorer:
        """A fresh one: recording is part of what is timed."""
        return Scorer(
            self.model, self.harmful, self.harmless, site="resid_post", layers=range(LAYERS), odds=self.odds
        )

    def race(self, *, complete: bool) -> list[Candidate]:
        """Ours, to the choice."""
        race = _Race(self.places, self.scorer(), complete=complete)
        chosen, _ = _published(race, LAYERS)
        return [chosen, *race.candidates]

    def naive(self) -> list[Candidate]:
        """One plain forward pass a candidate and score."""
        model, found = self.model, []
        plain = model.logits(self.harmless)
        for one, vector in zip(self.places.candidates, self.vectors, strict=True):
            with model.steering(Ablate(direction_at(model, vector, 0))):
                bypass = self.odds(model.logits(self.harmful)).mean()
                kl = divergence(plain, model.logits(self.harmless)).mean()
            with model.steering(Add(direction_at(model, vector, one.layer))):
                induce = self.odds(model.logits(self.harmless)).mean()
            scores = {"bypass": float(bypass), "induce": float(induce), "kl": float(kl)}
            found.append(one.model_copy(update=scores))
        return [survivors(found, LAYERS)[0], *found]

    def _tokens(self) -> tuple[int, ...]:
        """As many of the first tokens as let a fifth of the usable candidates have log-odds above zero."""
        usable = [n for n, one in enumerate(self.places.candidates) if one.layer < int(USABLE_DEPTH * LAYERS)]
        after = []
        for number in usable:
            edit = Add(direction_at(self.model, self.vectors[number], self.places.candidates[number].layer))
            with self.model.steering(edit):
                after.append(self.model.logits(self.harmless))
        low, high = 1, WORDS - 1
        while low < high:
            middle = (low + high) // 2
            odds = Odds(tuple(range(middle)))
            share = np.mean([float(odds(logits).mean()) >= 0 for logits in after])
            low, high = (low, middle) if share >= PASS else (middle + 1, high)
        return tuple(range(low))


def measure(setting: Setting, turns: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ratios and the work behind them; the three ways must choose the same candidate."""
    ways: dict[str, Callable[[], list[Candidate]]] = {
        "naive": setting.naive,
        "needed": lambda: setting.race(complete=False),
        "all": lambda: setting.race(complete=True),
    }
    counted: dict[str, tuple[list[Candidate], int]] = {}

    def counting(name: str) -> Callable[[], list[Candidate]]:
        def run() -> list[Candidate]:
            if name not in counted:  # in the first turn, whose time is not taken
                counted[name] = token_layers(setting.model, ways[name])
                return counted[name][0]
            return ways[name]()

        return run

    times = in_turn({name: counting(name) for name in ways}, turns)
    places = {name: (found[0].layer, found[0].position) for name, (found, _) in counted.items()}
    if len(set(places.values())) != 1:
        raise SystemExit(f"The ways choose different candidates: {places}.")
    naive, whole = counted["naive"][0][1:], counted["all"][0][1:]
    scores = ("bypass", "induce", "kl")
    worst = max(abs(getattr(a, s) - getattr(b, s)) for a, b in zip(naive, whole, strict=True) for s in scores)
    if worst > 1e-3:
        raise SystemExit(f"The scores differ by {worst:.2g}.")
    over = "one plain forward pass a candidate and score"
    rows = [
        row("the scores that the choice needs", over, times, "needed", "naive", goal=GOAL),
        row("every score of every candidate", over, times, "all", "naive"),
    ]
    usable = [one for one in whole if one.layer < int(USABLE_DEPTH * LAYERS)]
    work: dict[str, Any] = {name: count / counted["naive"][1] for name, (_, count) in counted.items()}
    work |= {f"{name}, cost model": share for name, share in cost_model(whole, usable).items()}
    if abs(work["all"] - work["all, cost model"]) > 1e-9:
        raise SystemExit(f"The cost model is wrong: {work}.")
    work["candidates"] = len(whole)
    work["usable layers"] = len(usable)
    work["induce >= 0"] = sum(one.induce >= 0 for one in usable)
    work["and KL <= 0.1"] = sum(one.induce >= 0 and one.kl <= KL_BOUND for one in usable)
    work["largest difference of scores"] = worst
    return rows, work


def cost_model(every: Sequence[Candidate], usable: Sequence[Candidate]) -> dict[str, float]:
    """Block passes of one prompt over those of the naive loop: of all scores exactly, of the needed ones at most."""
    starts = {
        layer: min(layer + 1, LAYERS - 1) for layer in range(LAYERS)
    }  # a block's output is added at the next
    kept = sorted(set(starts.values()))
    # two kinds recorded, the harmless ones in two parts, and each part restarted once a kept block
    recorded = 2 * PROMPTS * LAYERS + 2 * sum(LAYERS - start for start in kept)
    naive = (3 * len(every) + 1) * PROMPTS * LAYERS

    def induce(some: Sequence[Candidate]) -> int:
        return PROMPTS * sum(LAYERS - starts[one.layer] for one in some)

    strong = [one for one in usable if one.induce >= 0]
    both = [one for one in strong if one.kl <= KL_BOUND]
    return {
        "all": (recorded + induce(every) + 2 * len(every) * PROMPTS * LAYERS) / naive,
        "needed": (recorded + induce(usable) + (len(strong) + len(both)) * PROMPTS * LAYERS) / naive,
    }


def token_layers(model: sl.LanguageModel, way: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and tokens times blocks that really ran."""
    counts = [0]

    def add(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        counts[0] += output.shape[0] * output.shape[1]

    parts = [model.anatomy.tap(sl.Site("mlp_out", layer)).module for layer in range(LAYERS)]
    handles = [part.register_forward_hook(add) for part in parts]
    try:
        return way(), counts[0]
    finally:
        for handle in handles:
            handle.remove()


def note(work: dict[str, Any]) -> str:
    """The work behind the ratios in a sentence."""
    return (
        f"Token-layers that really ran, counted with hooks, over the naive loop's: {work['needed']:.3f} for the choice "
        f"(cost model: at most {work['needed, cost model']:.3f}), {work['all']:.3f} for every score (cost model "
        f"{work['all, cost model']:.3f}: two of three scores ablate from the first block on, and that cannot be "
        "shared; the third restarts at its layer, half of the stack on average; with many layers and candidates 5/6 of "
        "the naive work are left). Of "
        f"{work['candidates']} candidates {work['usable layers']} lie in usable layers, {work['induce >= 0']} of them "
        f"have induce >= 0, {work['and KL <= 0.1']} of those KL <= 0.1."
    )


if __name__ == "__main__":
    main()
