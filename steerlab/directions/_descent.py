"""Full-batch AdamW, for probes that are published as a fixed number of its steps and not as an optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def adamw(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Move `parameters` in place by `steps` steps of torch's AdamW down the gradient of `loss()`."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
