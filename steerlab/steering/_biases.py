"""Biases that a projection does not have yet: which of them the configuration allows, and how to add them.

A saved checkpoint is rebuilt from its configuration, so a bias survives only if the configuration asks for it. Which
flag brings which bias is not written down here: the architecture is built again without weights (on the meta device)
with each flag on, and the parameters that appear are the answer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from steerlab.models import LanguageModel


def flags(model: LanguageModel) -> dict[str, str]:
    """For each bias this architecture could have and has not, the flag of the configuration that brings it."""
    config = model.anatomy.config
    present = {name for name, _ in model.model.named_parameters()}
    flags: dict[str, str] = {}
    for flag, value in vars(config).items():
        if value is False and "bias" in flag:
            for name in parameter_names(model.model, **{flag: True}):
                if name not in present and name.endswith("bias"):
                    flags.setdefault(name, flag)
    return flags


def parameter_names(module: Any, **changes: object) -> set[str]:
    """Names of the parameters a model built from `module`'s configuration, with some changes, would have."""
    config = copy.deepcopy(module.config)
    for key, value in changes.items():
        setattr(config.get_text_config(), key, value)
    with torch.device("meta"):
        empty = type(module)(config)
    return {name for name, _ in empty.named_parameters()}


def grow(model: LanguageModel, name: str) -> None:
    """Give the linear map `name` a bias of zeros, and whatever else the flag that allows it brings.

    Where no flag of the configuration allows it, the map alone gets one, in memory.
    """
    known = flags(model)
    wanted = f"{name}.bias"
    flag = known.get(wanted)
    if flag is not None:
        setattr(model.anatomy.config, flag, True)
    for bias in (bias for bias in known if known[bias] == flag) if flag is not None else (wanted,):
        owner: Any = model.model.get_submodule(bias.removesuffix(".bias"))
        zeros = torch.zeros(owner.weight.shape[0], dtype=owner.weight.dtype, device=owner.weight.device)
        owner.bias = nn.Parameter(zeros, requires_grad=False)
