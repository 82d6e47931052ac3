"""The model card of a baked folder: what was done, how exactly, and how it is undone.

Add      b ← b + δ is undone by the same addition with the opposite sign
Ablate   W ← W − α Q Qᵀ W is undone by W + α/(1 − α) Q Qᵀ W; at α = 1 the base alone has what the weights wrote
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def card(
    record: Mapping[str, Any],
    fingerprint: str,
    *,
    untied: bool,
    licences: Sequence[str],
    said: Mapping[str, Any],
) -> str:
    """The text of a README.md.

    Args:
        record: what `steering.json` holds.
        fingerprint: of the baked checkpoint.
        untied: whether the unembedding got weights of its own.
        licences: files of the checkpoint's licence that lie beside.
        said: what the checkpoint's own card says of licence and language.
    """
    name, rounding = record["model"]["name"], record["rounding"]
    lines = [
        *_head(name, said),
        f"# {name}, steered",
        "",
        f"The weights of {name} (fingerprint `{record['model']['fingerprint']}`) with interventions baked in by "
        f"steerlab {record['libraries']['steerlab']}; no code is needed to run them. Fingerprint of this checkpoint: "
        f"`{fingerprint}`.",
        "",
        "| intervention | direction | sites | strength |",
        "| --- | --- | --- | --- |",
        *map(_row, record["interventions"]),
        "",
        "`steering.json` holds the same as data.",
        "",
        "## How exactly",
        "",
        f"The change was computed in float32 or wider and rounded once, to the checkpoint's {rounding['dtype']}. On "
        f"{rounding['tokens']} tokens the logits are off the steered model's by {rounding['logits']:.2g} of their size "
        "(median); the unchanged tensors are the checkpoint's, bit for bit.",
    ]
    if untied:
        lines += [
            "",
            "The unembedding got weights of its own (`tie_word_embeddings: false`); an engine that ties it to the "
            "embedding whatever the configuration says computes other logits.",
        ]
    lines += ["", "## How it is undone", "", *dict.fromkeys(map(_undoing, record["interventions"]))]
    lines += [
        "",
        "`steerlab audit BASE THIS_FOLDER` reads the change from the weights alone and says how it is undone "
        "(docs/methods/audit.md of steerlab).",
    ]
    if licences:
        lines += ["", f"The checkpoint's licence goes with the weights: {', '.join(licences)}."]
    return "\n".join(lines) + "\n"


def _head(name: str, said: Mapping[str, Any]) -> list[str]:
    is_on_hub = name.count("/") == 1 and not name.startswith(("/", ".", "~"))
    base = [f"base_model: {name}"] if is_on_hub else []
    kept = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in said.items()]
    return ["---", "library_name: transformers", "tags: [steerlab, steering]", *base, *kept, "---", ""]


def _row(edit: Mapping[str, Any]) -> str:
    strength = f"{edit['strength']} {edit.get('unit', '')}".strip() if "strength" in edit else ""
    sites = ", ".join(edit.get("sites") or ["every write to the residual stream"])
    return f"| {edit['edit']} | `{edit['direction']}` | {sites} | {strength} |"


def _undoing(edit: Mapping[str, Any]) -> str:
    if edit["edit"] == "add":
        return (
            "- The addition is undone up to rounding by the opposite one: with its direction's file, "
            f"`sl.bake(model, sl.Add(direction.moved_to(model), {_opposite(edit['strength'])}, "
            f"unit={edit['unit']!r}, sites={edit['sites']}))`."
        )
    strength = edit.get("strength", 1)
    if strength == 1:
        return (
            "- The ablation is not undone from these weights alone: what they wrote along the direction is gone, and "
            "the checkpoint it was made of has it."
        )
    factor = strength / (1 - strength) if isinstance(strength, int | float) else "α/(1 − α)"
    shown = f"{factor:.3g}" if isinstance(factor, float) else factor
    return f"- The ablation is undone by W + {shown} q qᵀW where it acted, up to rounding and to what keeps lengths."


def _opposite(strength: Any) -> Any:
    if isinstance(strength, Mapping):
        return {layer: -number for layer, number in strength.items()}
    return -strength
