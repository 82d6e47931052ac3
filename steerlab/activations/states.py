"""Captured states: one row for every selected token, in prompt order, for each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.activations._provenance import hashes
from steerlab.activations._shown import states_html
from steerlab.errors import SiteError, SteerlabError
from steerlab.models import All, LanguageModel, Selector, Site, SiteName, Tokens, sites_among
from steerlab.models.backends import TransformerLens
from steerlab.showing import counted


@dataclass(frozen=True, eq=False)
class Activations:
    """States of selected tokens by site; made by `capture`.

    Attributes:
        states: for each site float32 [row, width] on the CPU.
        example: [row], the prompt each row belongs to.
        position: [row], the token's index in the unpadded prompt.
        n_prompts: prompts that were read.
        model_name: the model the states come from.
        fingerprint: its fingerprint.
        positions: the rule that picked the tokens, "" where it is not known.
        prompts_hash: a hash of the prompts in their order, "" where they are not known.
        prompt_hashes: of each prompt; none where they are not known.
    """

    states: Mapping[Site, Float[Tensor, "row width"]]
    example: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    n_prompts: int
    model_name: str
    fingerprint: str
    positions: str = ""
    prompts_hash: str = ""
    prompt_hashes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order they were asked for."""
        return tuple(self.states)

    def __getitem__(self, site: SiteName | int) -> Float[Tensor, "row width"]:
        """The rows of a site: `states["resid_post.5"]`, or `states[5]` where one family was read.

        Raises:
            SiteError: when the site was not captured.
        """
        wanted = sites_among(self.sites, site)
        if len(wanted) != 1 or wanted[0] not in self.states:
            known = ", ".join(map(str, self.states))
            if len(wanted) > 1:
                raise SiteError(f"{site} was captured at {len(wanted)} layers; name one of {known}.")
            raise SiteError(
                f"{wanted[0]} was not captured; there is {known}. Add it to the sites of capture()."
            )
        return self.states[wanted[0]]

    __iter__ = None  # states are looked up by site or layer; they are no sequence

    def __len__(self) -> int:
        """Rows of every site."""
        return len(self.example)

    def __repr__(self) -> str:
        rows, prompts = counted(len(self), "row"), counted(self.n_prompts, "prompt")
        return f"Activations({rows} of {prompts} at {counted(len(self.states), 'site')}, {self.model_name})"

    def _repr_html_(self) -> str:
        return states_html(self)

    @classmethod
    def from_transformer_lens(
        cls,
        cache: Any,
        model: LanguageModel,
        tokens: Tokens,
        *,
        positions: Selector = All(),  # noqa: B008  # frozen
    ) -> Activations:
        """The states in a TransformerLens `ActivationCache`, as `capture` gives them.

        Args:
            cache: of ``bridge.run_with_cache(tokens.input_ids)``, with batch dimension, every position, "hook_embed".
            model: the model around that bridge.
            tokens: the batch the bridge ran on, ``model.tokenize(texts, padding_side="right")``. Without an attention
                mask the bridge attends to padding on the left.
            positions: which tokens to keep.

        Raises:
            SteerlabError: the cache is of another bridge, batch or texts, or holds no embeddings or none of the sites.
        """
        if getattr(cache, "model", None) is not model.source:
            raise SteerlabError(
                f"The cache belongs to another bridge than {model.name}; load its bridge with sl.load(bridge)."
            )
        if tokens.padding_side == "left" and len(set(tokens.lengths)) > 1:
            raise SteerlabError(
                "A batch padded on the left has other states in the bridge, which takes no mask; use "
                "tokenize(texts, padding_side='right')."
            )
        model.engine.check()
        states, chosen = dict[Site, Tensor](), tokens.select(positions)
        for name in cache:
            site = _site_of(name, model)
            if site is None or site in states:
                continue
            state = cache[name]
            if tuple(state.shape[:2]) != tuple(tokens.input_ids.shape):
                raise SteerlabError(
                    f"{name} has the shape {tuple(state.shape)}, but the batch has {len(tokens)} prompts of "
                    f"{tokens.width} columns; give the tokens the cache was made from."
                )
            rows = state.flatten(2)[chosen.rows, chosen.columns]  # z keeps its heads apart there
            states[site] = rows.detach().float().cpu()
        if not states:
            raise SteerlabError(
                "The cache holds none of the model's sites; run_with_cache without a names_filter, or with "
                "names of Site.to_transformer_lens()."
            )
        _require_embeddings_of(tokens, cache, model)
        return cls(
            states={site: states[site] for site in sorted(states)},
            example=chosen.rows,
            position=chosen.indices,
            n_prompts=len(tokens),
            model_name=model.name,
            fingerprint=model.fingerprint,
            positions=repr(positions),
            **hashes(tokens.prompts),
        )

    def to_transformer_lens(self, model: LanguageModel) -> Any:
        """An `ActivationCache` of the states, for TransformerLens' analyses.

        Args:
            model: a model loaded from a `TransformerBridge`, the cache's model.

        Raises:
            SteerlabError: the states belong to another checkpoint, the model is no bridge, or prompts have unequal
                numbers of rows, which fill no ``[batch, position, ...]`` tensor.
        """
        from transformer_lens import ActivationCache

        if model.fingerprint != self.fingerprint:
            raise SteerlabError(f"The states come from {self.model_name}, not from {model.name}.")
        if not isinstance(model.engine, TransformerLens):
            raise SteerlabError(
                f"{model.name} is no TransformerBridge; load it with backend='transformer_lens' for a cache."
            )
        counts = torch.bincount(self.example, minlength=self.n_prompts)
        if int(counts.min()) != int(counts.max()):
            raise SteerlabError(
                f"The prompts have between {int(counts.min())} and {int(counts.max())} rows; a cache needs as many of "
                "each, so capture one position (or prompts of one length)."
            )
        cache = {}
        for site in self.sites:
            state = self.states[site].reshape(self.n_prompts, int(counts[0]), -1)
            heads = state.unflatten(2, (model.n_heads, -1)) if site.name == "z" else state
            cache[site.to_transformer_lens()] = heads.to(model.device)
        return ActivationCache(cache, model.source)


def _require_embeddings_of(tokens: Tokens, cache: Any, model: LanguageModel) -> None:
    """Raise `SteerlabError` unless the cache was made from these tokens, as its embeddings say."""
    embed = Site("embed")
    name = embed.to_transformer_lens()
    if name not in cache:
        raise SteerlabError(
            f"The cache does not say which texts it was made from; add {name!r} to the names_filter."
        )
    own: list[Tensor] = []
    model.run(tokens, read={embed: own.append})
    there = tokens.attention_mask.bool()
    cached, expected = (state.detach().float().cpu()[there] for state in (cache[name], own[0]))
    if not torch.allclose(cached, expected):
        raise SteerlabError("The cache was made from other texts; give the tokens it was made from.")


def _site_of(name: str, model: LanguageModel) -> Site | None:
    """Our site for a name in a cache, if it is one."""
    try:
        site = Site.parse(name)
        model.require(site)
    except SiteError:
        return None
    return site
