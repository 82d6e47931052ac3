"""Adapters on top of a model's weights, as peft makes them: put in, merged, and read through."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from itertools import chain
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from steerlab.errors import ModelError, reason
from steerlab.models.offloaded import at_hand, is_away
from steerlab.models.quantised import is_packed, unpacked
from steerlab.progress import quiet


def require_package(package: str, name: str) -> None:
    """Raise `ModelError` unless what a checkpoint needs is installed."""
    if not is_installed(package):
        what = {"peft": "is an adapter", "gguf": "is a GGUF file"}[package]
        raise ModelError(
            f"{name} {what}, and {package} is not installed; run pip install 'steerlab[{package}]'."
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported; asked without importing it."""
    try:
        return find_spec(package) is not None
    except ValueError:  # imported as None
        return False


def can_share(network: nn.Module) -> bool:
    """Whether a second network can be made on a network's weights: they are plain tensors that stay where they are."""
    return not any(is_away(part) or is_packed(part) for part in network.modules())


def on_shared_weights(network: Any) -> Any:
    """A second network whose weights lie where those of the first lie; what is put in or merged is its own."""
    shared: dict[int, Any] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        is_weight = isinstance(tensor, nn.Parameter)
        shared[id(tensor)] = nn.Parameter(tensor.data, tensor.requires_grad) if is_weight else tensor.detach()
    return copy.deepcopy(network, shared)


def with_adapter(network: Any, where: str, revision: str | None, name: str) -> Any:
    """The network with the adapter in a folder or hub repository on its layers.

    Raises:
        ModelError: the adapter does not fit, or is of a kind that changes more than layers (prompts, prefixes).
    """
    try:
        with quiet():
            from peft import PeftModel

            tuned = PeftModel.from_pretrained(network, where, revision=revision)
    except Exception as error:  # peft raises many kinds; each means: no adapter of this model
        raise ModelError(
            f"The adapter {name} cannot be put on {getattr(network.config, 'name_or_path', '') or 'its base'} "
            f"({reason(error)}); name its base model with base=...."
        ) from error
    return unwrapped(tuned)


def unwrapped(given: Any) -> Any:
    """The transformers model inside peft's wrapper; any other model is itself.

    Raises:
        ModelError: the adapter lies in the input (prompt or prefix tuning) and not in the layers.
    """
    if not hasattr(given, "peft_config") or not hasattr(given, "get_base_model"):
        return given
    for settings in given.peft_config.values():
        if getattr(settings, "is_prompt_learning", False):
            raise ModelError(
                f"An adapter of kind {settings.peft_type.value} puts tokens of its own before every prompt, which is "
                "not read here; use one that changes layers (LoRA)."
            )
    return given.get_base_model()


def merged(network: Any, name: str) -> Any:
    """The network with its adapters folded into the weights, for good.

    Raises:
        ModelError: a layer whose adapter cannot be merged.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    done: list[str] = []
    for path, module in list(network.named_modules()):
        is_wrapper = isinstance(module, AuxiliaryTrainingWrapper)
        if not (is_tuned(module) or is_wrapper) or any(path.startswith(f"{outer}.") for outer in done):
            continue
        try:
            if is_wrapper:  # whole modules that were trained, or single rows of the embedding
                plain = module.unload_and_optionally_merge_module(
                    merge=True, safe_merge=True, adapter_names=None
                )
            else:
                module.merge(safe_merge=True)
                plain = module.get_base_layer()
        except Exception as error:  # quantised layers, broken factors
            raise ModelError(
                f"The adapter of {name} cannot be merged at {path} ({reason(error)}); load it with merge=False."
            ) from error
        parent, _, child = path.rpartition(".")
        setattr(network.get_submodule(parent), child, plain)
        done.append(path)
    network._hf_peft_config_loaded = False
    return network


def thawed(network: Any) -> Any:
    """The network with gradients allowed, which peft takes from the base's weights.

    On a CPU torch multiplies a slice of states by a frozen weight state by state, with a copy of the weight for each:
    an unembedding of 262,144 rows then takes 60 times as long, and gigabytes.
    """
    for weight in network.parameters():
        if weight.is_floating_point():
            weight.requires_grad_(True)
    return network


def is_tuned(module: nn.Module) -> bool:
    """Whether a module is a layer of the model with an adapter on it."""
    return callable(getattr(module, "get_base_layer", None)) and callable(getattr(module, "merge", None))


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """A layer's weight as it acts: with the active adapters on it.

    Raises:
        ModelError: an adapter whose change is no matrix that is added.
    """
    if not is_tuned(module):
        return _stored(module)
    tuned: Any = module
    weight = _stored(tuned.get_base_layer())
    if tuned.disable_adapters or tuned.merged:
        return weight
    for adapter in tuned.active_adapters:
        if not hasattr(tuned, "get_delta_weight") or adapter in getattr(tuned, "lora_variant", {}):
            raise ModelError(
                f"The adapter on a {type(module).__name__} is no matrix that is added to the weight (DoRA, IA3); load "
                "it merged."
            )
        if adapter in {**getattr(tuned, "lora_A", {adapter: None}), **getattr(tuned, "lora_embedding_A", {})}:
            weight = weight + tuned.get_delta_weight(adapter).to(weight.device)
    return weight


def _stored(module: nn.Module) -> Float[Tensor, "out in"]:
    """A layer's own weight, wherever and however it is kept."""
    with at_hand(module):
        if is_packed(module):
            return unpacked(module)
        weight: Tensor = module.weight  # type: ignore[assignment]
    return weight
