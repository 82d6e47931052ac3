"""Ship a steered model as a transformers folder that any engine loads, with the interventions in its weights.

The folder holds weights, configuration, tokenizer, generation settings, a model card and `steering.json` (what was
baked, by hash). It appears whole or not at all.

A bias that a family's configuration has no flag for is lost when the checkpoint is built again, so such a folder is not
written. Qwen2 and Mistral are exceptions worth having: without sliding windows they compute what Llama computes, whose
configuration has the flags, so their folder is a Llama's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from steerlab.environment import library_versions
from steerlab.errors import SteeringError
from steerlab.files import system_reason
from steerlab.models import Edit, LanguageModel
from steerlab.models.backends.native import Transformers
from steerlab.progress import transformers_bars
from steerlab.steering import _biases
from steerlab.steering._proof import logits, prove
from steerlab.steering.bake import bake
from steerlab.steering.registry import EXPORTS

_LLAMA_TWINS = ("qwen2", "mistral")
_SHARED_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
)  # fmt: skip


@EXPORTS.register("transformers")
def export_transformers(
    model: LanguageModel, interventions: Sequence[Edit], folder: str | Path, *, in_place: bool = False
) -> Path:
    """Bake interventions and write the model as a transformers folder.

    Args:
        model: the model the interventions belong to.
        interventions: what :func:`bake` takes.
        folder: where it goes; must not exist, or be empty.
        in_place: change `model` itself rather than a copy (half the memory).

    Returns:
        The folder.

    Raises:
        SteeringError: an intervention cannot be baked, a bias would be lost on loading, or nothing can be written.

    Example:
        >>> export_transformers(model, [Ablate(refusal)], "llama-without-refusal")  # doctest: +SKIP
    """
    target = Path(folder)
    with new_folder(target) as partial:
        record = _record(model, interventions)
        was_tied = _is_tied(model)
        baked = _loadable(bake(model, *interventions, in_place=in_place))
        untied = was_tied and not _is_tied(baked)
        with transformers_bars():
            baked.model.save_pretrained(partial)
        baked.tokenizer.save_pretrained(partial)
        (partial / "steering.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        (partial / "README.md").write_text(_card(record, baked, untied=untied), encoding="utf-8")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the context ends well, and is removed when it does not.

    Raises:
        SteeringError: `target` holds something, or nothing can be written there.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SteeringError(f"{target} exists already; choose a folder that does not, or empty it.")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as around:
            partial = (
                Path(around) / "folder"
            )  # with a folder's usual permissions, which the one around has not
            partial.mkdir()
            yield partial
            os.replace(partial, target)
    except OSError as error:
        raise SteeringError(
            f"{target} cannot be written: {system_reason(error)}; choose another place or free space."
        ) from error


def _record(model: LanguageModel, interventions: Sequence[Edit]) -> dict[str, Any]:
    return {
        "format": "steerlab.baked",
        "version": 1,
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "interventions": [getattr(edit, "to_dict", dict)() for edit in interventions],
        "libraries": library_versions(),
    }


def _loadable(baked: LanguageModel) -> LanguageModel:
    """The model as something its own configuration builds again, with every bias in place."""
    expected = _biases.parameter_names(baked.model)
    lost = sorted({name for name, _ in baked.model.named_parameters()} - expected)
    if not lost:
        return baked
    config = baked.model.config
    windows = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if config.model_type in _LLAMA_TWINS and windows is None:
        return _as_llama(baked)
    raise SteeringError(
        f"The configuration of a {baked.architecture} cannot switch on {lost[0]}, so what was baked there would be "
        "lost on loading; use the baked model in memory, intervene at another site, or export a control vector (gguf)."
    )


def _is_tied(model: LanguageModel) -> bool:
    tied: bool = model.anatomy.head.weight is model.anatomy.embed.weight
    return tied


def _as_llama(baked: LanguageModel) -> LanguageModel:
    """The same computation under Llama's name, every projection with a bias (of zeros where it had none)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    module: Any = baked.model
    before = logits(baked, ())
    build: Any = LlamaConfig
    settings = {key: getattr(module.config, key) for key in _SHARED_SETTINGS if hasattr(module.config, key)}
    config = build(**settings, attention_bias=True, mlp_bias=True)
    with torch.device("meta"):
        twin: Any = LlamaForCausalLM(config)
    weights = module.state_dict()
    for name, empty in twin.state_dict().items():
        if name not in weights and name.endswith(".bias"):
            weights[name] = torch.zeros(empty.shape, dtype=baked.dtype, device=baked.device)
    twin.load_state_dict(weights, strict=True, assign=True)
    twin.model.rotary_emb = module.model.rotary_emb  # its buffers are computed, not stored
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    twin.generation_config = module.generation_config
    config.architectures = [type(twin).__name__]
    if config.tie_word_embeddings:
        twin.lm_head.weight = twin.model.embed_tokens.weight
    renamed = LanguageModel(Transformers(twin.eval()), baked.tokenizer, name=baked.name)
    prove(renamed, before, what="Llama form")
    return renamed


def _card(record: dict[str, Any], baked: LanguageModel, *, untied: bool) -> str:
    lines = [
        "---",
        "library_name: transformers",
        "tags: [steerlab, steering]",
        "---",
        "",
        f"# {record['model']['name']}, steered",
        "",
        f"The weights of {record['model']['name']} (fingerprint `{record['model']['fingerprint']}`) with interventions "
        f"baked in by steerlab {record['libraries']['steerlab']}; no code is needed to run them. Fingerprint of this "
        f"checkpoint: `{baked.fingerprint}`.",
        "",
        "| intervention | direction | sites | strength |",
        "| --- | --- | --- | --- |",
    ]
    for edit in record["interventions"]:
        strength = f"{edit['strength']} {edit.get('unit', '')}".strip() if "strength" in edit else ""
        sites = ", ".join(edit.get("sites") or ["every write to the residual stream"])
        lines.append(f"| {edit['edit']} | `{edit['direction']}` | {sites} | {strength} |")
    lines += ["", "`steering.json` holds the same as data."]
    if untied:
        lines += [
            "",
            "The unembedding got weights of its own (`tie_word_embeddings: false`); an engine that ties it to the "
            "embedding whatever the configuration says computes other logits.",
        ]
    return "\n".join(lines) + "\n"
