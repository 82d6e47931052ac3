"""What ablating neurons one by one costs: closed forms and restarted stacks against whole forward passes.

    python benchmarks/neurons.py            # writes results/neurons.json and its table in README.md
    python benchmarks/neurons.py --quick    # fewer neurons; writes nothing

Last layer: effect on the entropy of the same tokens (and with its direct part); the naive loop runs the
model once a neuron with that neuron at its mean and reads every token's logits (the total effect only). Layer 6 of
12: KL at the last token, restarted behind the layer, against one forward pass a neuron.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from _table import write_section
from _timing import in_turn
from capture import row, save_checkpoint, text_of

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.models.laws import entropy
from steerlab.neurons import NeuronHead, all_effects, scaled_neurons
from steerlab.neurons.layers import layer_effects

HERE = Path(__file__).parent
LAYERS, WIDTH, HEADS, NEURONS, WORDS = 12, 256, 4, 688, 4096  # about 10 million parameters
TEXTS, TOKENS, TRIED = 8, 32, 400
GOAL = 0.05


def main() -> None:
    """Measure, print and, unless quick, write results and README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn, eight neurons; writes nothing")
    parser.add_argument("--turns", type=int, default=5, help="turns (default 5)")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    ids = torch.randint(WORDS, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(0))
    texts = [text_of(one) for one in ids.tolist()]
    neurons = list(range(8 if chosen.quick else TRIED))
    tokens = model.tokenize(texts, padding_side="right")

    def ours() -> None:
        head = NeuronHead(model, texts)
        for neuron in neurons:
            head.confidence_of(neuron)

    def both() -> None:
        all_effects(NeuronHead(model, texts), neurons)

    def naive() -> None:
        for neuron in neurons:
            with model.steering(scaled_neurons(model, [neuron], 0.0)):
                logits = model.run(tokens, logits="all")
            assert logits is not None
            entropy(logits.log_softmax(-1))

    def restarted() -> None:
        layer_effects(model, 6, texts, neurons[:64], to="zero")

    def whole() -> None:
        for neuron in neurons[:64]:
            with model.steering(scaled_neurons(model, [neuron], 0.0, layer=6)):
                model.run(tokens, logits="last")

    turns = 1 if chosen.quick else chosen.turns
    last = in_turn({"ours": ours, "both": both, "naive": naive}, turns)
    middle = in_turn({"restarted": restarted, "whole": whole}, turns)
    once = "one forward pass a neuron"
    rows = [
        row("last layer: total effect, from the kept stream", once, last, "ours", "naive", goal=GOAL),
        row("last layer: total and direct effect and loss", f"{once} (total only)", last, "both", "naive"),
        row("layer 6 of 12: restarted behind the layer", f"{once}, last token", middle, "restarted", "whole"),
    ]
    results = {
        "configuration": {
            "shape": f"Llama, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words",
            "weights": "random, float32",
            "threads": torch.get_num_threads(),
            "batch": f"{TEXTS} texts of {TOKENS} tokens, {len(neurons)} neurons",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/neurons.py", *sys.argv[1:]]),
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    if not chosen.quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "neurons.json").write_text(json.dumps(results, indent=1) + "\n")
        write_section(HERE / "README.md", "neurons.py", results, "")


if __name__ == "__main__":
    main()
