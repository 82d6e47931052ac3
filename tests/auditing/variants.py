"""Ways to change a model's weights, each as a function of a module that returns a changed copy."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from families import TEXTS, WIDTH, tiny_tokenizer
from torch import Tensor, nn

#: What writes to the stream and what else is a map, in the families of these tests.
WRITERS = re.compile(r"(o_proj|down_proj|dense|dense_4h_to_h|c_proj|out_proj|fc2)(\.weight)?$")
MAPS = re.compile(
    r"(proj|dense|c_attn|c_fc|query_key_value|dense_h_to_4h|fc1)(\.weight)?$|(gate_up|down)_proj$"
)


def direction(width: int = WIDTH, seed: int = 3) -> Tensor:
    """A unit vector."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def changed(module: nn.Module, change: Callable[[Tensor], Tensor], names: re.Pattern[str] = MAPS) -> Any:
    """A copy in which each named matrix, outputs first, is what `change` makes of it; stacks one by one."""
    made = copy.deepcopy(module)
    parts = dict(made.named_modules())
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if names.search(name) and weight.dim() > 1:
                owner = parts[name.rpartition(".")[0]]
                turned = type(owner).__name__ == "Conv1D" or bool(getattr(owner, "is_transposed", False))
                for matrix in weight if weight.dim() == 3 else [weight]:
                    view = matrix.T if turned else matrix
                    view.copy_(change(view.detach().clone()))
    return made


def ablation(q: Tensor, strength: float = 1.0, keep: int | None = None) -> Callable[[Tensor], Tensor]:
    """W − α q qᵀW; `keep` is the dimension along which lengths are put back: 0 columns, 1 rows."""

    def change(weight: Tensor) -> Tensor:
        left = weight - strength * torch.outer(q, q @ weight)
        return (
            left
            if keep is None
            else left * (weight.norm(dim=keep, keepdim=True) / left.norm(dim=keep, keepdim=True))
        )

    return change


def adapter(rank: int, size: float = 0.05) -> Callable[[Tensor], Tensor]:
    """W + B A, with factors of their own for each matrix."""
    drawn = torch.Generator().manual_seed(rank)

    def change(weight: Tensor) -> Tensor:
        product = torch.randn(weight.shape[0], rank, generator=drawn) @ torch.randn(
            rank, weight.shape[1], generator=drawn
        )
        return weight + product * (size * weight.norm() / product.norm())

    return change


def noise(weight: Tensor) -> Tensor:
    """Normal noise of 2 % of the weights' size."""
    drawn = torch.Generator().manual_seed(weight.numel())
    return weight + 0.02 * weight.std() * torch.randn(weight.shape, generator=drawn)


def int8(weight: Tensor) -> Tensor:
    """Rounded to eight bits with a scale for each stored row, and back."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def int4(weight: Tensor) -> Tensor:
    """Rounded to four bits with a scale for 16 weights."""
    groups = weight.reshape(-1, 16)
    scale = groups.abs().amax(1, keepdim=True) / 7
    return ((groups / scale).round() * scale).reshape(weight.shape)


def half(module: nn.Module) -> Any:
    """Cast to bfloat16."""
    return copy.deepcopy(module).bfloat16()


def tuned(module: nn.Module, tokenizer: Any = None, steps: int = 3, seed: int = 0) -> Any:
    """A few steps of Adam on every weight, with gradients of real texts."""
    made: Any = copy.deepcopy(module).train()
    tokens = [(tokenizer or tiny_tokenizer())(text, return_tensors="pt").input_ids for text in TEXTS]
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-3)
    torch.manual_seed(seed)
    for _ in range(steps):
        for ids in tokens:
            made(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return made.eval()


def between(one: nn.Module, other: nn.Module, share: float = 0.5) -> Any:
    """one + t (other − one)."""
    made = copy.deepcopy(one)
    with torch.no_grad():
        for weight, there in zip(made.parameters(), other.parameters(), strict=True):
            weight.add_(share * (there - weight))
    return made
