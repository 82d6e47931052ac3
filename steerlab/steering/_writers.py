"""The parameters that write to the residual stream, each as a place where an ablation or a shift can be put.

With W the map and b the bias of a part whose output y = W h + b is added to the stream (times a residual multiplier m):

    ablation   W ← W − Q Qᵀ W,  b ← b − Q Qᵀ b       removes span Q from every y          (Arditi et al. 2024)
    shift δ    b ← b + δ/m                           adds δ to every m·y
    at h       W ← W − W Q Qᵀ,  b ← b + W δ          the same of the part's input         (ITI: z before W_O)
    scale      W ← W diag(s)                         scales the input

In a mixture of experts the first holds for every expert, the second only where routing weights sum to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.models.sites import CONTRIBUTIONS
from steerlab.models.tuners import is_tuned
from steerlab.models.weights import original
from steerlab.steering import _biases

_SAME = 1e-3


@dataclass(frozen=True)
class Part:
    """A module that writes to the stream.

    Attributes:
        name: its name from the model's root.
        module: `nn.Linear`, GPT-2's `Conv1D`, stacked experts, an embedding or a norm.
        scale: the factor between what it puts out and what enters the stream.
    """

    name: str
    module: Any
    scale: float = 1.0

    @property
    def outputs(self) -> list[Float[Tensor, "... d_model"]]:
        """Views of its parameters, the stream's width last."""
        kind = _kind(self.module)
        if kind == "linear":
            return [self.matrix.T, *_present(self.module.bias)]
        if kind == "experts":
            stacked = self.module.down_proj.data
            views = stacked if self.module.is_transposed else stacked.transpose(-1, -2)
            return [views, *_present(getattr(self.module, "down_proj_bias", None))]
        if kind == "norm":
            raise SteeringError(
                f"What {self.name} puts out cannot be projected by its weights, as it normalises."
            )
        return [self.module.weight.data, *_present(getattr(self.module, "bias", None))]

    @property
    def constant(self) -> Tensor | None:
        """The parameter that adds a constant to every output, `None` where there is none."""
        kind = _kind(self.module)
        if kind == "experts":
            bias = getattr(self.module, "down_proj_bias", None)
        else:
            bias = self.module.weight if kind == "table" else self.module.bias
        return None if bias is None else bias.data

    @property
    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """A view of a linear part's map."""
        if _kind(self.module) != "linear":
            raise SteeringError(f"{self.name} is a mixture of experts, so its input has no single map.")
        view: Tensor = self.module.weight.data
        return view.T if type(self.module).__name__ == "Conv1D" else view

    def project(self, basis: Float[Tensor, "d_model k"], share: float = 1.0) -> None:
        """Remove the span of an orthonormal basis from every output, or a share of what lies in it."""
        for view in self.outputs:
            _subtract_projection(view, basis, share)

    def project_input(self, basis: Float[Tensor, "d_in k"], share: float = 1.0) -> None:
        """Remove the span, or a share, from every input."""
        _subtract_projection(self.matrix, basis, share)

    def scale_input(self, factors: Float[Tensor, " d_in"]) -> None:
        """Multiply every input with its factor."""
        matrix = self.matrix
        precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        matrix.copy_(precise * factors.to(precise))

    def shift(self, delta: Float[Tensor, " d_model"]) -> None:
        """Add `delta` to everything that enters the stream from here."""
        assert self.constant is not None
        _add(self.constant, delta / self.scale)

    def shift_input(self, delta: Float[Tensor, " d_in"]) -> None:
        """Add `delta` to every input."""
        assert self.constant is not None
        matrix = self.matrix
        precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        _add(self.constant, precise @ delta.to(precise))


