"""Sites: the named places of a model where states are read and edited.

The names are TransformerLens'. `resid_pre.l` is the input of block l and `resid_post.l` its output,
`resid_mid.l` lies between attention and MLP; `attn_out.l` and `mlp_out.l` are what is *added* to the
residual stream (after a post-norm and a residual multiplier where the family has one); `z.l` is the
input of the attention's output projection (heads concatenated), `mlp_post.l` the input of the MLP's
down projection (the neurons); `embed` is the token embedding's output, `ln_final_in` the input of the
final norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering

from steerlab.errors import SiteError

LAYER_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z")
MODEL_SITES = ("embed", "ln_final_in")
SITE_NAMES = (*LAYER_SITES, *MODEL_SITES)

# Order of the forward pass, so that sorted sites read in the order in which they are computed.
_DEPTH = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")


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
            raise SiteError(f"There is no site called {self.name!r}; the sites are {', '.join(SITE_NAMES)}.")
        if self.name in MODEL_SITES and self.layer is not None:
            raise SiteError(f"Site {self.name!r} belongs to the whole model; give it no layer.")
        if self.name in LAYER_SITES and self.layer is None:
            raise SiteError(f"Site {self.name!r} needs a layer, for example Site({self.name!r}, 0).")
        if self.layer is not None and self.layer < 0:
            raise SiteError(f"Site {self.name}.{self.layer} has a negative layer; layers count from 0.")

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site written as `name.layer` (or `name` alone)."""
        name, dot, layer = text.partition(".")
        if not dot:
            return cls(name)
        if not layer.isdecimal():
            raise SiteError(f"{text!r} is not a site; write it like 'resid_post.12' or 'embed'.")
        return cls(name, int(layer))

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    def __lt__(self, other: Site) -> bool:
        return self._depth < other._depth

    @property
    def _depth(self) -> tuple[float, int]:
        if self.layer is None:
            return (-1.0, 0) if self.name == "embed" else (float("inf"), 0)
        return float(self.layer), _DEPTH.index(self.name)
