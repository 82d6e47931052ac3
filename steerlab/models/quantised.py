"""Quantised weights: how a model is quantised, and its weights as the numbers they act as.

torchao's tensors say themselves what they stand for. Other layers (bitsandbytes, GPTQ, AWQ, float8) keep packed numbers
that only their own kernel reads, so it is asked: W = (layer(1) − layer(0))ᵀ, with 1 the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: What pip calls the packages that read a method's weights, where it is not the method's own name.
_PACKAGES = {"gptq": "gptqmodel optimum", "awq": "gptqmodel", "quanto": "optimum-quanto"}


def method_of(network: Any) -> str:
    """How a model is quantised ("torchao Int8WeightOnlyConfig", "bitsandbytes 4-bit"); "" where it is not."""
    named = method_named(getattr(network.config, "quantization_config", None))
    if named:
        return named
    kinds = {type(weight).__name__ for weight in network.parameters() if _is_torchao(weight)}
    return f"torchao {', '.join(sorted(kinds))}" if kinds else ""


def method_named(settings: Any) -> str:
    """The method and its bits in a configuration's `quantization_config`; "" where there is none."""
    if settings is None:
        return ""
    given = settings if isinstance(settings, dict) else settings.to_dict()
    method = given.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in given else "")
    kind = given.get("quant_type") or {}
    if isinstance(kind, dict):
        kind = kind.get("default", kind).get("_type", "")
    bits = given.get("bits") or (4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else None)
    words = (str(getattr(method, "value", method)), str(kind), f"{bits}-bit" if bits else "")
    return " ".join(word for word in words if word)


def packages_for(method: str) -> str:
    """What to install to read weights quantised with a method, as `method_named` names it."""
    name = method.partition(" ")[0]
    return _PACKAGES.get(name, name)


def is_packed(module: nn.Module) -> bool:
    """Whether a layer's weight is kept as something else than the numbers it acts as."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return hasattr(module, "in_features")
    return _is_torchao(weight) or not weight.is_floating_point() or weight.dtype.itemsize < 2


def unpacked(module: Any) -> Float[Tensor, "out in"]:
    """A packed layer's weight as the numbers it acts as, in the layer's own precision."""
    if isinstance(getattr(module, "weight", None), Tensor) and _is_torchao(module.weight):
        return floats(module.weight)
    own = (*module.parameters(), *module.buffers())
    precise = (part.dtype for part in own if part.is_floating_point() and part.dtype.itemsize > 1)
    basis = torch.eye(module.in_features, dtype=next(precise, torch.float32), device=own[0].device)
    with torch.no_grad():
        written: Tensor = module(basis)
        if module.bias is not None:
            written = written - module(torch.zeros_like(basis[:1]))
    return written.T


def floats(tensor: Tensor) -> Tensor:
    """A torchao tensor as the numbers it stands for; any other tensor is itself."""
    return tensor.dequantize() if _is_torchao(tensor) else tensor


def _is_torchao(tensor: Tensor) -> bool:
    return type(tensor).__module__.startswith("torchao.")
