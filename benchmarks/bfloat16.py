"""Half precision on this processor: how fast bfloat16 is over float32, and how far its numbers are from it.

    python benchmarks/bfloat16.py FOLDER...        # folders as shared/models/fetch_real.py lays them out

Stored weights are bfloat16, so both hold the same numbers and differ in the arithmetic alone. Writes
`benchmarks/results/bfloat16.json`, the models that ran in place of earlier ones.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from _timing import cpu_ratio, in_turn, wall_ratio
from gpu import mean_differences, relative

import steerlab as sl
from steerlab import datasets
from steerlab.environment import hardware, library_versions

HERE = Path(__file__).parent
RESULT = HERE / "results" / "bfloat16.json"
TEXTS, CHARACTERS, WRITTEN, NEW, REQUESTS = 2, 120, 1, 3, 4


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Speed and equality of one model."""
    fine, half = (sl.load(str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    for model in (fine, half):
        model.model.generation_config.eos_token_id = model.model.config.eos_token_id = None
    licence = (HERE.parent / "LICENSE").read_text()
    texts = [licence[start * CHARACTERS :][:CHARACTERS] for start in range(TEXTS)]
    return {"over float32": speeds(fine, half, texts, turns), **distances(fine, half, texts)}


def speeds(
    fine: sl.LanguageModel, half: sl.LanguageModel, texts: list[str], turns: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Time of reading and of writing in bfloat16 over that in float32."""
    work = {
        "reading": lambda model: sl.capture(model, texts, "resid_post"),
        "writing": lambda model: model.generate(texts[:WRITTEN], max_new_tokens=NEW),
    }
    found = {}
    for name, run in work.items():
        times = in_turn({"fine": lambda run=run: run(fine), "half": lambda run=run: run(half)}, turns)
        ratios = {"wall": wall_ratio(times, "half", "fine"), "cpu": cpu_ratio(times, "half", "fine")}
        found[name] = {kind: ratio.to_dict() for kind, ratio in ratios.items()}
    return found


def distances(fine: sl.LanguageModel, half: sl.LanguageModel, texts: list[str]) -> dict[str, float]:
    """Relative errors of logits and states, how often the likeliest token is the same, and a direction's cosine."""
    laws = [logits_of(model, texts) for model in (fine, half)]
    centred = [one - one.mean(-1, keepdim=True) for one in laws]
    states = [sl.capture(model, texts, "resid_post").states for model in (fine, half)]
    requests = datasets.requests().split("train")
    prompts = [*requests.negative[:REQUESTS], *requests.positive[:REQUESTS]]
    labels = [0] * REQUESTS + [1] * REQUESTS
    vectors = zip(*(mean_differences(model, prompts, labels) for model in (fine, half)), strict=True)
    cosines = [float(torch.cosine_similarity(a.double(), b.double(), dim=0)) for a, b in vectors]
    return {
        "logits, relative error": relative(centred[1], centred[0]),
        "last-token states, relative error at the worst layer": max(
            relative(states[1][site], states[0][site]) for site in states[0]
        ),
        "same likeliest token": float((laws[0].argmax(-1) == laws[1].argmax(-1)).double().mean()),
        "tokens": len(laws[0]),
        "harmful - harmless, cosine at the worst layer": min(cosines),
    }


def logits_of(model: sl.LanguageModel, texts: list[str]) -> torch.Tensor:
    """The logits of every real token of two texts, float32."""
    rows = []
    for text in texts[:2]:
        with torch.inference_mode():
            rows.append(
                model.model(input_ids=model.tokenize([text]).input_ids, use_cache=False).logits[0].float()
            )
    return torch.cat(rows)


def main() -> None:
    """Measure every model, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--note", default="", help="what else the machine did, written beside the numbers")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    models = json.loads(RESULT.read_text())["models"] if RESULT.exists() else {}
    for folder in chosen.folders:
        models[folder.name] = {
            **measure(folder, chosen.turns),
            "turns": chosen.turns,
            "machine": hardware(),
            "beside it": chosen.note,
        }
        print(folder.name, json.dumps(models[folder.name], indent=1))
        found = {"versions": library_versions(), "models": models}
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
