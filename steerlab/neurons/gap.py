"""How much of the difference in confidence between a base and a post-trained model do their entropy neurons explain?

Both models read the same texts. In the post-trained model the set's last-layer neurons get the base model's
activations, or the base model's output weights, or both models have them at their own means; explained is the
share by which the entropy gap shrinks,

    1 − (H_post' − H_base') / (H_post − H_base)

by text, resampled. It stands beside random neurons of like norm and beside all neurons of the layer. This asks
finding 4 of *How Post-Training Reshapes LLMs* directly, which counted shared neuron numbers instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from steerlab.errors import ModelError
from steerlab.neurons.head import NeuronHead
from steerlab.record import Record
from steerlab.statistics import Estimate, Number, bootstrap, bootstrap_mean, mean_and_extremes

Way = Literal["activations swapped", "weights swapped", "mean-ablated in both"]
_RANDOM_SETS = "extremes of {n} random sets"
WAYS: tuple[Way, ...] = ("activations swapped", "weights swapped", "mean-ablated in both")


class Explained(Record):
    """The share of the entropy gap that goes when a set of neurons is exchanged or switched off; 1 is all of it.

    random: the same for random sets of like norm, mean and extremes over sets.
    """

    neurons: str
    n: int
    way: Way
    share: Estimate
    random: Estimate


class CrossAblation(Record):
    """Ablating one model's entropy neurons, all at once, in each model: change of entropy, nats a token."""

    neurons: str
    model: str
    change: Estimate
    random: Number


class Gap(Record):
    """The gap itself (post minus base, nats a token), what explains it, and cross ablation."""

    base: Estimate
    post: Estimate
    gap: Estimate
    explained: tuple[Explained, ...]
    crossed: tuple[CrossAblation, ...]


def entropy_gap(
    base: NeuronHead,
    post: NeuronHead,
    sets: Mapping[str, Sequence[int]],
    randoms: Sequence[Sequence[int]],
    *,
    seed: int = 0,
) -> Gap:
    """Every set by every way.

    Args:
        base, post: heads over the same texts, whose tokens and widths must be the same.
        sets: neurons of the last layer, by name.
        randoms: random sets of like norm, the control of every set.

    Raises:
        ModelError: the models do not read the same tokens, or their last layers have other sizes.
    """
    if base.stream.shape != post.stream.shape or base.acts.shape != post.acts.shape:
        raise ModelError("The entropy gap needs the same tokens, width and neurons in both models.")
    heads = {"base": base, "post": post}
    before = {name: head.by_text(head.entropy(head.logits)) for name, head in heads.items()}
    controls = {way: [_after(base, post, neurons, way) for neurons in randoms] for way in WAYS}
    explained = [
        Explained(
            neurons=name,
            n=len(neurons),
            way=way,
            share=_share(before, _after(base, post, neurons, way), seed),
            random=mean_and_extremes([_value(before, pair) for pair in controls[way]], _RANDOM_SETS),
        )
        for name, neurons in sets.items()
        for way in WAYS
    ]
    crossed = [
        CrossAblation(
            neurons=name,
            model=role,
            change=bootstrap_mean(_ablated(head, neurons) - before[role], seed=seed),
            random=float(np.mean([(_ablated(head, draw) - before[role]).mean() for draw in randoms])),
        )
        for name, neurons in sets.items()
        for role, head in heads.items()
    ]
    return Gap(
        base=bootstrap_mean(before["base"], seed=seed),
        post=bootstrap_mean(before["post"], seed=seed),
        gap=bootstrap_mean(before["post"] - before["base"], seed=seed),
        explained=tuple(explained),
        crossed=tuple(crossed),
    )


# -- private, in the order they are called --

Pair = tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]


def _after(base: NeuronHead, post: NeuronHead, neurons: Sequence[int], way: Way) -> Pair:
    """Entropy of the base and of the post-trained model by text, after the exchange."""
    at = torch.tensor(list(neurons))
    plain = base.by_text(base.entropy(base.logits))
    if way == "activations swapped":
        logits = post.changed(base.acts[:, at] - post.acts[:, at], post.w_out[at])
    elif way == "weights swapped":
        logits = post.changed(post.acts[:, at], base.w_out[at] - post.w_out[at])
    else:
        return _ablated(base, neurons), _ablated(post, neurons)
    return plain, post.by_text(post.entropy(logits))


def _ablated(head: NeuronHead, neurons: Sequence[int]) -> Float[np.ndarray, " text"]:
    at = torch.tensor(list(neurons))
    return head.by_text(head.entropy(head.changed(head.mean[at] - head.acts[:, at], head.w_out[at])))


def _share(before: Mapping[str, np.ndarray], after: Pair, seed: int) -> Estimate:
    return bootstrap(_explained, before["base"], before["post"], *after, seed=seed)


def _value(before: Mapping[str, np.ndarray], after: Pair) -> float:
    return _explained(before["base"], before["post"], *after)


def _explained(base: np.ndarray, post: np.ndarray, base_after: np.ndarray, post_after: np.ndarray) -> float:
    gap = float((post - base).mean())
    return 1 - float((post_after - base_after).mean()) / gap if abs(gap) > 1e-9 else float("nan")
