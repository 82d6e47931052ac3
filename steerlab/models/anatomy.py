"""A model's anatomy: which module, and which side of it, carries the state of each site.

`Anatomy.tap(site)` gives the module to hook, its input or output side, and the factor between what
flows there and what is added to the residual stream:

- `attn_out`, `mlp_out`: output of the post-norm where there is one, else of the attention or MLP, times
  the residual multiplier (Granite). BLOOM adds the residual inside, so there the output projections count.
- `mixer_out`: the same of what stands in attention's place or beside it (linear attention, convolution, state space).
- `resid_mid`: what enters the MLP's norm (or the MLP, when the family norms only behind it); it does not
  exist where attention and MLP run side by side.
- `mlp_post`, `z`: inputs of the down projection and of the attention's output projection.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerlab.errors import ModelError, SiteError
from steerlab.models.adapters import Names, locate
from steerlab.models.quantised import is_packed
from steerlab.models.sites import LAYER_SITES, MODEL_SITES, Site
from steerlab.models.weights import original, projection_width


@dataclass(frozen=True)
class Tap:
    """Where a site's state flows: `scale` times the first tensor on this side of the module."""

    module: nn.Module
    side: Literal["input", "output"]
    scale: float = 1.0


class Anatomy:
    """Parts of one transformers causal language model.

    Args:
        model: the transformers module with its unembedding.

    Raises:
        ModelError: a part the adapters name is not there.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.names: Names = locate(model, model.config)
        self.embed = self._part(self.names.embed)
        self.ln_final = self._part(self.names.ln_final) if self.names.ln_final else None
        parent, _, self._stack_name = self.names.blocks.rpartition(".")
        self._stack_parent = model.get_submodule(parent)
        self.blocks: list[nn.Module] = list(getattr(self._stack_parent, self._stack_name, []))
        if not self.blocks:
            raise ModelError(f"A {type(model).__name__} has no decoder blocks at {self.names.blocks!r}.")
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise ModelError(
                f"A {type(model).__name__} has no unembedding; load the model with its language head."
            )
        if projection_width(self.head) != self.config.hidden_size:
            raise ModelError(
                f"The unembedding of this {type(model).__name__} takes {projection_width(self.head)} numbers but its "
                f"residual stream has {self.config.hidden_size}; models that project in between are not supported."
            )
        #: Rows of the unembedding; those beyond the tokenizer's words are padding.
        self.n_rows = int(self.head.out_features if is_packed(self.head) else self.head.weight.shape[0])
        #: The model without its unembedding: what runs the blocks (OPT's head calls its decoder past `base_model`).
        self.base: Any = self._stack_parent
        multiplier = self._multiplier("residual_multiplier")  # Granite
        #: By site, the factor between what a part puts out and what enters the stream; Falcon-H1 has two more.
        self.scales = {
            "attn_out": multiplier * self._multiplier("attention_out_multiplier"),
            "mixer_out": multiplier * self._multiplier("ssm_out_multiplier"),
            "mlp_out": multiplier,
        }

    def _multiplier(self, name: str) -> float:
        given = getattr(self.config, name, None)
        return 1.0 if given is None else float(given)

    def _part(self, name: str) -> nn.Module:
        try:
            module: nn.Module = self.model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(
                f"The adapters place a part at {name!r}, but this model has none there."
            ) from error
        return module

    def tap(self, site: Site) -> Tap:
        """Where `site` is read and edited.

        Raises:
            SiteError: the model has no such site; the message says why.
        """
        if site.name == "embed":
            return Tap(self.embed, "output")
        if site.name == "ln_final_in":
            if self.ln_final is None:
                raise SiteError(
                    "This model has no final norm, so there is no ln_final_in; use resid_post of the last."
                )
            return Tap(self.ln_final, "input")
        block = self._block(site)
        if site.name == "resid_pre":
            return Tap(block, "input")
        if site.name == "resid_post":
            return Tap(block, "output")
        if site.name == "resid_mid":
            return self._mid(site, block)
        if site.name == "z":
            return Tap(self._inside(site, block, self.names.attention_output), "input")
        if site.name == "mlp_post":
            return Tap(self._down(site, block), "input")
        module = (
            self._mixer(site, block)
            if site.name == "mixer_out"
            else self._contribution(site, block, attention=site.name == "attn_out")
        )
        return Tap(module, "output", self.scales[site.name])

    def path(self, site: Site) -> str:
        """Name, from the model's root, of the module where `site` is read, as in an unwrapped transformers model."""
        module = self.tap(site).module
        if site.layer is None:
            name = self.names.embed if site.name == "embed" else self.names.ln_final
            return str(name)
        root = f"{self.names.blocks}.{site.layer}"
        if module is self.blocks[site.layer]:
            return root
        return f"{root}.{next(name for name, part in _parts(self.blocks[site.layer]) if part is module)}"

    def has(self, site: Site) -> bool:
        """Whether the model has this site."""
        try:
            self.tap(site)
        except SiteError:
            return False
        return True

    def sites(self, name: str) -> list[Site]:
        """Every site called `name` that the model has, by layer."""
        if name in MODEL_SITES:
            return [site for site in (Site(name),) if self.has(site)]
        return [site for layer in range(len(self.blocks)) if self.has(site := Site(name, layer))]

    def site_names(self) -> list[str]:
        """Names of the sites found at one layer at least."""
        return [name for name in (*LAYER_SITES, *MODEL_SITES) if self.sites(name)]

    def width(self, site: Site) -> int:
        """Width of the state at `site`."""
        tap = self.tap(site)
        if site.name == "embed":
            table: Tensor = self.embed.weight  # type: ignore[assignment]
            return int(table.shape[1])
        if site.name in ("z", "mlp_post"):
            return projection_width(tap.module)
        return int(self.config.hidden_size)

    def down_projection(self, layer: int) -> nn.Module:
        """The MLP's down projection of a dense layer."""
        site = Site("mlp_post", layer)
        return self._down(site, self._block(site))

    def mlp_post_norm(self, layer: int) -> nn.Module | None:
        """The norm between the MLP and the stream, where the family has one (Gemma-2, Gemma-3, OLMo-2)."""
        name = self.names.mlp_post_norm
        return None if name is None else _find(self.blocks[layer], name)

    def _block(self, site: Site) -> nn.Module:
        assert site.layer is not None
        if site.layer >= len(self.blocks):
            raise SiteError(f"Site {site} does not exist: the model has layers 0 to {len(self.blocks) - 1}.")
        return self.blocks[site.layer]

    def _mid(self, site: Site, block: nn.Module) -> Tap:
        if self.names.parallel:
            raise SiteError(
                f"Site {site} does not exist: attention and MLP of this family run in parallel on the same input, so "
                "there is no state between them; use resid_pre or resid_post."
            )
        return Tap(self._inside(site, block, self.names.mlp_norm or self.names.mlp), "input")

    def _down(self, site: Site, block: nn.Module) -> nn.Module:
        for name in self.names.mlp_down:
            module = _find(block, name)
            if module is not None:
                return module
        if self.names.routed:
            raise SiteError(
                f"Site {site} does not exist: the MLP of this layer is a mixture of experts, each with neurons of its "
                "own; use mlp_out."
            )
        raise SiteError(f"Site {site} does not exist: this layer has no MLP with a down projection.")

    def _contribution(self, site: Site, block: nn.Module, *, attention: bool) -> nn.Module:
        names = self.names
        post_norm = names.attention_post_norm if attention else names.mlp_post_norm
        if post_norm is not None:
            return self._inside(site, block, post_norm)
        if not attention and names.mlp is None:
            return self._down(site, block)
        module = self._inside(site, block, names.attention if attention else names.mlp)
        if "residual" in inspect.signature(original(module).forward).parameters:
            # BLOOM and MPT hand the stream in and get it back with the contribution already added.
            return self._inside(site, block, names.attention_output) if attention else self._down(site, block)
        return module

    def _mixer(self, site: Site, block: nn.Module) -> nn.Module:
        # Behind a post-norm, attn_out is what the mixer writes.
        names = () if self.names.attention_post_norm is not None else self.names.mixers
        found = (_find(block, name) for name in names)
        module = next((module for module in found if module is not None), None)
        if module is None:
            raise SiteError(f"Site {site} does not exist: this layer has no mixer but attention.")
        return module

    def _inside(self, site: Site, block: nn.Module, name: str | None) -> nn.Module:
        module = _find(block, name) if name is not None else None
        if module is None:
            raise SiteError(f"Site {site} does not exist: this layer of the model has no module for it.")
        return module

    @contextmanager
    def cut_after(self, layer: int) -> Iterator[None]:
        """Run only blocks 0 to `layer` inside the context. Slicing the list is exact and raises nothing."""
        whole = getattr(self._stack_parent, self._stack_name)
        if layer + 1 >= len(self.blocks):
            yield
            return
        setattr(self._stack_parent, self._stack_name, nn.ModuleList(self.blocks[: layer + 1]))
        try:
            yield
        finally:
            setattr(self._stack_parent, self._stack_name, whole)

    def logits_of(
        self, normed: Float[Tensor, "... d_model"], ids: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "... word"]:
        """Unembedding, logit scale and soft-cap of what the final norm puts out, padded rows included.

        Args:
            ids: only these words' logits, in float32 or wider; by default those of all.
        """
        logits: Tensor = self.head(normed) if ids is None else self._some_logits(normed, ids)
        for name in ("logit_scale", "lm_head_multiplier"):  # Cohere and Falcon-H1 multiply
            scale = getattr(self.config, name, None)
            if scale is not None:
                logits = logits * scale
        divisor = getattr(self.config, "logits_scaling", None)  # Granite divides
        if divisor is not None:
            logits = logits / divisor
        cap = getattr(self.config, "final_logit_softcapping", None)  # Gemma-2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _some_logits(self, normed: Tensor, ids: Tensor) -> Tensor:
        head = original(self.head)
        if type(head) is not nn.Linear or head.weight.is_meta or is_packed(head):
            # A quantised or wrapped unembedding has no rows to take.
            logits: Tensor = self.head(normed)
            return logits[..., ids.to(logits.device)].float()
        precise = torch.promote_types(normed.dtype, torch.float32)
        where = ids.to(head.weight.device)
        bias = None if head.bias is None else head.bias[where].to(precise)
        return nn.functional.linear(
            normed.to(head.weight.device, precise), head.weight[where].to(precise), bias
        )


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside, with their names in transformers' own model."""
    for name, part in original(module)._modules.items():
        if part is not None:
            yield name, part
            yield from ((f"{name}.{inner}", below) for inner, below in _parts(part))


def _find(block: nn.Module, name: str) -> nn.Module | None:
    """The module called `name` in transformers' own block; a bridge's wrappers have other children beside."""
    module = block
    for part in name.split("."):
        child = original(module)._modules.get(part)
        if child is None:
            return None
        module = child
    return module
