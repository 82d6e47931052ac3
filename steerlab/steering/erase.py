"""Erase what linearly tells a label: x ← x − s (x − μ) Aᵀ (D Aᵀ)⁺ D, the affine map of least-squares concept erasure.

A are a direction's vectors, D the differences of its class means and μ the mean of all states, all of them in its file.
With vectors of `Leace` that is LEACE (Belrose et al. 2023): afterwards the label has no covariance with the states that
it was fitted on, and the change is the smallest that does so. With a difference in means it is the projection along it
about μ. Ablation toward the mean removes A's span at right angles; here what A reads is taken out along D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Site
from steerlab.models.operators import Operator
from steerlab.steering._amounts import Strength, require_finite, strength_at
from steerlab.steering._intervention import Intervention
from steerlab.steering._sentence import amount
from steerlab.steering.registry import register_intervention

_TINY = 1e-6


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Erase(Intervention):
    """Take out of the states what linearly tells a label.

    Args:
        direction: of ``fit_direction(states, labels, "leace")`` or ``directions.erasing(states, labels)``; any that
            knows the mean states of its classes is taken, k vectors for k + 1 classes.
        strength: the share of the change, or by layer ``{8: 0.5, 9: 1.0}``, which then says the layers too.

    Where, on which tokens and when: see `Intervention`. Each site is erased as it was when its states were read; an
    erasure at an earlier layer changes them, so fit later ones with it in force.

    Raises:
        DirectionError: the direction has no vector, or no mean states, at a site.
        SteeringError: another number of classes than vectors, or vectors that do not read their differences.
    """

    kind: ClassVar[str] = "erase"

    direction: Direction
    strength: Strength = 1.0

    def random_like(self, seed: int = 0) -> Erase:
        """The control: the same erasure turned at random, about the same mean.

        Vectors and class differences keep their lengths and all angles between them, so it is as large. A random
        vector alone would be all but at right angles to the differences, and its erasure many times larger.
        """
        generator = torch.Generator().manual_seed(seed)
        vectors, means = dict(self.direction.vectors), dict(self.direction.means)
        for site, rows in self.direction.vectors.items():
            differences = self._differences(site)
            own = torch.cat([rows.double(), differences]).T
            drawn = torch.randn(*own.shape, generator=generator, dtype=torch.float64)
            turned = (torch.linalg.qr(drawn).Q @ torch.linalg.qr(own).R).T
            vectors[site] = turned[: len(rows)].to(rows.dtype)
            first, *others = (label for label in means[site] if label)
            start = means[site][first]
            ends = (start.double() + turned[len(rows) :]).to(start.dtype)
            means[site] = {**means[site], **dict(zip(others, ends, strict=True))}
        drawn_like = replace(
            self.direction,
            vectors=vectors,
            means=means,
            parameters={"random_like": self.direction.hash, "seed": seed},
        )
        return replace(self, direction=drawn_like)

    def _said(self) -> str:
        share = "" if self.strength == 1 else f"{amount(self.strength)} of "
        return f"erases {share}what {self.direction.estimator} reads of its classes"

    def _validate(self) -> None:
        for site in self.sites:
            require_finite("strength", strength_at(self.strength, site))

    def _operator(self, site: Site) -> Operator:
        source = self.direction.source(site)
        reads = self.direction.vectors[source].double()
        mean, differences = self.direction.mean(source).double(), self._differences(source)
        if len(differences) != len(reads):
            raise SteeringError(
                f"{self.direction!r} has {len(reads)} vectors at {source} for {len(differences) + 1} classes; erasing "
                "needs one less than classes. Fit it with fit_direction(..., 'leace') or directions.erasing(...)."
            )
        inner = differences @ reads.T
        sizes = differences.norm(dim=1)[:, None] * reads.norm(dim=1)
        if float((inner / sizes).abs().max()) <= _TINY:
            raise SteeringError(
                f"The vectors of {self.direction!r} at {source} are at right angles to the differences of class means "
                "and read nothing of the label; fit the direction with the estimator 'leace'."
            )
        writes = strength_at(self.strength, site) * torch.linalg.pinv(inner, rtol=1e-9) @ differences
        return Operator(reads=-reads.T, writes=writes, shift=(mean @ reads.T) @ writes)

    def _differences(self, source: Site) -> Float[Tensor, "k width"]:
        """Of the class means to the first of them."""
        known = self.direction.means.get(source, {})
        classes = [mean.double() for label, mean in known.items() if label]
        if len(classes) < 2:
            raise SteeringError(
                f"{self.direction!r} does not know the mean states of its classes at {source}, along which it would be "
                "erased; fit it from labelled states."
            )
        return torch.stack([mean - classes[0] for mean in classes[1:]])
