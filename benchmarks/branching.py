"""What recording the law of every token costs: our sampler against transformers' plain sampling, and against
keeping scores.

    python benchmarks/branching.py            # writes results/branching.json and its table in README.md
    python benchmarks/branching.py --quick    # fewer turns and steps; writes nothing

All ways draw the same number of continuations at temperature 1 and top-p 0.9 from one model; nobody stops early
(no end token). Ours shares one prefill among the samples of a prompt and records six numbers a token;
`generate(output_scores=True)` with the top 50 kept a token is what the reference implementation stores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from _table import write_section
from _timing import in_turn
from capture import HEADS, LAYERS, NEURONS, WIDTH, WORDS, row, save_checkpoint

import steerlab as sl
from steerlab.environment import hardware, library_versions
from steerlab.readouts.sampling import SamplingLaw, sample_tokens

HERE = Path(__file__).parent
PROMPTS, SAMPLES, TOKENS, STEPS = 4, 8, 32, 32
GOAL = 1.05


def main() -> None:
    """Measure, print and, unless quick, write results and README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn, eight steps; writes nothing")
    parser.add_argument("--turns", type=int, default=5, help="turns (default 5)")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder), LAYERS, WIDTH, HEADS, NEURONS, WORDS)
        model = sl.load(str(checkpoint), device="cpu", dtype=torch.float32)
    steps = 8 if chosen.quick else STEPS
    ids = torch.randint(WORDS, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(0))
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
            model.model,
            ids.tolist(),
            vocab_size=WORDS,
            stop_ids=(),
            samples=SAMPLES,
            max_new_tokens=steps,
            law=law,
        )

    def generate() -> None:
        with torch.inference_mode():
            model.source.generate(repeated, **plain)

    def scores() -> list[Any]:
        with torch.inference_mode():
            found = model.source.generate(repeated, **plain, output_scores=True, return_dict_in_generate=True)
        return [
            [
                dict(zip(i, v, strict=True))
                for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
            for top in (step.log_softmax(-1).topk(50) for step in found.scores)
        ]

    times = in_turn(
        {"ours": ours, "generate": generate, "scores": scores}, 1 if chosen.quick else chosen.turns
    )
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
    ]
    results = {
        "configuration": {
            "shape": f"Llama, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {NEURONS} neurons, {WORDS:,} words",
            "weights": "random, float32",
            "threads": torch.get_num_threads(),
            "batch": f"{PROMPTS} prompts of {TOKENS} tokens, {SAMPLES} samples each, {steps} new tokens",
            "turns": 1 if chosen.quick else chosen.turns,
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


if __name__ == "__main__":
    main()
