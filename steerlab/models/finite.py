"""States and logits that are not finite are found where they arise, and named, before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteerlabError
from steerlab.models.sites import Site

if TYPE_CHECKING:
    from steerlab.models.passes import Passes
    from steerlab.models.prompts import Tokens


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; waits for the device."""
    return bool(torch.isfinite(values).all())


def largest(values: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """The largest magnitude, NaN or infinite where a value is: one number, still on the device.

    A hook keeps it and asks nothing, so that no layer waits for the one before.
    """
    return torch.linalg.vector_norm(values, torch.inf) if values.numel() else values.new_zeros(())


def first_not_finite(found: Mapping[Site, Float[Tensor, ""]]) -> Site | None:
    """The first site whose `largest` is NaN or infinite; waits for the device once."""
    if not found:
        return None
    device = next(iter(found.values())).device
    fine = torch.isfinite(torch.stack([number.to(device) for number in found.values()])).cpu().tolist()
    return next((site for site, is_fine in zip(found, fine, strict=True) if not is_fine), None)


def not_finite(model: Passes, tokens: Tokens, where: Site | None = None) -> SteerlabError:
    """The error for a batch whose pass is not finite: the first site and prompt at which it happens.

    where: the site that was read; None for logits.
    """
    found = _first(model, tokens)
    if found is None:  # only what was read is not finite, or only the logits
        place, row = (str(where) if where is not None else "the logits"), 0
    else:
        place, row = str(found[0]), found[1]
    prompt = tokens.prompts[row].text if tokens.prompts else ""
    shown = f" ({prompt[:40]!r})" if prompt else ""
    return SteerlabError(
        f"Numbers of {model.name} are not finite from {place} on, first in prompt {tokens.rows[row]}{shown}: "
        f"{model.dtype} overflows there, or an intervention is too strong; load it with dtype='float32', or steer less."
    )


def _first(model: Passes, tokens: Tokens) -> tuple[Site, int] | None:
    """The first site of the residual stream, and the row of a batch, with a value that is not finite."""
    found: dict[Site, int] = {}
    rows, columns = torch.nonzero(tokens.attention_mask, as_tuple=True)

    def look(site: Site, state: Any) -> None:
        bad = ~torch.isfinite(state[rows.to(state.device), columns.to(state.device)]).all(dim=1).cpu()
        if bool(bad.any()):
            found[site] = int(rows[bad][0])

    sites = [site for name in ("resid_pre", "resid_post") for site in model.sites(name)]
    model.run(tokens, read={site: lambda state, site=site: look(site, state) for site in sites})  # type: ignore[misc]
    return min(found.items()) if found else None


class FiniteLogits:
    """For transformers' `generate`: raises where the next token's logits are not finite."""

    def __init__(self, model: Passes, tokens: Tokens) -> None:
        self._model, self._tokens = model, tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        require_scores(self._model.name, scores, input_ids.shape[1] - self._tokens.width)
        return scores


def require_scores(name: str, scores: Tensor, step: int) -> None:
    """Raise `SteerlabError` where a next token's scores hold NaN or +inf; -inf is a token left out."""
    if scores.numel() and not bool(scores.amax() < torch.inf):  # the largest of numbers with a NaN is NaN
        raise SteerlabError(
            f"The logits of {name} are not finite at new token {step}: its dtype overflows, or an intervention is too "
            "strong; load it with dtype='float32', or steer less."
        )