class Writers:
    """Everything that writes to one model's residual stream.

    Every lookup raises `SteeringError` with the reason where a part cannot carry the change.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._names = {id(module): name for name, module in model.model.named_modules()}

    def attention(self, layer: int) -> Part:
        """The attention's output projection."""
        names = self.model.anatomy.names
        return self._part(self._inside(layer, names.attention_output, "attention with an output projection"))

    def mlp(self, layer: int) -> list[Part]:
        """The MLP's down projection, or every expert's."""
        anatomy = self.model.anatomy
        if anatomy.has(Site("mlp_post", layer)):
            return [self._part(anatomy.down_projection(layer))]
        return self._experts(layer, self._inside(layer, anatomy.names.mlp, "MLP"))

    def _experts(self, layer: int, mixture: nn.Module) -> list[Part]:
        stacks = [module for module in mixture.modules() if _kind(module) == "experts"]
        shared = [getattr(module, "down_proj", None) for module in mixture.modules()]
        parts = [
            self._part(module)
            for module in [
                *stacks,
                *(projection for projection in shared if isinstance(projection, nn.Module)),
            ]
        ]
        if not parts:
            raise SteeringError(
                f"Layer {layer} has a {type(mixture).__name__}, whose output weights are not known here; steer with "
                "hooks."
            )
        return parts

    def down_projection(self, layer: int) -> Part:
        """The single map behind the neurons of a dense layer."""
        return self._part(self.model.anatomy.down_projection(layer))

    def start(self) -> list[Part]:
        """What the stream starts from: the token embedding, and learned positions where there are some."""
        anatomy = self.model.anatomy
        if anatomy.names.embed_norm is not None:
            raise SteeringError(
                "A norm follows the token embedding of this family, so no change of weights keeps a direction out "
                "of the stream there; steer with hooks."
            )
        return [self.embedding(), *self._positions()]

    def embedding(self) -> Part:
        """The token embedding, seen from its own output."""
        return self._part(self.model.anatomy.embed, self._scales[0])

    def start_constant(self) -> Part:
        """A place that adds one vector to the input of block 0 at every token."""
        anatomy = self.model.anatomy
        if anatomy.names.embed_norm is not None:
            return self._part(anatomy.model.get_submodule(anatomy.names.embed_norm))
        positions = self._positions()
        return positions[0] if positions else self._part(anatomy.embed, self._scales[0] * self._scales[1])

    def mixer(self, layer: int) -> list[Part]:
        """The output projection of what stands in attention's place; some families have MLPs and experts there."""
        module = self.model.anatomy.tap(Site("mixer_out", layer)).module
        for name in ("out_proj", "o_proj"):
            if isinstance(getattr(module, name, None), nn.Module):
                return [self._part(getattr(module, name))]
        return self._experts(layer, module)

    def contributions(self, layer: int) -> list[Part]:
        """The parts that write what a layer adds to the stream."""
        sites = [Site(name, layer) for name in CONTRIBUTIONS]
        return [part for site in sites if self.model.anatomy.has(site) for part in self.contribution(site)]

    def contribution(self, site: Site) -> list[Part]:
        """The parts that write what a layer's attention, mixer or MLP adds to the stream."""
        anatomy, layer = self.model.anatomy, site.layer
        assert layer is not None
        names = {"attn_out": "attention", "mixer_out": "mixer", "mlp_out": "MLP"}
        post_norm = (
            anatomy.names.mlp_post_norm if site.name == "mlp_out" else anatomy.names.attention_post_norm
        )
        if post_norm is not None:
            raise SteeringError(
                f"What the {names[site.name]} of layer {layer} writes is normalised before it enters the stream (a "
                "post-norm family), so no change of its weights is this intervention; steer with hooks."
            )
        if site.name == "mlp_out":
            parts = self.mlp(layer)
        else:
            parts = [self.attention(layer)] if site.name == "attn_out" else self.mixer(layer)
        return [Part(part.name, part.module, anatomy.scales[site.name]) for part in parts]

    def constant_of(self, site: Site) -> Part:
        """The part whose bias adds a constant to what a layer's attention, mixer or MLP writes."""
        part = self.contribution(site)[0]
        if _kind(part.module) == "experts" and part.constant is None:
            raise SteeringError(
                f"The MLP of layer {site.layer} is a mixture of experts without biases, so nothing in it adds a "
                "constant; steer with hooks."
            )
        return part

    def before_mlp(self, layer: int) -> Part:
        """The part whose bias is read for the first time between a layer's mixer and its MLP."""
        attends = self.model.anatomy.has(Site("attn_out", layer))
        return self.constant_of(Site("attn_out" if attends else "mixer_out", layer))

    def after_block(self, layer: int) -> Part:
        """A part whose bias reaches the output of a block and nothing before it.

        Where attention and MLP run side by side either will do, and one that has a bias, or may have one by the
        configuration, is taken first.
        """
        last = [name for name in reversed(CONTRIBUTIONS) if self.model.anatomy.has(Site(name, layer))]
        kinds = last if self.model.anatomy.names.parallel else last[:1]
        constants = [self.constant_of(Site(name, layer)) for name in kinds]
        flags = _biases.flags(self.model)
        return min(constants, key=lambda part: (part.constant is None, f"{part.name}.bias" not in flags))

    def untie(self) -> None:
        """Give the unembedding weights of its own when it shares the embedding's."""
        head: Any = self.model.anatomy.head
        module = self.model.model
        tied: bool = head.weight is self.model.anatomy.embed.weight
        if not tied:
            return
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in (module.config, module.config.get_text_config()):
            config.tie_word_embeddings = False
        module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)

    def _positions(self) -> list[Part]:
        name = self.model.anatomy.names.positions
        return [] if name is None else [self._part(self.model.model.get_submodule(name))]

    @cached_property
    def _scales(self) -> tuple[float, float]:
        """Embedding output over table rows (Gemma: √d), and block 0's input over that (Granite's multiplier)."""
        model = self.model
        states: dict[str, Tensor] = {}
        tokens = model.tokenize(["The scale of an embedding is read off a few tokens."])
        sites = (Site("embed"), Site("resid_pre", 0))
        keep = {
            site: lambda state, name=site.name: states.update({name: state[0].double()}) for site in sites
        }
        model.run(tokens, read=keep)
        table: Tensor = model.anatomy.embed.weight  # type: ignore[assignment]
        rows = table.detach()[tokens.input_ids[0].to(model.device)].double()
        plain = model.anatomy.names.positions is None and model.anatomy.names.embed_norm is None
        start = states["resid_pre"] if plain else states["embed"]
        return _factor(rows, states["embed"]), _factor(states["embed"], start)

    def _inside(self, layer: int, name: str | None, what: str) -> nn.Module:
        try:
            if not name:
                raise AttributeError
            return self.model.anatomy.blocks[layer].get_submodule(name)
        except (AttributeError, IndexError) as error:
            raise SteeringError(f"Layer {layer} has no {what}, so nothing there can be baked.") from error

    def _part(self, module: Any, scale: float = 1.0) -> Part:
        module = original(module)  # what an engine has wrapped
        name = self._names.get(id(module), type(module).__name__)
        if is_tuned(module):
            raise SteeringError(
                f"{name} has an adapter on it, which a change of its own weights would miss; fold it in (merge=True, "
                "or merge_and_unload() of a live model), or steer with hooks."
            )
        parameters = list(module.parameters(recurse=False))
        if not _kind(module) or not all(
            parameter.is_floating_point() and not parameter.is_meta for parameter in parameters
        ):
            raise SteeringError(
                f"{name} is a {type(module).__name__} whose weights cannot be changed here (quantised or offloaded); "
                "load the model in float32 or bfloat16 on one device, or steer with hooks."
            )
        return Part(name, module, scale)


