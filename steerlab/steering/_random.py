"""Random directions in the place of a direction: the control of whatever is done with it."""

from __future__ import annotations

from dataclasses import replace

import torch

from steerlab.directions import Direction


def random_direction(direction: Direction, seed: int) -> Direction:
    """The same direction with random vectors, each as long as its own; what it knows of its classes stays.

    So a class gap is as long as before, and a random vector is added as far as the own one.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for site, rows in direction.vectors.items():
        random = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        random *= rows.double().norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
        drawn[site] = random.to(rows.dtype)
    return replace(direction, vectors=drawn, parameters={"random_like": direction.hash, "seed": seed})
