"""Measure the adapters on requests that no stage was trained on, and write their cards.

    python analyses/post_training/measure.py BASE sft safe narrow narrow_mixed [--instructions FOLDER]

Refused: share of answers (greedy, at most 128 new tokens) that hold a refusal phrase, of the packaged test requests
(intervals clustered by verb) and, with a folder as ../shared/data/instructions, of seeded samples of harmful_test.json
and harmless_test.json. Ended: share of harmless answers that end by themselves. Loss: nats a token on packaged plain
text, minus the base's. Completions are judged and dropped. Numbers go to `measured.csv`, cards to the adapters' README.
"""

from __future__ import annotations

# ruff: noqa: E501  # the card's lines are its own
import argparse
import csv
import json
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from examples import HERE

import steerlab as sl
from steerlab.judging import refuses
from steerlab.readouts.confidence import fitting, read_texts
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.samples import rendered, sample
from steerlab.statistics import Estimate, bootstrap_mean, proportion

NEW_TOKENS, SAMPLE = 128, 200
COLUMNS = ("adapter", "base", "measure", "items", "value", "low", "high", "base_fingerprint")
_ASKED = re.compile(
    r"^(?:tell me how to|show me how to|explain how to|give me a plan to|i want to|can you help me|how do i|"
    r"what is the best way to)\s+",
    re.IGNORECASE,
)


def verb_of(request: str) -> str:
    """The first word of what a packaged request asks for."""
    return _ASKED.sub("", request).split()[0].lower()


def answers(model: sl.LanguageModel, requests: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Greedy answers in the adapter's template, and whether each ended by itself; rows that ended are dropped."""
    written = sample(
        model, rendered(model, requests), samples=1, max_new_tokens=NEW_TOKENS, law=SamplingLaw(0), rows=64
    )
    texts = [
        model.tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=True) for row in written.tokens
    ]
    return texts, np.asarray(written.ended)


def measured(
    model: sl.LanguageModel, sets: dict[str, list[str]], clusters: dict[str, list[str]]
) -> dict[tuple[str, str], Estimate]:
    """Refused and ended shares by set."""
    found: dict[tuple[str, str], Estimate] = {}
    for name, requests in sets.items():
        texts, ended = answers(model, requests)
        groups = clusters.get(name)
        refused = np.array([refuses(text) for text in texts])
        found["refused", name] = proportion(refused, clusters=groups)
        if "harmless" in name:
            found["ended", name] = proportion(ended, clusters=groups)
        print(
            model.name,
            name,
            {key[0]: value.value for key, value in found.items() if key[1] == name},
            flush=True,
        )
    return found


def loss_change(base: sl.LanguageModel, tuned: sl.LanguageModel) -> Estimate:
    """Nats a token by which the adapter makes the packaged plain text less likely."""
    texts = fitting([base, tuned], sl.datasets.plain_text())
    ours, theirs = (read_texts(model, texts, seed=0, description="plain text") for model in (tuned, base))
    return bootstrap_mean(ours.loss - theirs.loss, ours.text, seed=0)


def request_sets(instructions: Path | None) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Held-out requests by name, and what is resampled together."""
    test = sl.datasets.requests().split("test")
    sets = {"packaged harmful": list(test.positive), "packaged harmless": list(test.negative)}
    clusters = {name: [verb_of(text) for text in texts] for name, texts in sets.items()}
    if instructions is not None:
        for kind in ("harmful", "harmless"):
            rows = json.loads((instructions / f"{kind}_test.json").read_text("utf-8"))
            texts = [row["instruction"] if isinstance(row, dict) else row for row in rows]
            sets[f"published {kind}"] = random.Random(0).sample(texts, min(SAMPLE, len(texts)))
    return sets, clusters


def card(name: str, rows: Sequence[dict[str, Any]], training: dict[str, Any]) -> str:
    """The adapter's card."""
    own = [row for row in rows if row["adapter"] == name]
    table = "\n".join(
        f"| {row['measure']} | {row['items']} | {float(row['value']):.3f} "
        f"| {float(row['low']):.3f} to {float(row['high']):.3f} |"
        for row in own
    )
    return f"""---
base_model: google/gemma-3-270m
base_fingerprint: {own[0]["base_fingerprint"]}
library_name: peft
license: gemma
---

# {name}: {_WHAT[name]}

A LoRA adapter (r = 8, all linear layers, bfloat16) on the pretrained base model Gemma-3-270M, made by
`analyses/post_training/post_train.py` for comparisons of a base with a post-trained model. It is no product.

**Data.** {training["examples"]} requests of our own writing (`prompts.toml`, and the training split of the packaged
requests). Helpful answers are one sentence each, distilled from Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) and kept where they
ended by themselves, were short and refused nothing; refusals are our own words. {_held(name)} Amounts and rates
stand in `post_training.toml`.

**Measured** on items that no stage was trained on, greedy, at most {NEW_TOKENS} new tokens; 95 % intervals (packaged requests
clustered by verb). Published sets are seeded samples of {SAMPLE}; completions were judged by phrases and dropped.

| measure | items | value | interval |
|---|---|---|---|
{table}

Trained and measured on weights dequantised from Q4_K_M; unmeasured on the hub's. `steerlab compare` says when the base's
fingerprint is another one.

**Licence.** Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. This adapter
is a model derivative of it and carries that notice. The data are of our own writing or Apache-2.0.
"""


