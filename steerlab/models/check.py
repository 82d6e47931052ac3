"""The load-time proof that the map of the model is right for this checkpoint.

On four tokens every site is read once, and these must hold:

    resid_mid.l  = resid_pre.l + attn_out.l                (sequential families)
    resid_post.l = resid_pre.l + attn_out.l + mlp_out.l
                   with mixer_out.l in attention's place, or added to it, where a block has another mixer
    resid_pre.l+1 = resid_post.l,   ln_final_in = resid_post.last
    unembed(ln_final_in) = the model's own logits

Errors are relative to the largest entry of the state. In passing it finds the sites whose tensors the
model later changes in place (Falcon's MLP output); reads copy those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steerlab.models.hooks import attach
from steerlab.models.modes import evaluating
from steerlab.models.prompts import Prompt, Tokens
from steerlab.models.sites import Site

if TYPE_CHECKING:
    from steerlab.models.passes import Passes

_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mixer_out", "mlp_out")


@dataclass(frozen=True)
class CheckRow:
    """One proved equality: the part, the largest relative error over layers, and whether it holds."""

    part: str
    error: float
    ok: bool


@dataclass(frozen=True)
class SelfCheck:
    """Result of the self-check, one row for each kind of part.

    Attributes:
        rows: the equalities, in the order of the forward pass.
        tolerance: the relative error allowed in the model's dtype.
        changed_in_place: names of sites whose tensors the model overwrites later.
    """

    rows: tuple[CheckRow, ...]
    tolerance: float
    changed_in_place: frozenset[str]

    @property
    def ok(self) -> bool:
        """Whether every equality holds."""
        return all(row.ok for row in self.rows)

    @property
    def failed(self) -> tuple[CheckRow, ...]:
        """The equalities that do not hold."""
        return tuple(row for row in self.rows if not row.ok)


def self_check(model: Passes) -> SelfCheck:
    """Run the check; see the module's text."""
    return verdict(model, *_read(model))


def verdict(model: Passes, states: dict[Site, Tensor], changed: set[str], logits: Tensor | None) -> SelfCheck:
    """The equalities, judged on the states of every site and the model's own logits (if they are given)."""
    tolerance = max(1e-4, 4 * torch.finfo(model.dtype).eps)
    worst: dict[str, tuple[float, str]] = {}
    for kind, where, left, right in _equalities(model, states, logits):
        error = _relative_error(left, right)
        if kind not in worst or not error <= worst[kind][0]:
            worst[kind] = (error, where)
    rows = tuple(
        CheckRow(kind if error <= tolerance else f"{kind} ({where})", error, error <= tolerance)
        for kind, (error, where) in worst.items()
    )
    return SelfCheck(rows, tolerance, frozenset(changed))


def _read(model: Passes) -> tuple[dict[Site, Tensor], set[str], Tensor]:
    """States of every site, names of the sites changed in place, and the model's own logits."""
    anatomy = model.anatomy
    states: dict[Site, Tensor] = {}
    seen: list[tuple[Site, Tensor, int]] = []

    def keep(site: Site, state: Tensor) -> None:
        states[site] = state.clone()
        seen.append((site, state, state._version))

    sites = [site for name in anatomy.site_names() for site in anatomy.sites(name)]
    ids = probe(model.vocab_size).input_ids.to(model.device)
    # no_grad rather than inference_mode: only ordinary tensors count their in-place changes.
    with torch.no_grad(), evaluating(model.model), ExitStack() as stack:
        stack.enter_context(model.frames.watch(anatomy.base))
        for site in sites:
            visit = lambda state, site=site: keep(site, state)  # noqa: E731
            stack.callback(attach(anatomy.tap(site), model.frames, visit))
        logits = anatomy.model(input_ids=ids, use_cache=False).logits
    changed = {site.name for site, state, version in seen if state._version != version}
    return states, changed, logits[..., : model.vocab_size].float()


def probe(vocab_size: int) -> Tokens:
    """The batch of the check: four tokens spread over the vocabulary."""
    ids = (torch.arange(1, 5) * 7919 % vocab_size)[None]
    return Tokens(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(4)[None],
        offsets=None,
        prompts=(Prompt(""),),
        lengths=(4,),
        padding_side="right",
    )


def _equalities(
    model: Passes, states: dict[Site, Tensor], logits: Tensor | None
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    last = model.n_layers - 1
    for layer in range(last + 1):
        at = {name: states.get(Site(name, layer)) for name in _STREAM}
        pre, mid, post, mlp = (at[name] for name in ("resid_pre", "resid_mid", "resid_post", "mlp_out"))
        assert pre is not None
        assert post is not None
        mixed = {name: state for name in ("attn_out", "mixer_out") if (state := at[name]) is not None}
        written = " + ".join(["resid_pre", *mixed])
        after = pre + sum(mixed.values(), torch.zeros_like(pre))
        if mid is not None:
            yield f"resid_mid = {written}", f"layer {layer}", mid, after
        if mlp is not None:
            written, after = f"{written} + mlp_out", after + mlp
        yield f"resid_post = {written}", f"layer {layer}", post, after
        if layer < last:
            yield (
                "resid_pre of the next layer = resid_post",
                f"layer {layer}",
                states[Site("resid_pre", layer + 1)],
                post,
            )
    final = states[Site("resid_post", last)]
    if Site("ln_final_in") in states:
        yield (
            "ln_final_in = resid_post of the last layer",
            f"layer {last}",
            states[Site("ln_final_in")],
            final,
        )
    if logits is not None:
        yield "unembed(ln_final_in) = logits", "after the last layer", model.unembed(final), logits


def _relative_error(left: Tensor, right: Tensor) -> float:
    left, right = left.double().cpu(), right.double().cpu()
    scale = right.abs().max().clamp(min=1e-30)
    return float(((left - right).abs().max() / scale).item())
