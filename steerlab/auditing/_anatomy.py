"""What a family's tables say of stored weights, read off a skeleton that holds none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steerlab.auditing._weights import Weights, bare, matrices_of
from steerlab.errors import SteerlabError
from steerlab.models.adapters import auto_class
from steerlab.models.anatomy import Anatomy
from steerlab.models.weights import digest, named_state
from steerlab.progress import quiet

_SAMPLED = 16  # values of a weight that a fingerprint holds; see `models.weights`


def skeleton_of(config: Any) -> nn.Module | None:
    """The model of a configuration, without weights; None where none can be made."""
    if config is None:
        return None
    try:
        with torch.device("meta"), quiet():
            skeleton: nn.Module = auto_class(config).from_config(config)
    except (ValueError, KeyError, ImportError, AttributeError):
        return None
    return skeleton


def roles_of(skeleton: nn.Module | None) -> dict[str, str]:
    """What a tensor's module does, by bare name: "attention output.3", "MLP output.3", "embedding", "unembedding".

    Empty for a family that the adapters do not know.
    """
    if skeleton is None:
        return {}
    try:
        anatomy = Anatomy(skeleton)
    except (SteerlabError, AttributeError):
        return {}
    names = anatomy.names
    path_of = {id(module): path for path, module in skeleton.named_modules()}
    roles = {path_of.get(id(anatomy.head), ""): "unembedding", names.embed: "embedding"}
    if names.positions is not None:
        roles[names.positions] = "positions"
    for layer in range(len(anatomy.blocks)):
        block = f"{names.blocks}.{layer}"
        if names.attention_output is not None:
            roles[f"{block}.{names.attention_output}"] = f"attention output.{layer}"
        roles |= {f"{block}.{down}": f"MLP output.{layer}" for down in names.mlp_down}
    return {bare(path): role for path, role in roles.items()}


def fingerprint_of(weights: Weights, skeleton: nn.Module | None) -> str:
    """The fingerprint that the loaded model has, from 16 values of each stored weight.

    "" where a weight or a buffer is not in the files: then only the loaded model knows.
    """
    if skeleton is None:
        return ""
    samples = {}
    for name, parameter in named_state(skeleton):
        if weights.shapes.get(bare(name)) != tuple(parameter.shape):
            return ""
        samples[name] = (tuple(parameter.shape), _sample(weights, bare(name)))
    return digest(weights.config, samples.items())


def _sample(weights: Weights, name: str) -> Tensor:
    """16 evenly spaced values, as `models.weights.fingerprint` takes them of a tensor in memory."""
    shape = weights.shapes[name]
    number = int(torch.Size(shape).numel())
    places = torch.linspace(0, number - 1, min(_SAMPLED, number), dtype=torch.float64).long().tolist()
    parts, (rows, columns) = matrices_of(shape)
    found = []
    for place in places:
        row, column = divmod(place, columns)
        part = None if parts == [None] else row // rows
        row = row if part is None else row % rows
        found.append(weights.rows(name, part, row, row + 1)[0, column])
    return torch.stack(found)
