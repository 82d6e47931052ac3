"""From the last stream to the logits, neuron by neuron, without running the network again.

The last MLP feeds only the final norm, so ablating one of its neurons by Δ = (ā − a) w changes the logits by a vector
that does not depend on the token, times numbers that do: with g = W_U (γ ⊙ w) (w centred for a LayerNorm),

    frozen scale      logits + Δa g / s            s: the norm's scale of the unablated stream
    recomputed norm   (s (logits − b) + Δa g) / s' + b,   s'² = s² + (2 Δa ⟨x, w⟩ + Δa² ‖w‖²) / d

so a neuron costs tokens × vocabulary instead of tokens × width × vocabulary. Where the head is not linear (a
soft-cap) or the scale is another one, found by trying, the norm and the unembedding are run instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.models import LanguageModel
from steerlab.models.laws import entropy
from steerlab.neurons.ablation import last_layer, linear_w_out
from steerlab.neurons.weights import final_norm, norm_centres

_LEAST = 1e-20
_CACHED = 2**17  # logits of one part: half a megabyte
_TOLERANCE = 1e-3  # of the logits' spread, float32


class NeuronHead:
    """One model's last stream over some texts, and what ablating its last neurons does.

    text: [token] the text of each token. target: [token] the next token, −1 at a text's end. logits: [token,
    vocab] unablated.
    """

    def __init__(self, model: LanguageModel, texts: Sequence[str]) -> None:
        self.model = model
        self.stream, acts, self.text = last_layer(model, texts)
        self.acts: Float[Tensor, "token neuron"] = acts["mlp_post"]
        self.w_out: Float[Tensor, "neuron d_model"] = linear_w_out(model, acts)
        self.target = _targets(model, texts)
        self.final = final_norm(model)
        self.centres = norm_centres(model)
        self.gain = model.final_norm_gain.float().cpu()
        self.normed = self._norm(self.stream)
        self.bias = self._norm(torch.zeros_like(self.stream[:1]))
        scaled = self._scaled(self.stream)
        inner = (scaled * (self.normed - self.bias)).sum(-1, keepdim=True).clamp(min=1e-30)
        self.scale: Float[Tensor, "token 1"] = (scaled**2).sum(-1, keepdim=True) / inner
        self.logits = self._unembed(self.normed)
        self.constant = self._unembed(self.bias)
        self.mean = self.acts.mean(0)
        self.linear = self._is_linear()

    @property
    def n_neurons(self) -> int:
        """Neurons of the last layer."""
        return len(self.w_out)

    def written_logits(self, neuron: int) -> Float[Tensor, " vocab"]:
        """g: what one unit of the neuron adds to the logits at scale one."""
        return self.all_written_logits([neuron])[0]

    def all_written_logits(self, neurons: Sequence[int]) -> Float[Tensor, "neuron vocab"]:
        """g of some neurons, whose unembedding is one product of matrices."""
        written: Tensor = self._unembed(self._scaled(self.w_out[list(neurons)]) + self.bias) - self.constant
        return written

    def ablated(
        self, neuron: int, *, value: float | None = None, frozen: bool = False
    ) -> Float[Tensor, "token vocab"]:
        """Logits with the neuron at its mean (or at `value`), the norm recomputed or its scale frozen."""
        change = (self.mean[neuron] if value is None else value) - self.acts[:, neuron]
        return self.changed(change[:, None], self.w_out[neuron][None], frozen=frozen)

    def changed(
        self,
        amount: Float[Tensor, "token k"],
        directions: Float[Tensor, "k d_model"],
        *,
        frozen: bool = False,
    ) -> Float[Tensor, "token vocab"]:
        """Logits with amount @ directions added to the last stream."""
        delta = amount @ directions
        if not self.linear or len(directions) > 1:
            if frozen:
                return self._unembed(self.normed + self._scaled(delta) / self.scale)
            return self._unembed(self._norm(self.stream + delta))
        written = self._unembed(self._scaled(directions) + self.bias) - self.constant
        if frozen:
            return self.logits + amount * written / self.scale
        scale = self._rescaled(amount, directions[0])
        return (self.scale * (self.logits - self.constant) + amount * written) / scale + self.constant

    def confidence_of(
        self, neuron: int, *, value: float | None = None, frozen: bool = False
    ) -> tuple[Float[Tensor, " token"], Float[Tensor, " scored"]]:
        """Entropy of every token and loss of those with a next one, ablated as in `ablated`.

        With z' = α z + β g the logits (up to a constant a token) and p their law: H = ln Z − Σ p z', where ln Z is
        z' − ln p of any token whose p is not lost; the likeliest unablated one is read. Tokens are taken a few at a
        time, so that their buffers stay in the processor's cache.
        """
        if not self.linear:
            logits = self.ablated(neuron, value=value, frozen=frozen)
            return self.entropy(logits), self.loss(logits)
        amount = ((self.mean[neuron] if value is None else value) - self.acts[:, neuron])[:, None]
        written = self.written_logits(neuron)
        scale = self.scale if frozen else self._rescaled(amount, self.w_out[neuron])
        alpha, beta = self.scale / scale, amount / scale
        entropies, aimed = torch.empty(len(alpha)), torch.empty(len(alpha))
        for part in self._parts:
            entropies[part], aimed[part] = self._some(part, alpha[part], beta[part], written)
        return entropies, aimed[self.target >= 0]

    def _some(
        self, part: slice, alpha: Float[Tensor, "row 1"], beta: Float[Tensor, "row 1"], written: Tensor
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Entropy of some tokens, and minus the log-probability of their next ones."""
        free, (moved, law) = self._free_logits[part], self._buffers[:, : len(alpha)]
        torch.mul(free, alpha, out=moved).addr_(beta[:, 0], written)
        if self._biased:
            moved += self.constant
        torch.softmax(moved, -1, out=law)
        top = law.gather(-1, self._top[part])
        if bool((top < _LEAST).any()):  # lost beside another token: ln Z cannot be read off it
            logs = moved.log_softmax(-1)
            return entropy(logs), -logs.gather(-1, self._aims[part])[:, 0]
        normaliser = (moved.gather(-1, self._top[part]) - top.log())[:, 0]
        # Σ p z' from the parts of z': the products with g and the bias are matrix products
        inner = alpha[:, 0] * torch.linalg.vecdot(law, free) + beta[:, 0] * (law @ written)
        if self._biased:
            inner = inner + law @ self.constant[0]
        return normaliser - inner, normaliser - moved.gather(-1, self._aims[part])[:, 0]

    @cached_property
    def _free_logits(self) -> Float[Tensor, "token vocab"]:
        """What does not depend on the neuron; the bias is the same for every token and comes back whole."""
        return self.logits - self.constant

    @cached_property
    def _parts(self) -> tuple[slice, ...]:
        rows = max(1, _CACHED // self.logits.shape[1])
        return tuple(slice(start, start + rows) for start in range(0, len(self.logits), rows))

    @cached_property
    def _buffers(self) -> Float[Tensor, "2 row vocab"]:
        """Room for the logits and the law of one part."""
        return torch.empty(2, *self.logits[self._parts[0]].shape)

    @cached_property
    def _aims(self) -> Int[Tensor, "token 1"]:
        return self.target.clamp(min=0)[:, None]

    @cached_property
    def _biased(self) -> bool:
        return bool(self.constant.abs().max() > 0)

    @cached_property
    def _top(self) -> Int[Tensor, "token 1"]:
        """The likeliest token, unablated."""
        return self.logits.argmax(-1, keepdim=True)

    def _rescaled(
        self, amount: Float[Tensor, "token 1"], direction: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "token 1"]:
        x, w = self._centred(self.stream), self._centred(direction[None])
        squared = self.scale**2 + (2 * amount * (x @ w.T) + amount**2 * (w**2).sum()) / x.shape[-1]
        return squared.clamp(min=1e-30).sqrt()

    def entropy(self, logits: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
        """Nats of every token's law."""
        return entropy(logits.log_softmax(-1))

    def loss(self, logits: Float[Tensor, "token vocab"]) -> Float[Tensor, " scored"]:
        """Nats of the next token, of those that have one."""
        kept = self.target >= 0
        law = logits[kept].log_softmax(-1)
        scored: Tensor = -law.gather(-1, self.target[kept][:, None])[:, 0]
        return scored

    def by_text(self, values: Float[Tensor, " token"]) -> Float[np.ndarray, " text"]:
        """Mean over the tokens of each text."""
        means = np.bincount(self.text, weights=values.double().numpy()) / np.bincount(self.text)
        return np.asarray(means)

    # -- private --

    def _is_linear(self) -> bool:
        """Whether the closed form gives what norm and unembedding give, tried on the neuron that writes most."""
        neuron = int(self.w_out.norm(dim=-1).argmax())
        change = (self.mean[neuron] - self.acts[:, neuron])[:, None]
        self.linear = True
        fast = self.changed(change, self.w_out[neuron][None])
        self.linear = False
        true = self.changed(change, self.w_out[neuron][None])
        spread = (true - true.mean(-1, keepdim=True)).abs().mean()
        return bool((fast - true).abs().max() <= _TOLERANCE * max(float(spread), 1e-6) * 10)

    def _norm(self, stream: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        state = stream.to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            normed: Tensor = self.final(state[None])[0].float().cpu()
        return normed

    def _centred(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        return rows - rows.mean(-1, keepdim=True) if self.centres else rows

    def _scaled(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        return self._centred(rows) * self.gain

    def _unembed(self, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        with torch.inference_mode():
            logits = self.model.anatomy.logits_of(normed.to(self.model.device, self.model.dtype))
            return logits[..., : self.model.vocab_size].float().cpu()


def _targets(model: LanguageModel, texts: Sequence[str]) -> Int[Tensor, " token"]:
    """The next token of each token, in the order in which `last_layer` keeps them; −1 at the end of a text."""
    return torch.cat([torch.tensor([*ids[1:], -1]) for ids in model.token_ids(list(texts))])
