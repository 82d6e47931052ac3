"""Base steered with the average difference, as long as it is: does its law move towards post's?

Added is the average difference at one layer's output, at every text token.

    effect = KL(post ‖ base) − KL(post ‖ steered base)        nats a token, positive: nearer to post

Control: random vectors of the same length at the same layer.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.models import LanguageModel, Site
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import kl
from steerlab.progress import counting
from steerlab.readouts.agreement import random_units
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, mean_and_extremes
from steerlab.steering import Add
from steerlab.studies._difference.reading import Texts

_BUDGET = 1024
_RANDOM = "mean, least and greatest of {n} random vectors of the same length"


class Steering(Record):
    """Base with the average difference of a layer added: texts read, KL(post ‖ base), what is taken from it (effect),
    random vectors (control), and the price KL(base ‖ steered); nats a token."""

    layer: int
    texts: int
    before: Estimate
    effect: Estimate
    control: Estimate
    price: Estimate

    @property
    def above_control(self) -> bool:
        """True when the interval lies above zero and the value above every random vector."""
        return self.effect.low > 0 and self.effect.value > self.control.high


def steer(
    base: LanguageModel,
    post: LanguageModel,
    texts: Texts,
    vector: Float[Tensor, " width"],
    layer: int,
    randoms: int,
    seed: int,
) -> Steering:
    """Add `vector` (and random ones of its length) to base's layer, and compare its laws with post's."""
    length = float(vector.norm())
    drawn = torch.from_numpy(random_units(len(vector), randoms, seed)).float() * length
    site = Site("resid_post", layer)
    added = [Add(each, unit="raw", sites=site) if length else None for each in (vector, *drawn)]
    away = np.zeros((1 + len(added), len(texts)))
    price = np.zeros(len(texts))

    def read(rows: list[int]) -> None:
        batch = texts.batch(rows)
        at = texts.places(batch)
        goal, plain = (model.last_hidden(batch, *at) for model in (post, base))
        states = [plain]
        for one in added:
            with nullcontext() if one is None else base.steering(one):
                states.append(base.last_hidden(batch, *at))
        far = torch.zeros(1 + len(added), len(goal), dtype=torch.float64)
        paid = torch.zeros(len(goal), dtype=torch.float64)
        slices = [base.logits_in_slices(each) for each in states]
        for some, logits in post.logits_in_slices(goal):
            wanted = logits.log_softmax(dim=-1)
            for number, each in enumerate(slices):
                law = next(each)[1].log_softmax(dim=-1)
                far[number, some] = kl(wanted, law).double().cpu()
                if number == 0:
                    unsteered = law
                elif number == 1:
                    paid[some] = kl(unsteered, law).double().cpu()
        for number, text in enumerate(rows):
            mine = at[0] == number
            away[:, text] = far[:, mine].mean(dim=1).numpy()
            price[text] = float(paid[mine].mean())

    with counting("steering with the difference", len(texts)) as done:
        run_in_batches(read, texts.tokens.lengths, _BUDGET, done=done)
    nearer = away[0] - away[1:]
    return Steering(
        layer=layer,
        texts=len(texts),
        before=bootstrap_mean(away[0], seed=seed),
        effect=bootstrap_mean(nearer[0], seed=seed),
        control=mean_and_extremes(nearer[1:].mean(axis=1).tolist(), _RANDOM),
        price=bootstrap_mean(price, seed=seed),
    )
