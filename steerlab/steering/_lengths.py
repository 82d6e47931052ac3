"""Lengths that an ablation takes from what each input of a part writes, and the factors that put them back.

With W [d_model, d_in] the map of a part that writes to the stream, w_j its columns and Q the orthonormal basis removed:

    s_j = ‖w_j‖ / ‖w_j − Q Qᵀ w_j‖        W ← (W − Q Qᵀ W) diag(s)

Each column, what one input writes, keeps its length, and nothing is written along Q. Scaling columns is scaling inputs,
so with y = W h + b the same is done without touching weights: h ← s ⊙ h in front of W, y ← y − Q Qᵀ y behind it.

Length by input is Lai's (Norm-Preserving Biprojected Abliteration, 2025, whose code transposes W first). heretic's row
normalisation keeps the length of rows instead (what each coordinate of the stream gets), after which a part along Q is
written again.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.models.sites import CONTRIBUTIONS
from steerlab.steering._writers import Part, Writers

#: The site in front of the map whose output is read at another.
INPUTS = {"attn_out": "z", "mlp_out": "mlp_post"}
#: A column of which less is left lies in the span: it stays what is left, since its direction would be rounding.
_GONE = 1e-3


def stream_outputs(model: LanguageModel) -> tuple[Site, ...]:
    """Every site of a model at which attention, a mixer or an MLP writes to the stream."""
    names = model.site_names()
    return tuple(sorted(site for name in CONTRIBUTIONS if name in names for site in model.sites(name)))


def input_of(site: Site) -> Site | None:
    """The site in front of the map that writes at `site`; None where there is none."""
    return Site(INPUTS[site.name], site.layer) if site.name in INPUTS else None


def factors(model: LanguageModel, site: Site, basis: Float[Tensor, "d_model k"]) -> tuple[Site, Tensor]:
    """The site in front of the map that writes at `site`, and s of that map [d_in], float64 on the CPU.

    Raises:
        SteeringError: the part is no single map that writes to the stream as it is.
    """
    before, part = _map(model, site)
    matrix = part.matrix.detach()
    precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    length = precise.square().sum(0).double()
    removed = (basis.to(precise).T @ precise).square().sum(0).double()
    share = torch.where(length > 0, 1 - removed / length, torch.ones_like(length))
    return before, torch.where(share > _GONE**2, share, torch.ones_like(share)).rsqrt().cpu()


def _map(model: LanguageModel, site: Site) -> tuple[Site, Part]:
    """The map that writes at a site and the place in front of it, or why its columns cannot keep their length."""
    names, layer = model.anatomy.names, site.layer
    assert layer is not None
    what = {"attn_out": "attention", "mlp_out": "MLP"}.get(site.name, "mixer")
    before = input_of(site)
    if before is None:
        raise SteeringError(
            f"Layer {layer} has a mixer in attention's place, and what is in front of its output is no site, so its "
            f"columns cannot keep their length there; name sites='mlp_out', or leave preserve out."
        )
    if (names.attention_post_norm if site.name == "attn_out" else names.mlp_post_norm) is not None:
        raise SteeringError(
            f"What the {what} of layer {layer} writes is normalised before it enters the stream (a post-norm family), "
            "so the length of its weights' columns means nothing there; leave preserve out."
        )
    if not model.anatomy.has(before):
        raise SteeringError(
            f"The {what} of layer {layer} is no single map (a mixture of experts has one for each expert), so no "
            "factor a column keeps all lengths; leave preserve out, or name other sites."
        )
    writers = Writers(model)
    try:
        attends = site.name == "attn_out"
        return before, writers.attention(layer) if attends else writers.down_projection(layer)
    except SteeringError as error:
        said = str(error).replace("steer with hooks", "leave preserve out")
        raise SteeringError(f"The lengths of weights are kept where they can be read: {said}") from error
