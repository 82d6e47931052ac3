"""What is done to weights between a base and a candidate: each change makes a module from one, in the base's type."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import steerlab as sl

#: Output projections of attention and MLPs, and every map of a block, by the names of Llama, Qwen2 and Gemma.
WRITERS = re.compile(r"\.(o_proj|down_proj)\.weight$")
MAPS = re.compile(r"\.[a-z]+_proj\.weight$")
Change = Callable[[Tensor], Tensor]


def changed(module: nn.Module, change: Change, names: re.Pattern[str] = MAPS) -> Any:
    """A copy in which each named matrix [out, in] is what `change` makes of it in float32."""
    made = copy.deepcopy(module)
    with torch.no_grad():
        for _, weight in _named(made, names):
            weight.copy_(change(weight.float()))
    return made


def without(q: Tensor) -> Change:
    """W − q qᵀ W: what is published for every family, whether a norm follows or not (Arditi et al. 2024)."""
    return lambda weight: weight - torch.outer(q, q @ weight)


def rows_kept(q: Tensor) -> Change:
    """Rows at length one, q removed, rows back at their length: heretic's full row normalisation, as one matrix."""

    def change(weight: Tensor) -> Tensor:
        length = weight.norm(dim=1, keepdim=True)
        left = without(q)(weight / length)
        return left * length / left.norm(dim=1, keepdim=True)

    return change


def adapter(rank: int, size: float, seed: int) -> Change:
    """W + B A of normal factors, of `size` times the weights' norm."""
    drawn = torch.Generator().manual_seed(seed)

    def change(weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        product = torch.randn(rows, rank, generator=drawn) @ torch.randn(rank, columns, generator=drawn)
        return weight + product * (size * weight.norm() / product.norm())

    return change


def noise(size: float, seed: int) -> Change:
    """Normal noise of `size` times the weights' standard deviation."""
    drawn = torch.Generator().manual_seed(seed)
    return lambda weight: weight + size * weight.std() * torch.randn(weight.shape, generator=drawn)


def int8(weight: Tensor) -> Tensor:
    """Rounded to eight bits with a scale for each row, and back."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def between(one: nn.Module, other: nn.Module, share: float) -> Any:
    """one + share (other − one), in the type of `one`."""
    made, there = copy.deepcopy(one), dict(other.named_parameters())
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(torch.lerp(weight.float(), there[name].float(), share))
    return made


def tune(model: sl.LanguageModel, texts: Sequence[str], rate: float, steps: int) -> None:
    """Some steps in place: every weight moves against its gradient's sign, as in Adam's first step.

    rate: how far, in standard deviations of the weight's matrix or vector.
    """
    module = model.model
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for _ in range(steps):
        for text in texts:
            ids = model.tokenize([text]).input_ids
            module(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    size = parameter.std() if parameter.dim() > 1 else parameter.abs().mean()
                    parameter.sub_(rate * size * parameter.grad.sign())
                parameter.grad = None
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def drawn_anew(module: nn.Module, seed: int) -> Any:
    """A model of the same shape with weights from a seed."""
    torch.manual_seed(seed)
    made: Any = type(module)(module.config)  # type: ignore[arg-type,call-arg]
    return made.to(next(module.parameters()).dtype)


def _named(module: nn.Module, names: re.Pattern[str]) -> Iterator[tuple[str, nn.Parameter]]:
    return (pair for pair in module.named_parameters() if names.search(pair[0]))
