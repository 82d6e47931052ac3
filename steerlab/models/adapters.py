"""Where each part of a model lives, asked from TransformerLens' architecture adapters.

The adapters know the module names of some 160 architectures. Nothing of the model is wrapped: an
adapter is built from the configuration alone, its component mapping is read, and plain names come out.

This is the only module that touches transformer_lens, and it imports it when a model is loaded, not
before (about 2.5 s on top of torch and transformers). pyproject.toml pins transformer-lens to 4.3.x:
`build_bridge_config_from_hf` and `determine_architecture_from_hf_config` are not public there, and the
component mapping's keys (`ln1_post`, `dense_out`, ...) are the library's inner language.
"""

from __future__ import annotations

import logging
import warnings
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from steerlab.errors import ModelError
from steerlab.progress import quiet

#: The adapters' names of what mixes tokens in attention's place.
_MIXERS = ("linear_attn", "conv", "mixer", "mamba")
#: Text parts of multimodal models that have no name among the adapters, and the family whose blocks they are made of:
#: they differ in rotary positions alone.
_SAME_BLOCKS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}


@dataclass(frozen=True)
class Names:
    """Module names of a decoder; those of a block's parts are counted from the block, all others from the root.

    `None` (or an empty tuple) where the family has no such module. `mlp_down` lists alternatives because some
    families mix dense and expert layers; `mixers` are what stands in attention's place, or beside it: linear
    attention, convolutions, state spaces.
    """

    embed: str
    blocks: str
    ln_final: str | None
    attention: str | None
    attention_output: str | None
    attention_post_norm: str | None
    mixers: tuple[str, ...]
    mlp: str | None
    mlp_norm: str | None
    mlp_down: tuple[str, ...]
    mlp_post_norm: str | None
    parallel: bool
    positions: str | None
    embed_norm: str | None
    routed: bool


def architecture_of(config: Any) -> str:
    """The architecture whose adapter fits a transformers configuration: of a multimodal model, that of its text part.

    Raises:
        ModelError: no adapter knows this family.
    """
    return _described(config)[0]


def is_multimodal(config: Any) -> bool:
    """Whether a configuration holds that of a text part beside others: of images, of sound."""
    return config.get_text_config() is not config


def auto_class(config: Any) -> Any:
    """transformers' class that makes a model of a configuration: a multimodal one where there is none of text alone."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    kinds = (AutoModelForCausalLM, AutoModelForMultimodalLM)
    return next((kind for kind in kinds if type(config) in kind._model_mapping), AutoModelForCausalLM)


def locate(model: Any, config: Any) -> Names:
    """Names of the parts of `model`; of a multimodal one, those that text runs through.

    Raises:
        ModelError: the family is unknown, or its adapter does not describe a stack of decoder blocks.
    """
    architecture, described = _described(config)
    names = _names(model, _component_mapping(model, architecture, described))
    return names if described is config else _moved(names, model)


def _described(config: Any) -> tuple[str, Any]:
    """The architecture of a configuration or of its text part, and which of the two it is of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if not config.architectures and config.model_type in CAUSAL:  # a GGUF file names the type alone
        config.architectures = [CAUSAL[config.model_type]]
    for described in (_text_part(config), config):
        architecture = None if described is None else _known(described)
        if architecture is not None:
            return architecture, described
    family = ", ".join(config.architectures or []) or config.model_type
    raise ModelError(
        f"The family of this model ({family}) is not one the architecture adapters know; "
        "choose a checkpoint of another family."
    )


def _text_part(config: Any) -> Any:
    """The text part's configuration under the name of the family its blocks are of; None where there is no other."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if not is_multimodal(config):
        return None
    text = copy(config.get_text_config())
    family = _SAME_BLOCKS.get(text.model_type, text.model_type)
    if family not in CAUSAL:
        return None
    text.architectures = [CAUSAL[family]]
    return text


def _known(config: Any) -> str | None:
    with quiet():  # its imports tell of every kernel that was built for another machine
        from transformer_lens.model_bridge.sources import _hf_format

    translate: Any = _hf_format
    try:
        return str(translate.determine_architecture_from_hf_config(config))
    except ValueError:
        return None


def _moved(names: Names, model: Any) -> Names:
    """Names in a text model by itself (`model.layers`), where they are in the multimodal model around it."""
    decoder = model.get_decoder()
    root = next(path for path, module in model.named_modules() if module is decoder)
    above = {
        name: getattr(names, name) for name in ("embed", "blocks", "ln_final", "positions", "embed_norm")
    }
    moved: dict[str, Any] = {
        name: None if path is None else f"{root}.{path.partition('.')[2]}" for name, path in above.items()
    }
    return replace(names, **moved)


def _names(model: nn.Module, mapping: dict[str, Any]) -> Names:
    if "embed" not in mapping or "blocks" not in mapping:
        raise ModelError(
            f"A {type(model).__name__} has no single stack of decoder blocks, so its states have no layers to be "
            "read at; choose a decoder-only model."
        )
    blocks = mapping["blocks"]
    inside = blocks.submodules
    attention, mlp = inside.get("attn"), inside.get("mlp", inside.get("shared_mlp"))
    mixers = tuple(str(inside[key].name) for key in _MIXERS if key in inside)
    if attention is None and not mixers:
        raise ModelError(
            f"The blocks of a {type(model).__name__} have neither attention nor another mixer that is known, so they "
            "are not read by this toolkit; choose another family."
        )
    downs = [_inner(mlp, key) for key in ("out", "dense_out")]
    kinds = {type(part).__name__ for part in (blocks, mlp)}
    return Names(
        embed=mapping["embed"].name,
        blocks=blocks.name,
        ln_final=_name(mapping.get("ln_final")),
        attention=_name(attention),
        attention_output=_inner(attention, "o"),
        attention_post_norm=_name(inside.get("ln1_post")),
        mixers=mixers,
        mlp=_name(mlp),
        mlp_norm=_name(inside.get("ln2")),
        mlp_down=tuple(name for name in downs if name is not None),
        mlp_post_norm=_name(inside.get("ln2_post")),
        parallel="ParallelBlockBridge" in kinds,
        positions=_name(mapping.get("pos_embed")),
        embed_norm=_name(mapping.get("embed_ln")),
        routed="MoEBridge" in kinds,
    )


def _component_mapping(model: nn.Module, architecture: str, config: Any) -> dict[str, Any]:
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    dtype = next(model.parameters()).dtype
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bridge_config = build_bridge_config_from_hf(config, architecture, type(model).__name__, dtype)
            adapter = ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)
            mapping: dict[str, Any] = adapter.component_mapping or {}
    except Exception as error:
        raise ModelError(
            f"The architecture adapter for {architecture} cannot describe this checkpoint ({error}); "
            "check that its configuration is complete."
        ) from error
    finally:
        logging.disable(previous)
    return mapping


def _name(component: Any) -> str | None:
    return component.name if component is not None else None


def _inner(component: Any, key: str) -> str | None:
    """Name of a submodule of a block's component, from the block; containers without a name are transparent."""
    inner = (getattr(component, "submodules", None) or {}).get(key)
    if inner is None:
        return None
    return str(inner.name) if component.name is None else f"{component.name}.{inner.name}"
