"""Check that two models compute the same: logits on a few tokens agree within rounding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models import Edit, LanguageModel
from steerlab.models.modes import evaluating

_TOKENS = 16


def logits(model: LanguageModel, interventions: Sequence[Edit]) -> Float[Tensor, "position vocab"]:
    """Logits on tokens spread over the vocabulary, under the interventions, float64 on the CPU."""
    length = min(_TOKENS, model.context or _TOKENS)
    tokens = torch.arange(1, length + 1) * 7919 % model.vocab_size
    context = model.steering(*interventions) if interventions else nullcontext()
    with model.lock, torch.inference_mode(), evaluating(model.model), context:
        output: Tensor = model.model(input_ids=tokens[None].to(model.device), use_cache=False).logits
    return output[0, :, : model.vocab_size].double().cpu()


def prove(
    model: LanguageModel,
    expected: Float[Tensor, "position vocab"],
    *,
    what: str,
    dtype: torch.dtype | None = None,
) -> float:
    """How far the model's logits are from those expected, in units of their size.

    The median over tokens counts, as rounding may send one of them to another expert.

    Args:
        dtype: what its weights were rounded to; by default the model's own.

    Raises:
        SteeringError: further than rounding explains.
    """
    error = float(((logits(model, ()) - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
    allowed = max(1e-4, 16 * torch.finfo(dtype or model.dtype).eps)
    if not error <= allowed:
        raise SteeringError(
            f"The {what} of {model.name} does not compute what the hooks do (logits off by {error:.2g} of their size, "
            f"{allowed:.2g} allowed): this family writes to its stream in a way not known here; steer with hooks, and "
            "load the model again if it was changed in place."
        )
    return error
