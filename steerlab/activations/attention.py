"""Attention probabilities: which tokens each head looks at, softmax(q·k / √d) as the model computes it.

TransformerLens' ``blocks.{l}.attn.hook_pattern``. Kernels for fast attention never make this matrix, so the model is
loaded with ``attn_implementation="eager"``. It is no `Site`: a site's state has one width at every token, a pattern has
as many numbers as tokens before it, and nothing linear acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.batching import tokens_of_a_batch
from steerlab.errors import ModelError, SiteError, SteerlabError, kind_of
from steerlab.models import LanguageModel, PromptsGiven, Site
from steerlab.models.batches import run_in_batches
from steerlab.models.sites import is_layer


def attention_pattern(
    model: LanguageModel,
    prompts: PromptsGiven,
    layers: int | Iterable[int] | None = None,
    *,
    token_budget: int = 2048,
) -> list[dict[int, Float[Tensor, "head query key"]]]:
    """For every prompt, by layer, how much each token (query) attends to each token (key), float32 on the CPU.

    Rows sum to one (to less where a family has attention sinks) and are zero behind the query. Inside
    ``model.steering(...)`` it is the steered model's.

    Args:
        prompts: one text, `Prompt` or conversation, or any number of them.
        layers: one layer, or several; by default all that have attention.
        token_budget: padded tokens in one forward pass; halved whenever memory runs out.

    Raises:
        ModelError: attention is not computed eagerly, or the family does not hand its probabilities out.
        SiteError: a layer that the model has not, or one without attention.

    Example:
        >>> model = sl.load("zoo:small-post", attn_implementation="eager")  # doctest: +SKIP
        >>> sl.attention_pattern(model, "one two three", 1)[0][1].shape  # doctest: +SKIP
        torch.Size([4, 3, 3])
    """
    if not isinstance(model, LanguageModel):
        raise ModelError(
            f"Attention is read from a model of sl.load, not from {kind_of(model)}; give it first."
        )
    _require_eager(model)
    modules = _attention(model, layers)
    listed = model.as_prompts(prompts)
    lengths = model.lengths(listed)
    found: list[dict[int, Tensor]] = [{} for _ in listed]

    def read(rows: list[int]) -> None:
        tokens = model.tokenize([listed[row] for row in rows], padding_side="right").of_rows(rows)
        with model.lock, ExitStack() as stack:
            for layer, module in modules.items():
                keep = partial(_keep, model, layer, rows, lengths, found)
                stack.callback(module.register_forward_hook(keep).remove)
            model.run(tokens, read={Site("resid_post", max(modules)): lambda state: None})

    run_in_batches(read, lengths, tokens_of_a_batch(token_budget))
    missing = [layer for layer in modules if layer not in found[0]]
    if missing:
        raise ModelError(
            f"The attention of layer {missing[0]} of {model.name} never ran as a module; load it with "
            "backend='transformers'."
        )
    return found


# -- private, in the order they are called --


def _require_eager(model: LanguageModel) -> None:
    if model.is_remote:
        raise SteerlabError(
            f"The weights of {model.name} are on a server, which sends no attention back; load it without remote."
        )
    kind = getattr(model.anatomy.config, "_attn_implementation", None)
    if kind != "eager":
        raise ModelError(
            f"{model.name} computes its attention with {kind!r}, which never makes the probabilities; load it with "
            "sl.load(..., attn_implementation='eager'), or call model.model.set_attn_implementation('eager')."
        )


def _attention(model: LanguageModel, layers: int | Iterable[int] | None) -> dict[int, nn.Module]:
    """The attention module of each layer that was asked for."""
    name, blocks = model.anatomy.names.attention, model.anatomy.blocks
    found = {} if name is None else {layer: _inside(block, name) for layer, block in enumerate(blocks)}
    having = {layer: module for layer, module in found.items() if module is not None}
    if not having:
        raise SiteError(
            f"No block of {model.name} has attention in a place that is known, so there is no pattern to read."
        )
    if layers is None:
        return having
    listed: Any = list(layers) if isinstance(layers, Iterable) else [layers]
    if not listed or not all(is_layer(layer) for layer in listed):
        raise SiteError(f"Layers are numbers counted from 0, such as 3 or [3, 4], not {layers!r:.80}.")
    for layer in listed:
        if not 0 <= layer < len(blocks):
            raise SiteError(
                f"{model.name} has the layers 0 to {len(blocks) - 1}, not {layer}; name one of them."
            )
        if layer not in having:
            with_attention = ", ".join(map(str, having))
            raise SiteError(
                f"Layer {layer} of {model.name} has no attention but another mixer; those with attention are "
                f"{with_attention}."
            )
    return {int(layer): having[int(layer)] for layer in sorted({*map(int, listed)})}


def _inside(block: nn.Module, name: str) -> nn.Module | None:
    try:
        return block.get_submodule(name)
    except AttributeError:
        return None


def _keep(
    model: LanguageModel,
    layer: int,
    rows: Sequence[int],
    lengths: Sequence[int],
    found: list[dict[int, Tensor]],
    module: nn.Module,
    args: Any,
    output: Any,
) -> None:
    """A hook that takes each prompt's own part of the probabilities that an attention module puts out."""
    parts = output[1:] if isinstance(output, tuple) else ()
    pattern = next((part for part in parts if isinstance(part, Tensor) and part.dim() == 4), None)
    if pattern is None or pattern.shape[0] != len(rows) or pattern.shape[2] != pattern.shape[3]:
        raise ModelError(
            f"The {type(module).__name__} of layer {layer} of {model.name} does not hand its attention probabilities "
            "out, so there is no pattern to read."
        )
    for row, own in zip(rows, pattern.detach(), strict=True):
        n = lengths[row]
        found[row][layer] = own[:, :n, :n].to("cpu", torch.float32, copy=True)
