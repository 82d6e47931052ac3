"""Ship a steered model as a transformers folder that any engine loads, with the interventions in its weights.

The folder holds weights in the checkpoint's own dtype and files, configuration, tokenizer, generation settings, licence
files, a model card and `steering.json` (what was baked, by hash). It appears whole or not at all, for every user of the
machine to read.

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
from jaxtyping import Float
from torch import Tensor

from steerlab.environment import library_versions
from steerlab.errors import SteeringError
from steerlab.files import system_reason
from steerlab.models import Edit, LanguageModel
from steerlab.models.backends.native import Transformers
from steerlab.progress import transformers_bars
from steerlab.steering import _biases
from steerlab.steering._card import card
from steerlab.steering._checkpoint import (
    StoredCheckpoint,
    arranged,
    copy_beside,
    front_matter,
    narrowed,
    readable,
    rounded,
    stored_checkpoint,
)
from steerlab.steering._proof import logits, prove
from steerlab.steering.bake import bake_with_goal
from steerlab.steering.registry import EXPORTS

_LLAMA_TWINS = ("qwen2", "mistral")
_SHARED_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id", "dtype",
)  # fmt: skip


@EXPORTS.register("transformers")
def export_transformers(
    model: LanguageModel,
    interventions: Sequence[Edit],
    folder: str | Path,
    *,
    in_place: bool = False,
    dtype: str = "auto",
) -> Path:
    """Bake interventions and write the model as a transformers folder.

    Args:
        model: the model the interventions belong to.
        interventions: what `bake` takes.
        folder: where it goes; must not exist, or be empty.
        in_place: change `model` itself rather than a copy (half the memory).
        dtype: "auto" writes each tensor in the dtype that it has in the checkpoint, its change computed in float32 and
            rounded once; another name writes the weights as they are in memory, so load the model in that dtype.

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
        stored = stored_checkpoint(model)
        kept = stored if dtype == "auto" else None
        was_tied = _is_tied(model)
        exact, expected = bake_with_goal(model, interventions, in_place=in_place)
        baked = _loadable(exact)
        untied = was_tied and not _is_tied(baked)
        record["rounding"] = _rounding(baked, expected, kept)
        with transformers_bars():
            baked.model.save_pretrained(partial)
        if kept is not None:
            arranged(partial, baked.model, kept)
            _name_dtype(partial / "config.json", narrowed(baked.dtype, kept.main))
        baked.tokenizer.save_pretrained(partial)
        licences = [] if stored is None else copy_beside(stored, partial, baked.tokenizer)
        said = {} if stored is None else front_matter(stored)
        (partial / "steering.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        text = card(record, baked.fingerprint, untied=untied, licences=licences, said=said)
        (partial / "README.md").write_text(text, encoding="utf-8")
        readable(partial)
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


def _rounding(
    baked: LanguageModel, expected: Float[Tensor, "position vocab"], stored: StoredCheckpoint | None
) -> dict[str, Any]:
    """Round the weights to what they are stored in, and say how far that moves the logits from the steered ones."""
    dtype = baked.dtype if stored is None else narrowed(baked.dtype, stored.main)
    if stored is not None:
        rounded(baked.model, stored)
        baked.__dict__.pop("fingerprint", None)
    error = prove(baked, expected, what="rounded form", dtype=dtype)
    return {"dtype": str(dtype).removeprefix("torch."), "logits": error, "tokens": len(expected)}


def _name_dtype(config: Path, dtype: torch.dtype) -> None:
    """Write the stored dtype into a configuration, and its text part's where that names one."""
    data = json.loads(config.read_text("utf-8"))
    for part in (data, *(value for value in data.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
