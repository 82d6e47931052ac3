"""Two affine maps, to the target and back, trained together so that their composition is near the identity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from steerlab.alignment._aligner import Aligner
from steerlab.alignment._spectra import Rows, Spectra
from steerlab.alignment.registry import ALIGNERS
from steerlab.errors import AlignmentError

_FLOOR = 1e-2


@ALIGNERS.register("affine")
class AffineMap(Aligner):
    """Gradient descent on ‖x A + a − y‖² + ‖y B + b − x‖² + cycle (‖(x A + a) B + b − x‖² + ‖(y B + b) A + a − y‖²).

    Trained on the principal coordinates of the rows (which lose nothing), each side divided by its root mean square,
    so no map is larger than the rows allow. The way back is kept as `back_`.

    Args:
        cycle: weight of the cycle penalty.
        epochs: passes over the rows.
        batch: rows a step.
        learning_rate: of Adam, at first; it falls to zero by a cosine.
        weight_decay: of both maps.
        seed: order of the rows.

    Source: Chen, Merullo, Stolfo and Pavlick (2025), arXiv 2506.06609, section 3.
    """

    def __init__(
        self,
        cycle: float = 1.0,
        *,
        epochs: int = 200,
        batch: int = 256,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        self.cycle = cycle
        self.epochs = epochs
        self.batch = batch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.seed = seed

    @torch.inference_mode(False)  # aligners are fitted inside it, too
    @torch.enable_grad()
    def _fit_rows(self, x: Rows, y: Rows) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise AlignmentError("AffineMap needs at least one epoch and one row a step.")
        spectra = Spectra.of_rows(x, y)
        sizes = [
            float(np.sqrt((scale**2).sum() / spectra.rows / len(scale)))
            for scale in (spectra.scale_x, spectra.scale_y)
        ]
        p, q = (
            torch.from_numpy((rows - mean) @ basis / size)
            for rows, mean, basis, size in (
                (x, spectra.mean_x, spectra.basis_x, sizes[0]),
                (y, spectra.mean_y, spectra.basis_y, sizes[1]),
            )
        )
        there, back, shift = self._train(p, q)
        core = there.numpy() * (sizes[1] / sizes[0])
        mean_y = spectra.mean_y + spectra.basis_y @ (shift.numpy() * sizes[1])
        self.back_ = (spectra.basis_y, back.numpy() * (sizes[0] / sizes[1]), spectra.basis_x)
        self._hold((spectra.mean_x, mean_y), spectra.basis_x, core, spectra.basis_y)

    def _train(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # steps are taken in coordinates of about unit variance, where all axes learn at one pace
        pace = [torch.diag((z.var(dim=0) + _FLOOR * z.var(dim=0).mean()).rsqrt()) for z in (p, q)]
        there = torch.zeros(p.shape[1], q.shape[1], dtype=p.dtype, requires_grad=True)
        back = torch.zeros(q.shape[1], p.shape[1], dtype=p.dtype, requires_grad=True)
        shifts = [torch.zeros(z.shape[1], dtype=p.dtype, requires_grad=True) for z in (q, p)]
        descent = torch.optim.AdamW(
            [
                {"params": [there, back], "weight_decay": self.weight_decay},
                {"params": shifts, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
        )
        generator = torch.Generator().manual_seed(self.seed)
        steps = self.epochs * -(-len(p) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(p), generator=generator).split(self.batch):
                x, y = p[rows], q[rows]
                to_target, to_source = pace[0] @ there, pace[1] @ back
                ahead, behind = x @ to_target + shifts[0], y @ to_source + shifts[1]
                loss = mse_loss(ahead, y) + mse_loss(behind, x)
                if self.cycle:
                    loss = loss + self.cycle * (
                        mse_loss(ahead @ to_source + shifts[1], x)
                        + mse_loss(behind @ to_target + shifts[0], y)
                    )
                descent.zero_grad()
                loss.backward()
                descent.step()
                schedule.step()
        self.loss_ = float(loss.detach())
        return (pace[0] @ there).detach(), (pace[1] @ back).detach(), shifts[0].detach()
