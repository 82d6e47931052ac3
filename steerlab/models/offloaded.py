"""Weights that accelerate keeps on another device or on the disk until their layer runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def is_away(module: nn.Module) -> bool:
    """Whether a module's own weights are elsewhere until it runs."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(tensor.is_meta for tensor in own) and hasattr(module, "_hf_hook")


@contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """The module's own weights can be read inside the context, wherever they are kept."""
    if not is_away(module):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module, torch.device("cpu")):
        yield


def own_state(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight and buffer once, by its name from the root; each is at hand until the next is asked for."""
    wanted = {name for named in (network.named_parameters, network.named_buffers) for name, _ in named()}
    for path, module in network.named_modules():
        with at_hand(module):
            for name in (*module._parameters, *module._buffers):
                full = f"{path}.{name}" if path else name
                if full in wanted:
                    yield full, getattr(module, name)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: the device its weights are on, or are brought to."""
    device = next(module.parameters()).device
    if device.type == "meta" and hasattr(module, "_hf_hook"):
        brought = getattr(module._hf_hook, "execution_device", None)
        return torch.device("cpu" if brought is None else brought)
    return device
