"""Sites: the named places of a model where states are read and edited.

The names are TransformerLens'. `resid_pre.l` is the input of block l and `resid_post.l` its output,
`resid_mid.l` lies between attention and MLP; `attn_out.l` and `mlp_out.l` are what is *added* to the
residual stream (after a post-norm and a residual multiplier where the family has one), and so is
`mixer_out.l` where a block has linear attention, a convolution or a state-space mixer; `z.l` is the
input of the attention's output projection (heads concatenated), `mlp_post.l` the input of the MLP's
down projection (the neurons); `embed` is the token embedding's output, `ln_final_in` the input of the
final norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import total_ordering
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from steerlab.errors import SiteError, kind_of

if TYPE_CHECKING:
    from steerlab.models.checkpoint import Checkpoint
    from steerlab.models.language_model import LanguageModel

LAYER_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mixer_out", "mlp_out", "mlp_post", "z")
MODEL_SITES = ("embed", "ln_final_in")
SITE_NAMES = (*LAYER_SITES, *MODEL_SITES)

# Order of the forward pass, so that sorted sites read in the order in which they are computed.
_DEPTH = ("resid_pre", "z", "attn_out", "mixer_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")

#: What enters the residual stream inside a block.
CONTRIBUTIONS = ("attn_out", "mixer_out", "mlp_out")

# TransformerLens' hook names; those of a layer follow `blocks.{layer}.`.
_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mixer_out": "mixer.hook_out",
    "mlp_out": "hook_mlp_out",
    "mlp_post": "mlp.hook_post",
    "z": "attn.hook_z",
    "embed": "hook_embed",
    "ln_final_in": "ln_final.hook_in",
}
# What the bridge itself calls the same places (its names for attn_out and mlp_out depend on the family).
_BRIDGE_HOOKS = {
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.o.hook_in": "z",
    "mlp.out.hook_in": "mlp_post",
    "embed.hook_out": "embed",
}
_SITE_OF_HOOK = {hook: name for name, hook in _HOOKS.items()} | _BRIDGE_HOOKS

#: One site, or a family of them: `Site("resid_post", 5)`, "resid_post.5", "blocks.5.hook_resid_post", "resid_post".
SiteName: TypeAlias = "Site | str"
#: What functions take that read or act at sites.
SitesGiven: TypeAlias = "SiteName | Iterable[SiteName]"


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in the model: a name and, but for `embed` and `ln_final_in`, a layer counted from 0.

    >>> str(Site("resid_post", 12)), Site.parse("resid_post.12") == Site("resid_post", 12)
    ('resid_post.12', True)

    Raises:
        SiteError: for an unknown name, a missing layer, a layer where there is none, a negative layer.
    """

    name: str
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.name not in SITE_NAMES:
            raise SiteError(_unknown(self.name))
        if self.name in MODEL_SITES and self.layer is not None:
            raise SiteError(f"Site {self.name!r} belongs to the whole model; give it no layer.")
        if self.name in LAYER_SITES and self.layer is None:
            raise SiteError(f"Site {self.name!r} needs a layer, for example Site({self.name!r}, 0).")
        if type(self.layer) not in (int, type(None)):
            object.__setattr__(self, "layer", _whole(self.layer, self.name))
        if self.layer is not None and self.layer < 0:
            raise SiteError(f"Site {self.name}.{self.layer} has a negative layer; layers count from 0.")

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site written as `name.layer` (or `name` alone), or as TransformerLens' hook name."""
        _require_text(text)
        if "hook_" in text:
            return cls._of_hook(text)
        name, dot, layer = text.partition(".")
        if not dot:
            return cls(name)
        if name not in SITE_NAMES:
            raise SiteError(_unknown(name))
        if re.fullmatch(r"-\d+", layer):
            raise SiteError(
                f"{text!r} counts its layer from the end; write model.sites({name!r}, [{layer}]), which knows the end."
            )
        if not layer.isdecimal():
            raise SiteError(f"{text!r} is not a site; write it like 'resid_post.12' or 'embed'.")
        return cls(name, int(layer))

    @classmethod
    def _of_hook(cls, text: str) -> Site:
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", text)
        name = _SITE_OF_HOOK.get(block[2] if block else text)
        if name is None or (name in LAYER_SITES) != (block is not None):
            known = ", ".join(
                hook if name in MODEL_SITES else f"blocks.0.{hook}" for name, hook in _HOOKS.items()
            )
            raise SiteError(f"TransformerLens' hook {text!r} is not one of our sites; those are {known}.")
        return cls(name, int(block[1]) if block else None)

    def to_transformer_lens(self) -> str:
        """TransformerLens' hook name of the site, which `parse` reads back.

        The values agree in every family but for `z`, where TransformerLens keeps the heads apart, and for `embed`
        of Granite and BLOOM, where its hook lies behind the embedding's multiplier or norm.

        >>> Site("resid_post", 3).to_transformer_lens(), Site.parse("blocks.3.hook_resid_post")
        ('blocks.3.hook_resid_post', Site(name='resid_post', layer=3))
        """
        hook = _HOOKS[self.name]
        return hook if self.layer is None else f"blocks.{self.layer}.{hook}"

    def to_nnsight(self, model: LanguageModel) -> str:
        """Where nnsight finds the site in this model, from its root: `nn.get(path)` inside a trace.

        The value there is the module's own: of a tuple (most attentions give one) the state is the first item, and
        Granite's attn_out and mlp_out are still to be multiplied by the residual multiplier.

        >>> Site("resid_post", 3).to_nnsight(llama)  # doctest: +SKIP
        'model.layers.3.output'

        Raises:
            SiteError: the model has no such site.
        """
        return f"{model.anatomy.path(self)}.{model.anatomy.tap(self).side}"

    @classmethod
    def from_nnsight(cls, path: str, model: LanguageModel) -> Site:
        """The site of this model that `to_nnsight` writes as `path`.

        Raises:
            SiteError: there is none.
        """
        for name in model.site_names():
            for site in model.sites(name):
                if site.to_nnsight(model) == path:
                    return site
        example = Site("resid_post", 0).to_nnsight(model)
        raise SiteError(f"{path!r} is none of the sites of {model.name}; write it like {example!r}.")

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    def __lt__(self, other: Site) -> bool:
        return self._depth < other._depth

    @property
    def _depth(self) -> tuple[float, int]:
        if self.layer is None:
            return (-1.0, 0) if self.name == "embed" else (float("inf"), 0)
        return float(self.layer), _DEPTH.index(self.name)