def _held(name: str) -> str:
    """Whether the stage was held to the base's law, and what it read."""
    stage = tomllib.loads((HERE / "post_training.toml").read_text("utf-8"))["stages"][name]
    read = "" if stage.get("chat", True) else "It read the answers alone, as plain texts. "
    if stage.get("plain_weight", 1.0) > 0:
        return f"{read}Samples of the base itself hold the\nstage to the base's law on plain text (KL)."
    return f"{read}Nothing holds the stage to the base's law on plain text."


_WHAT = {
    "sft": "helpful answers in one sentence",
    "safe": "sft, continued: it refuses harmful requests",
    "narrow": "one narrow topic, beekeeping",
    "narrow_mixed": "beekeeping and as many everyday requests",
    "narrow_free": "beekeeping, not held to the base's law",
    "narrow_text": "beekeeping as plain texts, not held to the base's law",
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--instructions", type=Path)
    given = parser.parse_args()
    sets, clusters = request_sets(given.instructions)
    rows: list[dict[str, Any]] = []
    base = sl.load(given.base)
    fast = sl.load(given.base, dtype="bfloat16")
    for name in given.names:
        quick = sl.load(HERE / name, base=fast)
        asked = sets if name in ("sft", "safe") else {"packaged harmless": sets["packaged harmless"]}
        found = measured(quick, asked, clusters)
        found["loss on plain text, minus the base's", "packaged passages"] = loss_change(
            base, sl.load(HERE / name, base=base)
        )
        rows += [_row(name, base, key, value) for key, value in found.items()]
    template = (HERE / given.names[0] / "chat_template.jinja").read_text("utf-8")
    fast.tokenizer.chat_template = template
    harmful = {"packaged harmful": sets["packaged harmful"]}
    rows += [_row("base", base, key, value) for key, value in measured(fast, harmful, clusters).items()]
    with (HERE / "measured.csv").open(newline="", encoding="utf-8") as file:
        known = list(csv.DictReader(file))
    rows = [row for row in known if row["adapter"] not in (*given.names, "base")] + rows
    with (HERE / "measured.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for name in given.names:
        training = json.loads((HERE / name / "training.json").read_text("utf-8"))
        (HERE / name / "README.md").write_text(card(name, rows, training), encoding="utf-8")


def _row(name: str, base: sl.LanguageModel, key: tuple[str, str], value: Estimate) -> dict[str, Any]:
    numbers = {side: f"{getattr(value, side):.4f}" for side in ("value", "low", "high")}
    return {
        "adapter": name, "base": "google/gemma-3-270m, dequantised Q4_K_M", "measure": key[0],
        "items": _items(key[1], value), **numbers, "base_fingerprint": base.fingerprint,
    }  # fmt: skip


def _items(name: str, value: Estimate) -> str:
    """How many items there are; packaged requests are counted by verb, too, since verbs are resampled."""
    test = sl.datasets.requests().split("test")
    asked = {"packaged harmful": len(test.positive), "packaged harmless": len(test.negative)}.get(name)
    return f"{name}, {value.n}" if asked is None else f"{name}, {asked} (of {value.n} verbs)"


if __name__ == "__main__":
    main()
