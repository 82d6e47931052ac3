"""Neurons of any layer, ablated one by one: the stack restarts behind their layer from a kept stream.

For layers before the last the rest of the network has to run again, which the sweep engine does with neurons as
rows of one batch; blocks up to theirs are not repeated. The law after each text's last token is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.activations import record, sweep
from steerlab.activations.sweep import TOKEN_BUDGET
from steerlab.errors import ModelError
from steerlab.models import LanguageModel, Prompt, Site
from steerlab.models.laws import entropy, kl


@dataclass(frozen=True)
class LayerEffects:
    """[text, neuron] after each text's last token, nats: change of entropy, and KL of the ablated from the plain
    law."""

    layer: int
    neurons: tuple[int, ...]
    entropy: Float[np.ndarray, "text neuron"]
    kl: Float[np.ndarray, "text neuron"]


def layer_effects(
    model: LanguageModel,
    layer: int,
    texts: Sequence[str | Prompt],
    neurons: Sequence[int] | None = None,
    *,
    to: Literal["mean", "zero"] = "mean",
    token_budget: int = TOKEN_BUDGET,
) -> LayerEffects:
    """Ablate neurons of `layer` at every token, each alone, to their mean over the texts or to zero.

    Raises:
        SiteError: a layer without a single down projection.
        ModelError: a norm behind the MLP, so that a neuron's output is no fixed vector.
    """
    acts, w_out = _activations(model, layer, texts)
    chosen = list(range(len(w_out)) if neurons is None else neurons)
    mean = torch.cat(acts).mean(0) if to == "mean" else torch.zeros(len(w_out))
    change = _Ablation(Site("resid_post", layer), [(mean - act)[:, chosen] for act in acts], w_out[chosen])
    recording = record(model, list(texts), range(model.n_layers), token_budget=token_budget)
    plain = recording.logits.float().log_softmax(-1)

    def measure(logits: Float[Tensor, "variant prompt vocab"], prompts: Int[Tensor, " prompt"]) -> Tensor:
        law, before = logits.float().log_softmax(-1), plain[prompts.to(plain.device)]
        return torch.stack([entropy(law) - entropy(before), kl(before, law)], dim=-1)

    swept = sweep(
        recording,
        change,
        len(chosen),
        measure,
        token_budget=token_budget,
        progress=f"neurons of layer {layer}",
    )
    values = swept.double().numpy()
    return LayerEffects(layer, tuple(chosen), values[..., 0].T, values[..., 1].T)


# -- private --


@dataclass(frozen=True, eq=False)
class _Ablation:
    """Variant n: the stream behind the layer loses what neuron n wrote and gains what its mean would have."""

    site: Site
    amounts: list[Float[Tensor, "position neuron"]]
    w_out: Float[Tensor, "neuron d_model"]

    @property
    def sites(self) -> Sequence[Site]:
        return [self.site]

    def apply(
        self,
        state: Float[Tensor, "variant prompt position width"],
        site: Site,
        variants: slice,
        prompts: Int[Tensor, " prompt"],
    ) -> Tensor:
        rows = self.w_out[variants]
        amounts = torch.zeros(len(rows), len(prompts), state.shape[2])
        for row, prompt in enumerate(prompts.tolist()):
            mine = self.amounts[prompt][:, variants].T
            amounts[:, row, : mine.shape[1]] = mine
        delta = amounts[..., None] * rows[:, None, None]
        return state.float() + delta.to(state.device)


def _activations(
    model: LanguageModel, layer: int, texts: Sequence[str | Prompt]
) -> tuple[list[Float[Tensor, "position neuron"]], Float[Tensor, "neuron d_model"]]:
    """Neuron activations of each text, and what one unit of each neuron adds to the stream."""
    from steerlab.activations import capture
    from steerlab.models import All

    sites = [Site("mlp_post", layer), Site("mlp_out", layer)]
    states = capture(model, list(texts), sites, positions=All())
    acts, out = states[sites[0]], states[sites[1]]
    w_out = model.w_out(layer).detach().float().cpu()
    predicted, actual = (acts - acts.mean(0)) @ w_out, out - out.mean(0)
    multiplier = (predicted * actual).sum() / (predicted**2).sum().clamp(min=1e-30)
    if (actual - multiplier * predicted).norm() > 2e-2 * actual.norm():
        raise ModelError(
            f"{model.name} has a norm behind the MLP of layer {layer}, so a neuron's output is no fixed vector; "
            "ablate with steering.Scale at mlp_post instead."
        )
    rows = [acts[states.example == number] for number in range(states.n_prompts)]
    return rows, w_out * multiplier