def sites_of(model: Checkpoint, given: SitesGiven) -> list[Site]:
    """The sites of a model that somebody wrote down, each once, in the order given.

    Args:
        model: the model whose sites are meant.
        given: a family's name ("resid_post": every layer that has it), "resid_post.2", TransformerLens' hook name,
            a `Site`, or a list with any of them.

    Raises:
        SiteError: something else, or a site that the model has not.
    """
    sites: dict[Site, None] = {}
    for part in _parts(given):
        if isinstance(part, str) and part in LAYER_SITES:
            sites |= dict.fromkeys(model.sites(part))
            continue
        site = site_of(part)
        model.require(site)
        sites[site] = None
    return list(sites)


def sites_among(known: Sequence[Site], given: SitesGiven | int) -> list[Site]:
    """The sites that somebody wrote down to somebody who knows only these: a direction, or captured states.

    A family's name stands for the known sites of that name, a number for the layer where one family is known. A site
    that is written out need not be known.

    Raises:
        SiteError: something that means no site.
    """
    sites: dict[Site, None] = {}
    for part in _parts(given):
        family = [site for site in known if site.name == part]
        if isinstance(part, str) and part in LAYER_SITES and family:
            sites |= dict.fromkeys(family)
        elif is_layer(part):
            sites[_at_layer(known, index(part))] = None
        else:
            sites[site_of(part)] = None
    return list(sites)


def is_layer(part: Any) -> bool:
    """Whether somebody wrote a layer's number, NumPy's included."""
    return hasattr(part, "__index__") and not isinstance(part, bool) and not getattr(part, "ndim", 0)


def _whole(layer: Any, name: str) -> int:
    try:
        return index(layer)
    except TypeError as error:
        raise SiteError(
            f"A layer is a number counted from 0, not {layer!r}; write Site({name!r}, 5)."
        ) from error


def _require_text(given: Any) -> None:
    if not isinstance(given, str):
        raise SiteError(f"A site is written like 'resid_post.12', not as {kind_of(given)}.")


def _parts(given: Any) -> list[Any]:
    if isinstance(given, Site | str | int) or not isinstance(given, Iterable) or isinstance(given, Mapping):
        return [given]
    return list(given)


def site_of(part: Any) -> Site:
    """One site that somebody wrote down: a `Site`, "resid_post.5", TransformerLens' hook name.

    Raises:
        SiteError: something else.
    """
    if isinstance(part, Site):
        return part
    if not isinstance(part, str):
        raise SiteError(
            f"{kind_of(part) if isinstance(part, type) else repr(part)} is not a site; write 'resid_post.12' for one "
            "layer, 'resid_post' for all, or a list of them."
        )
    return Site.parse(part)


def _at_layer(known: Sequence[Site], layer: int) -> Site:
    names = list(dict.fromkeys(site.name for site in known))
    if not names:
        raise SiteError(f"Layer {layer} alone says no site; write 'resid_post.{layer}'.")
    if len(names) != 1 or names[0] in MODEL_SITES:
        raise SiteError(
            f"Layer {layer} alone says no site where there is {', '.join(names)}; write '{names[0]}.{layer}'."
        )
    return Site(names[0], layer)


def _unknown(name: str) -> str:
    if str(name).partition(".")[0] in SITE_NAMES:
        return f"A site's name has no layer in it; write Site.parse({name!r}), or {name!r} where sites are asked for."
    alike = get_close_matches(str(name), SITE_NAMES, n=1)
    hint = f"did you mean {alike[0]!r}? The" if alike else "the"
    return f"There is no site called {name!r}; {hint} sites are {', '.join(SITE_NAMES)}, written like 'resid_post.12'."
