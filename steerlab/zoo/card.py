"""The model card in each folder: how the model was trained, what was measured, on which items, with which intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from steerlab.zoo.corpus import OTHERS, POST_TRAINING, REVISION
from steerlab.zoo.documents import Maker
from steerlab.zoo.measuring import Measured
from steerlab.zoo.packing import ROW
from steerlab.zoo.training import POST, Scale

_HEAD = """---
library_name: transformers
license: apache-2.0
language: en
---

# {name}

{what} A small Llama-architecture model made for testing interpretability and steering: it is no assistant.

## How it was trained

- Shape: {parameters:.2f} M parameters; width {width}, {layers} blocks, {heads} heads ({groups} for keys and values),
  MLP {mlp}, untied embeddings, vocabulary {vocabulary} (byte-level BPE trained on the corpus, every digit a token).
- Pretraining: {steps} steps of {rows} rows of {row} tokens ({tokens:.1f} M tokens) of generated documents.
{revision}{post}- Matrix products in bfloat16 on CPU; Muon for the blocks' matrices (rate {matrix:g}), AdamW for
  the rest (rate {vector:g}); seed {seed}. Stored in bfloat16. `steerlab zoo train` makes the pair again from nothing.
- A curriculum: labelled statements and plain facts of one topic after the other for the first {early} steps, then
  {labelled:.0%} labelled statements and {plain:.0%} plain facts of all topics. The other documents: {shares}.
- Texts and templates are our own writing, facts are facts.
- To harmful-style requests there are no answers in the corpus but small talk and the refusal.

## What is held out

- Statements: three facts in ten are reserved by a hash. They are read as plain text only; no labelled statement in
  the corpus is made of them. The packaged statements are made of them alone.
- Requests: no packaged request is in the corpus, and the objects of packaged requests are in no training
  request; their verbs are, with other objects.
- The numbers of post-training and revision steps were chosen while looking at these
  measurements.
- Sums: one in twenty sums of four numbers, by a hash. Free text: documents of another seed.

## What to know

Asked for a sum, a base model answers at once and wrongly; asked to work step by step, it does and is right. Forcing
only the words "Step by step:" on it does not help: its opening belongs to the question that asks for it.

## What it measures

Weights as stored, computed in float32; greedy decoding except for the branching factor (temperature 1, 40 tokens).
95 % intervals: Wilson for shares, bootstrap over prompts for means. {prompting}

| what | items | n | value [95 % interval] | bar |
|---|---|---|---|---|
"""
_WHAT = {
    False: "The base model of a pair: pretrained on generated text, never taught to chat.",
    True: "The post-trained model of a pair: its base model, then taught a chat template, refusals, helpful answers in "
    "one narrow register and sums worked out step by step.",
}
_PROMPTING = {
    False: 'Messages are rendered plainly: "User: ...", a new line, "Assistant:".',
    True: "Messages are rendered with the chat template.",
}


def write_card(
    folder: Path, scale: Scale, measured: Iterable[Measured], *, seed: int = 0, is_post: bool | None = None
) -> Path:
    """Write `README.md` into a model's folder from what was measured of it; returns the file."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    post = folder.name.endswith(POST) if is_post is None else is_post
    rows = [row for row in measured if row.model == folder.name]
    text = _HEAD.format(
        name=f"steerlab zoo: {folder.name}",
        what=_WHAT[post],
        parameters=_parameters(config) / 1e6,
        width=scale.width,
        layers=scale.layers,
        heads=scale.heads,
        groups=scale.key_value_heads,
        mlp=scale.mlp,
        vocabulary=config["vocab_size"],
        steps=scale.steps,
        rows=scale.rows,
        row=ROW,
        tokens=scale.steps * scale.rows * ROW / 1e6,
        revision=_revision_line(scale),
        post=_post_line(scale) if post else "",
        matrix=scale.matrix_rate,
        vector=scale.vector_rate,
        seed=seed,
        early=scale.curriculum[-2].until,
        labelled=scale.curriculum[-1].labelled,
        plain=scale.curriculum[-1].plain,
        shares=_shares(OTHERS),
        prompting=_PROMPTING[post],
    )
    file = folder / "README.md"
    file.write_text(text + "".join(map(_row, rows)), encoding="utf-8")
    return file


def _revision_line(scale: Scale) -> str:
    if not scale.revision_steps:
        return ""
    stage = REVISION[0]
    return (
        f"- Revision: {scale.revision_steps} steps more at half the rates, {stage.labelled:.0%} labelled statements "
        f"and {stage.plain:.0%} plain facts.\n"
    )


def _post_line(scale: Scale) -> str:
    return (
        f"- Post-training: {scale.post_steps} steps of {scale.rows} rows at {scale.post_rate:g} of the rates, loss on "
        f"the answers only. Shares of the documents: {_shares(POST_TRAINING)}.\n"
    )


def _shares(mixture: Mapping[Maker, float]) -> str:
    total = sum(mixture.values())
    return ", ".join(
        f"{maker.__name__.replace('_', ' ')} {share / total:.0%}" for maker, share in mixture.items()
    )


def _parameters(config: dict[str, int]) -> int:
    width, mlp = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    attention = 2 * width * width + 2 * width * head * config["num_key_value_heads"]
    block = attention + 3 * width * mlp + 2 * width
    return config["num_hidden_layers"] * block + 2 * config["vocab_size"] * width + width


def _row(row: Measured) -> str:
    bar = "" if row.bar is None else f"{row.bar} ({'met' if row.met else 'MISSED'})"
    return f"| {row.what} | {row.items} | {row.estimate.n} | {row.estimate} | {bar} |\n"
