"""What chance makes of a difference: signs flipped over texts, random vectors, random LoRA of equal norm.

    signs flipped      d_i ↦ s_i d_i, s_i = ±1: what texts have in common is gone on average
    random vector      the mean is replaced by a random one of the same length, what texts differ by stays
    random LoRA        every linear map of base gets a random low-rank change with the Frobenius norm of post's own;
                       it is read on the same texts

How much texts have in common, without the bias of a length:

    shared = mean over i of ⟨d_i, m_−i⟩ / ‖m_−i‖ / mean ‖x‖       m_−i: mean difference of the other texts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.models import LanguageModel, Site, Tokens
from steerlab.studies._difference.reading import Reads, Where, states_of

RANK = 8
_TINY = 1e-30


def shared_by_text(
    rows: Float[Tensor, "text width"], norm: float, signs: Float[np.ndarray, "draw text"] | None = None
) -> Float[np.ndarray, "draw text"]:
    """⟨d_i, m_−i⟩ / ‖m_−i‖ / norm of each text, for each row of signs (by default one of ones)."""
    products = (rows.double() @ rows.double().T).numpy()
    s = np.ones((1, len(rows))) if signs is None else signs
    own = np.diag(products)
    along = s * (s @ products)  # ⟨s_i d_i, Σ_j s_j d_j⟩
    total = np.einsum("di,ij,dj->d", s, products, s)[:, None]
    others = np.sqrt(np.clip(total - 2 * along + own, 0, None))
    found: Float[np.ndarray, "draw text"] = np.where(
        others > _TINY, (along - own) / np.where(others > _TINY, others, 1), 0.0
    )
    return found / max(norm, _TINY)


def flips(count: int, draws: int, seed: int) -> Float[np.ndarray, "draw text"]:
    """Random signs of texts."""
    return np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(draws, count))


def with_random_mean(
    rows: Float[Tensor, "layer text width"], seed: int, draw: int
) -> Float[Tensor, "layer text width"]:
    """The differences about a random mean of the same length at each layer."""
    mean = rows.mean(dim=1, keepdim=True)
    vector = torch.from_numpy(np.random.default_rng([seed, 2, draw]).standard_normal(mean.shape)).float()
    unit: Tensor = torch.nn.functional.normalize(vector, dim=2)
    moved: Tensor = rows - mean + unit * mean.norm(dim=2, keepdim=True)
    return moved


def changed_maps(base: LanguageModel, post: LanguageModel) -> dict[str, float]:
    """By name of base's linear maps whose weights differ the Frobenius norm of the difference."""
    theirs = dict(post.model.named_modules())
    found = {}
    for name, module in base.model.named_modules():
        weight, other = _weight(module), _weight(theirs.get(name))
        if weight is None or other is None or other.shape != weight.shape or weight.is_meta or other.is_meta:
            continue
        norm = float((other.detach().float().cpu() - weight.detach().float().cpu()).norm())
        if norm > 0:
            found[name] = norm
    return found


@contextmanager
def random_lora(model: LanguageModel, norms: Mapping[str, float], seed: int) -> Iterator[None]:
    """Inside, each of these linear maps computes W x + B A x with ‖B A‖ as given; the weights stay as they are."""
    modules = dict(model.model.named_modules())
    handles = []
    try:
        for name, (first, second) in random_factors(model, norms, seed):
            handles.append(modules[name].register_forward_hook(_adding(first, second, modules[name].weight)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_factors(
    model: LanguageModel, norms: Mapping[str, float], seed: int
) -> Iterator[tuple[str, tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]]]:
    """By name A and B of a random change of each of these linear maps, ‖B A‖ as given."""
    modules = dict(model.model.named_modules())
    for number, (name, norm) in enumerate(norms.items()):
        shape = modules[name].weight.shape
        outputs, inputs = shape if isinstance(modules[name], nn.Linear) else shape[::-1]
        draw = torch.Generator().manual_seed(1_000_003 * seed + number)
        first = torch.randn(min(RANK, inputs, outputs), inputs, generator=draw)
        second = torch.randn(outputs, len(first), generator=draw)
        # ‖B A‖² = tr((BᵀB)(A Aᵀ)), without the product
        length = ((second.T @ second) * (first @ first.T)).sum().sqrt()
        yield name, (first * (norm / length), second)


def with_lora(base: LanguageModel, norms: Mapping[str, float], seed: int) -> Reads:
    """How base reads states with a random LoRA."""

    def read(batch: Tokens, at: Where, sites: Sequence[Site]) -> dict[Site, Tensor]:
        with random_lora(base, norms, seed):
            return states_of(base, batch, at, sites)

    return read


# -- private, in the order they are called --


def _weight(module: Any) -> Tensor | None:
    """The weight of a linear map (Linear, or GPT-2's Conv1D, which is its transpose)."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        weight = module.weight
        return weight if weight.ndim == 2 and weight.is_floating_point() else None
    return None


def _adding(first: Tensor, second: Tensor, weight: Any) -> Any:
    a, b = (part.to(weight.device, weight.dtype) for part in (first, second))

    def hook(_module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return found + (given[0] @ a.T) @ b.T

    return hook
