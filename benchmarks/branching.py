"""What recording the law of every token costs: our sampler against transformers' plain sampling, and against
keeping scores.

    python benchmarks/branching.py            # writes results/branching.json and its table in README.md
    python benchmarks/branching.py --quick    # fewer turns and steps; writes nothing

All ways draw the same number of continuations at temperature 1 and top-p 0.9 from one model; nobody stops early
(no end token). Ours shares one prefill among the samples of a prompt and records six numbers a token;
`generate(output_scores=True)` with the top 50 kept a token is what the reference implementation stores. The last row
has the shape of a small model with a large vocabulary (Gemma-3-270M), where a step of the sampler walks through 262,144
logits a row. OMP_NUM_THREADS gives the threads (default 2).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from _table import write_section
from _timing import in_turn
from capture import HEADS, LAYERS, NEURONS, WIDTH, WORDS, row
from transformers import LlamaConfig, LlamaForCausalLM

from steerlab.environment import hardware, library_versions
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.sampling import sample_tokens

HERE = Path(__file__).parent
PROMPTS, SAMPLES, TOKENS, STEPS = 4, 8, 32, 32
LARGE = {"layers": 18, "width": 640, "heads": 4, "neurons": 2048, "words": 262_144}
LARGE_PROMPTS, LARGE_STEPS = 8, 6
SPREAD = 4.5  # standard deviation of the logits: a nucleus of 0.9 keeps about a hundred tokens
GOAL = 1.05


def main() -> None:
    """Measure, print and, unless quick, write results and README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn, few steps; writes nothing")
    parser.add_argument("--turns", type=int, default=5, help="turns (default 5)")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    steps, turns = (8, 1) if chosen.quick else (STEPS, chosen.turns)
    large_steps = 2 if chosen.quick else LARGE_STEPS
    times = in_turn(ways(network_of(LAYERS, WIDTH, HEADS, NEURONS, WORDS), PROMPTS, steps), turns)
    large_ways = ways(network_of(**LARGE), LARGE_PROMPTS, large_steps)
    large = in_turn({name: large_ways[name] for name in ("ours", "generate")}, turns)
    rows = [
        row(
            "sampling that records its law",
            "plain sampling by transformers",
            times,
            "ours",
            "generate",
            goal=GOAL,
        ),
        row(
            "plain sampling, top-50 scores kept as the reference does",
            "plain sampling by transformers",
            times,
            "scores",
            "generate",
        ),
        row(
            f"sampling that records its law, {LARGE['words']:,} words",
            "plain sampling by transformers, same model",
            large,
            "ours",
            "generate",
            goal=GOAL,
        ),
    ]
    results = {
        "configuration": {
            "shape": f"Llama, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words; in "
            f"the last row {LARGE['layers']} layers, width {LARGE['width']}, {LARGE['heads']} heads, "
            f"{LARGE['neurons']} neurons, {LARGE['words']:,} words",
            "weights": f"random, float32, logits of spread {SPREAD:g}",
            "threads": torch.get_num_threads(),
            "batch": f"{PROMPTS} prompts of {TOKENS} tokens, {SAMPLES} samples each, {steps} new tokens; in the "
            f"last row {LARGE_PROMPTS} prompts and {large_steps} new tokens",
            "turns": turns,
        },
        "machine": hardware(),
        "versions": library_versions(),
        "command": "python " + " ".join(["benchmarks/branching.py", *sys.argv[1:]]),
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    if not chosen.quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "branching.json").write_text(json.dumps(results, indent=1) + "\n")
        write_section(HERE / "README.md", "branching.py", results, "")


def network_of(layers: int, width: int, heads: int, neurons: int, words: int) -> Any:
    """A random Llama of this shape, whose unembedding is its embedding; as sure of itself as a trained model.

    Random weights make laws that spread over most of the vocabulary, which both ways would have to sort.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
        vocab_size=words,
        tie_word_embeddings=True,
    )
    network = LlamaForCausalLM(config).eval()
    network.model.norm.weight.data.fill_(SPREAD / (config.initializer_range * width**0.5))
    return network


def ways(network: Any, prompts: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Ours, transformers' own, and its own with the scores kept: the same number of continuations."""
    words = network.config.vocab_size
    ids = torch.randint(words, (prompts, TOKENS), generator=torch.Generator().manual_seed(0))
    repeated = ids.repeat_interleave(SAMPLES, dim=0)
    law = SamplingLaw(1.0, "top_p", 0.9)
    plain: dict[str, Any] = dict(
        attention_mask=torch.ones_like(repeated),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=True,
        temperature=1.0,
        top_p=0.9,
        top_k=0,
        pad_token_id=0,
        eos_token_id=None,
    )

    def ours() -> None:
        sample_tokens(
            network,
            ids.tolist(),
            vocab_size=words,
            stop_ids=(),
            samples=SAMPLES,
            max_new_tokens=steps,
            law=law,
        )

    @torch.inference_mode()
    def generate() -> None:
        network.generate(repeated, **plain)

    @torch.inference_mode()
    def scores() -> list[Any]:
        found = network.generate(repeated, **plain, output_scores=True, return_dict_in_generate=True)
        return [
            [
                dict(zip(i, v, strict=True))
                for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            for top in (step.log_softmax(-1).topk(50) for step in found.scores)
        ]

    return {"ours": ours, "generate": generate, "scores": scores}


if __name__ == "__main__":
    main()
