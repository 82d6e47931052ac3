"""How much does each last-layer neuron move the entropy of each text? Mean ablation, one neuron at a time.

The network is run once (`last_layer`). A neuron's activation is then set to its mean over all tokens, which moves the
last stream by (mean - activation) w_out, and the entropy is taken anew: with the final norm and the unembedding run
again (total), and with the norm's scale frozen and only the unembedding run again (direct). The overlap of neurons is
measured so, text by text. `NeuronHead` starts from the same states, spares the unembedding of every token for each
neuron, and is tested against this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.errors import ModelError
from steerlab.models import LanguageModel, Site
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import entropy
from steerlab.neurons.weights import final_norm, norm_centres
from steerlab.progress import track

_CELLS = 2**24  # logits held at once
_BUDGET = 2048  # padded tokens of a forward pass


@dataclass(frozen=True)
class Effects:
    """Mean ablation, neuron by neuron: means over each text's tokens, nats, [text, neuron].

    total: |change in entropy|, the final norm recomputed. direct: the same, its scale frozen. signed: the change
    itself, norm recomputed.
    """

    total: Float[np.ndarray, "text neuron"]
    direct: Float[np.ndarray, "text neuron"]
    signed: Float[np.ndarray, "text neuron"]


def ablation_effects(
    model: LanguageModel,
    neurons: Sequence[int],
    texts: Sequence[str],
    *,
    description: str = "ablating neurons",
) -> Effects:
    """Set each of the last layer's `neurons` alone to its mean, on all tokens of `texts`.

    Raises:
        ModelError: the last MLP's output is no linear map of its neurons (a norm after the MLP).
    """
    stream, acts, text = last_layer(model, texts)
    w_out = linear_w_out(model, acts)
    head = _Head(model, stream)
    shape = (len(texts), len(neurons))
    total, direct, signed = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    count = np.bincount(text, minlength=len(texts))
    for column, neuron in enumerate(track(neurons, description)):
        change = (acts["mlp_post"][:, neuron].mean() - acts["mlp_post"][:, neuron])[:, None] * w_out[neuron]
        recomputed, frozen = head.entropy_changes(change)
        for values, table in ((recomputed.abs(), total), (frozen.abs(), direct), (recomputed, signed)):
            table[:, column] = (
                np.bincount(text, weights=values.double().numpy(), minlength=len(texts)) / count
            )
    return Effects(total, direct, signed)


class _Head:
    """The way from the last residual to the entropy, with the norm recomputed or its scale frozen."""

    def __init__(self, model: LanguageModel, stream: Float[Tensor, "token d_model"]) -> None:
        self.model, self.stream = model, stream
        self.final = final_norm(model)
        self.centres = norm_centres(model)
        self.gain = model.final_norm_gain.float().cpu()
        with torch.inference_mode():
            self.normed = self._norm(stream)
            bias = self._norm(torch.zeros_like(stream[:1]))
        # normed = gain * stream / scale + bias, whatever epsilon the family adds
        scaled = self._scaled(stream)
        inner = (scaled * (self.normed - bias)).sum(-1, keepdim=True).clamp(min=1e-30)
        self.scale = (scaled**2).sum(-1, keepdim=True) / inner
        self.before = self._entropy(self.normed)

    def entropy_changes(
        self, change: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
        """Change of each token's entropy (norm recomputed, scale frozen)."""
        with torch.inference_mode():
            recomputed = self._entropy(self._norm(self.stream + change))
            frozen = self._entropy(self.normed + self._scaled(change) / self.scale)
        return recomputed - self.before, frozen - self.before

    def _norm(self, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        state = stream.to(self.model.device, self.model.dtype)
        normed: Tensor = self.final(state[None])[0].float().cpu()
        return normed

    def _scaled(self, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        centred = stream - stream.mean(-1, keepdim=True) if self.centres else stream
        return centred * self.gain

    def _entropy(self, normed: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
        entropies = []
        with torch.inference_mode():
            for part in torch.split(normed, max(1, _CELLS // self.model.vocab_size)):
                logits = self.model.anatomy.logits_of(part.to(self.model.device, self.model.dtype))
                entropies.append(entropy(logits[..., : self.model.vocab_size].float().log_softmax(-1)).cpu())
        return torch.cat(entropies)


def last_layer(
    model: LanguageModel, texts: Sequence[str]
) -> tuple[Float[Tensor, "token d_model"], dict[str, Tensor], Int[np.ndarray, " token"]]:
    """The stream before the final norm, neuron activations and MLP output of every token, and its text's number."""
    last = model.n_layers - 1
    sites = {
        "ln_final_in": Site("ln_final_in"),
        "mlp_post": Site("mlp_post", last),
        "mlp_out": Site("mlp_out", last),
    }
    lengths = model.lengths(list(texts))
    read: dict[tuple[str, int], Tensor] = {}

    def run(numbers: list[int]) -> None:
        tokens = model.tokenize([texts[number] for number in numbers], padding_side="right")

        def keep(name: str) -> Callable[[Tensor], None]:
            def visit(state: Tensor) -> None:
                for row, number in enumerate(numbers):
                    read[name, number] = state[row, : lengths[number]].float().cpu()

            return visit

        model.run(tokens, read={site: keep(name) for name, site in sites.items()})

    run_in_batches(run, lengths, _BUDGET)
    states = {name: torch.cat([read[name, number] for number in range(len(texts))]) for name in sites}
    return states.pop("ln_final_in"), states, np.repeat(np.arange(len(texts)), lengths)


def linear_w_out(model: LanguageModel, acts: dict[str, Tensor]) -> Float[Tensor, "neuron d_model"]:
    """What one unit of each neuron adds to the stream (residual multipliers included).

    acts: "mlp_post" [token, neuron] and "mlp_out" [token, d_model], as `last_layer` gives them.

    Raises:
        ModelError: the MLP's output is no linear map of its neurons.
    """
    w_out = model.w_out(model.n_layers - 1).detach().float().cpu()
    predicted = (acts["mlp_post"] - acts["mlp_post"].mean(0)) @ w_out
    actual = acts["mlp_out"] - acts["mlp_out"].mean(0)
    multiplier = (predicted * actual).sum() / (predicted**2).sum().clamp(min=1e-30)
    if (actual - multiplier * predicted).norm() > 2e-2 * actual.norm():
        raise ModelError(
            f"{model.name} does more to the last MLP's output than the down projection does (a norm after the MLP), so "
            "its neurons cannot be ablated without running that part again."
        )
    scaled: Tensor = w_out * multiplier
    return scaled
