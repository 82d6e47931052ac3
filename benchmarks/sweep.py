"""What a patch sweep costs: every (layer, position) cell of a prompt pair, against one forward pass a cell and peers.

    python benchmarks/sweep.py            # writes results/sweep.json and its table in README.md
    python benchmarks/sweep.py --quick    # one size, one turn; writes nothing

States of a clean run are put into a corrupted one at the output of every block and at the last positions of the
prompt, one at a time; the difference of two logits is read after the last token. The naive loop is plain transformers
with one forward hook a cell. All ways are compared before the clock starts. The measured ratio stands beside that of
token-layers executed, which the sweep counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import transformers
from _table import write_results, write_section
from _timing import in_turn
from capture import row, save_checkpoint, text_of
from torch import Tensor

import steerlab as sl
from steerlab.activations import LogitDifference, PatchSweep, Run, StatePatch
from steerlab.environment import hardware, library_versions

HERE = Path(__file__).parent
WIDTH, HEADS, NEURONS, WORDS = 256, 4, 688, 4096
GOAL = 0.1
Sweep = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Size:
    """Layers of the model, positions patched at the prompt's end, and its tokens."""

    layers: int
    positions: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.layers} layers x {self.positions} positions of {self.tokens} tokens"

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(layer, position) of every cell."""
        places = range(self.tokens - self.positions, self.tokens)
        return [(layer, place) for layer in range(self.layers) for place in places]


SIZES = (Size(12, 14, 64), Size(6, 14, 64), Size(24, 14, 64), Size(12, 14, 128))


def main() -> None:
    """Measure, print and, unless quick, write results and README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first size, one turn; writes nothing")
    parser.add_argument("--turns", type=int, default=5, help="turns (default 5)")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = 1 if chosen.quick else chosen.turns
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(SIZES[:1] if chosen.quick else SIZES):
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = save_checkpoint(Path(folder), size.layers, WIDTH, HEADS, NEURONS, WORDS)
            rows += measure(checkpoint, size, turns, peers=number == 0)
    results = {
        "configuration": {
            "shape": f"Llama, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words",
            "weights": "random, float32",
            "threads": torch.get_num_threads(),
            "batch": "one pair of prompts",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/sweep.py", *sys.argv[1:]]),
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    if not chosen.quick:
        write_results(HERE / "results" / "sweep.json", results)
        shares = ", ".join(
            f"{one['what'].removeprefix('steerlab: ')}: {one['token-layers']:.3f}"
            for one in rows
            if "token-layers" in one
        )
        write_section(
            HERE / "README.md", "sweep.py", results, f"Token-layers over those of the naive loop: {shares}."
        )


def measure(checkpoint: Path, size: Size, turns: int, *, peers: bool) -> list[dict[str, Any]]:
    """Rows of one size."""
    ids = torch.randint(WORDS, (2, size.tokens), generator=torch.Generator().manual_seed(0))
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    shares: list[float] = []
    ways: dict[str, Sweep] = {
        "naive": naive(plain, ids, size),
        "batched": batched(plain, ids, size),
        "ours": ours(model, ids, size, shares),
    }
    if peers:
        ways |= {
            "TransformerLens": transformer_lens(checkpoint, ids, size),
            "nnsight": nnsight(checkpoint, ids, size),
        }
    expected = ways["naive"]()
    for name, way in ways.items():
        np.testing.assert_allclose(way(), expected, atol=1e-4, err_msg=name)
    times = in_turn(ways, turns)
    once = "naive loop: one forward pass a cell"
    found = [
        {
            **row(
                f"steerlab: {size}", once, times, "ours", "naive", goal=GOAL if size.layers >= 12 else None
            ),
            "token-layers": shares[-1],
        },
        row(f"naive in batches of one layer: {size}", once, times, "batched", "naive"),
    ]
    for name in ("TransformerLens", "nnsight") if peers else ():
        found.append(row(f"{name}: {size}", once, times, name, "naive"))
    return found


def ours(model: sl.LanguageModel, ids: Tensor, size: Size, shares: list[float]) -> Sweep:
    """`PatchSweep`, from texts to values: both runs are made anew."""
    clean, corrupted = (text_of(one) for one in ids.tolist())

    def sweep() -> np.ndarray:
        source = Run(model, [clean])
        cells = [
            (StatePatch(sl.Site("resid_post", layer), (position,), source),) for layer, position in size.cells
        ]
        found = PatchSweep(model, [corrupted], [cells], LogitDifference([0], [1])).run()
        shares.append((found.cost.patched + found.cost.kept) / found.cost.naive)
        return found.values[0]

    return sweep


def naive(model: Any, ids: Tensor, size: Size) -> Sweep:
    """One forward pass a cell with one hook."""

    def sweep() -> np.ndarray:
        with torch.inference_mode():
            states = model(ids[:1], output_hidden_states=True).hidden_states
            values = []
            for layer, position in size.cells:
                # The last entry is after the final norm, so the last block's output is read by a hook.
                state = states[layer + 1] if layer + 1 < size.layers else _last_output(model, ids[:1])
                handle = model.model.layers[layer].register_forward_hook(_setting(state, [position]))
                logits = model(ids[1:], use_cache=False, logits_to_keep=1).logits[0, -1]
                handle.remove()
                values.append(float(logits[0] - logits[1]))
        return np.array(values)

    return sweep


def batched(model: Any, ids: Tensor, size: Size) -> Sweep:
    """All positions of a layer as rows of one batch."""

    def sweep() -> np.ndarray:
        with torch.inference_mode():
            states = model(ids[:1], output_hidden_states=True).hidden_states
            values = []
            places = [position for layer, position in size.cells if layer == 0]
            for layer in range(size.layers):
                state = states[layer + 1] if layer + 1 < size.layers else _last_output(model, ids[:1])
                handle = model.model.layers[layer].register_forward_hook(_setting(state, places))
                logits = model(ids[1:].repeat(len(places), 1), use_cache=False, logits_to_keep=1).logits[
                    :, -1
                ]
                handle.remove()
                values.append((logits[:, 0] - logits[:, 1]).numpy())
        return np.concatenate(values)

    return sweep


def transformer_lens(checkpoint: Path, ids: Tensor, size: Size) -> Sweep:
    """TransformerLens' `generic_activation_patch` over the same cells."""
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(str(checkpoint), device="cpu")
    index = pd.DataFrame(size.cells, columns=["layer", "pos"])

    def sweep() -> np.ndarray:
        with torch.inference_mode():
            names = [f"blocks.{layer}.hook_resid_post" for layer in range(size.layers)]
            _, cache = bridge.run_with_cache(ids[:1], names_filter=names)
            found = patching.generic_activation_patch(
                bridge,
                ids[1:],
                cache,
                lambda logits: logits[0, -1, 0] - logits[0, -1, 1],
                patching.layer_pos_patch_setter,
                "resid_post",
                index_df=index,
            )
        return found.flatten().numpy()

    return sweep


def nnsight(checkpoint: Path, ids: Tensor, size: Size) -> Sweep:
    """nnsight: a trace a cell that sets one position of a block's output."""
    from nnsight import NNsight

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    traced: Any = NNsight(model)

    def sweep() -> np.ndarray:
        with torch.inference_mode():
            with traced.trace(ids[:1], use_cache=False):
                states = list().save()
                for layer in traced.model.layers:
                    states.append(layer.output)
            clean, values = list(states), []
            for layer, position in size.cells:
                with traced.trace(ids[1:], use_cache=False):
                    traced.model.layers[layer].output[:, position] = clean[layer][:, position]
                    logits = traced.lm_head.output[0, -1].save()
                values.append(float(logits[0] - logits[1]))
        return np.array(values)

    return sweep


def _last_output(model: Any, ids: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = model.model.layers[-1].register_forward_hook(lambda module, args, output: kept.append(output))
    model.model(ids, use_cache=False)
    handle.remove()
    return kept[0]


def _setting(state: Tensor, positions: list[int]) -> Callable[..., Tensor]:
    def hook(module: object, args: object, output: Tensor) -> Tensor:
        new = output.clone()
        for place, position in enumerate(positions):
            new[place, position] = state[0, position]
        return new

    return hook


if __name__ == "__main__":
    main()