def _kind(module: Any) -> str:
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return "linear"
    if isinstance(getattr(module, "down_proj", None), nn.Parameter) and hasattr(module, "is_transposed"):
        return "experts"
    if isinstance(module, nn.LayerNorm):
        return "norm"
    return "table" if isinstance(module, nn.Embedding) else ""


def _present(bias: Tensor | None) -> list[Tensor]:
    return [] if bias is None else [bias.data]


def _subtract_projection(view: Tensor, basis: Tensor, share: float) -> None:
    precise = view.to(torch.promote_types(view.dtype, torch.float32))
    q = basis.to(precise)
    view.copy_(precise - (precise @ (share * q)) @ q.T)


def _add(view: Tensor, delta: Tensor) -> None:
    precise = view.to(torch.promote_types(view.dtype, torch.float32))
    view.copy_(precise + delta.to(precise))


def _factor(before: Tensor, after: Tensor) -> float:
    factor = float((before * after).sum() / (before * before).sum())
    if float((after - factor * before).norm()) > _SAME * float(after.norm()):
        raise SteeringError(
            "The stream of this family does not start from its token embedding times a number, so nothing can be "
            "put into the embedding; steer with hooks."
        )
    return factor


def project(delta: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """`delta` without its part in the span of each basis, one after the other."""
    for basis in bases:
        delta = delta - basis @ (basis.T @ delta)
    return delta


__all__ = ["Part", "Writers", "project"]
