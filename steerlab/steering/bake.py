"""Bake interventions into weights: a plain model that computes what the steered one computes, at no cost.

    Add      one vector at every token is a bias of the part that wrote the state (resid_post.l: the MLP's down
             projection of block l; resid_pre.0: the embedding; z: W_O δ on the output projection, as ITI does)
    Ablate   W ← W − Q Qᵀ W for every part that writes to the stream (Arditi et al. 2024), biases and learned
             positions included; tied embeddings are untied first, since the unembedding only reads. Toward one number
             that component is a constant where the stream begins. With preserve="norm" each column of the output
             projections of attention and MLPs keeps its length: (W − Q Qᵀ W) diag(s). Toward a mean it differs from
             block to block and what earlier blocks wrote would have to be undone there, which no weights do

Both are exact up to rounding, or refused with the reason. The result is proved on a few tokens against the hooks before
it is handed out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import All, Edit, LanguageModel, Site
from steerlab.models.backends.native import Transformers
from steerlab.models.edits import SteeringGiven, edits_of
from steerlab.models.offloaded import is_away
from steerlab.models.quantised import method_of
from steerlab.models.sites import CONTRIBUTIONS
from steerlab.steering import _biases
from steerlab.steering._proof import logits, prove
from steerlab.steering._writers import Part, Writers, project
from steerlab.steering.ablate import Ablate, stream_writes
from steerlab.steering.add import Add

_KNOWN = ("direction", "sites", "strength", "unit", "positions", "toward", "preserve", "keep")
_TINY = 1e-6


def bake(model: LanguageModel, *edits: SteeringGiven, in_place: bool = False) -> LanguageModel:
    """A model whose weights do what `interventions` do with hooks, in `forward`, `generate` and every engine.

    Args:
        model: a transformers model in floating point, outside `model.steering`.
        edits: `Add` and `Ablate` on all tokens, in the order in which `steering` would apply them.
        in_place: change the weights of `model` itself rather than of a copy; it is another model afterwards.

    Returns:
        A `LanguageModel` with a fingerprint of its own; directions are moved to it with `direction.moved_to`.

    Raises:
        SteeringError: an intervention is not a constant change of weights in this family; the message says why.
        DirectionError: a direction does not belong to the model.

    Example:
        >>> plain = bake(model, Ablate(refusal))  # doctest: +SKIP
    """
    return bake_with_goal(model, edits, in_place=in_place)[0]


def bake_with_goal(
    model: LanguageModel, edits: Sequence[SteeringGiven], *, in_place: bool = False
) -> tuple[LanguageModel, Float[Tensor, "position vocab"]]:
    """The baked model, and the steered logits that it was proved by; see :func:`bake`."""
    interventions: Any = edits_of(edits) if edits else []
    _require_bakeable(model, interventions)
    _plan(Writers(model), interventions)  # refuses before anything is copied or changed
    expected = logits(model, interventions)
    module = model.model if in_place else copy.deepcopy(model.model)
    baked = LanguageModel(Transformers(module), model.tokenizer, name=f"{model.name} (baked)")
    baked.self_check()
    writers = Writers(baked)
    steps = _plan(writers, interventions)
    with torch.no_grad():
        if any(step.part.module is baked.anatomy.embed for step in steps):
            writers.untie()
        for part_steps in _by_module(steps):
            with _rounded_once(part_steps[0].part.module):
                for step in part_steps:
                    step.take(baked)
    if in_place:
        for remembered in ("fingerprint", "final_norm_gain"):
            model.__dict__.pop(remembered, None)
    prove(baked, expected, what="baked form")
    return baked, expected


@dataclass(frozen=True)
class _Step:
    """One change of one part."""

    part: Part
    verb: Literal["project", "project_input", "scale_input", "shift", "shift_input"]
    tensor: Tensor
    #: Of a projection, where it is not all of it.
    share: float | None = None

    def take(self, model: LanguageModel) -> None:
        """Change the part; a constant that has no place yet gets one."""
        if self.verb.startswith("shift") and self.part.constant is None:
            _biases.grow(model, self.part.name)
        share = () if self.share is None else (self.share,)
        getattr(self.part, self.verb)(self.tensor, *share)


def why_not_baked(model: LanguageModel) -> str:
    """Why an ablation of the whole stream cannot be put into this model's weights; "" where it can."""
    any_direction = Direction(
        {Site("resid_post", 0): torch.ones(model.d_model)}, model.name, model.fingerprint
    )
    try:
        _require_bakeable(model, [Ablate(any_direction)])
        writers = Writers(model)
        for part in (
            *writers.start(),
            *(part for at in range(model.n_layers) for part in writers.contributions(at)),
        ):
            part.outputs  # noqa: B018  # raises where a part's weights cannot be projected
    except SteeringError as error:
        return str(error)
    return ""


def _require_bakeable(model: LanguageModel, interventions: Sequence[Edit]) -> None:
    if not interventions:
        raise SteeringError(
            "Baking needs at least one intervention; give bake(model, ...) an Add or an Ablate."
        )
    if model.backend != "transformers":
        raise SteeringError(
            f"Weights are baked in transformers models, not through {model.backend}; load the model with "
            "backend='transformers'."
        )
    if any(is_away(part) for part in model.model.modules()):
        raise SteeringError(
            f"Some weights of {model.name} are offloaded, so they cannot be changed here; load it on one device."
        )
    if model.frames.watched:
        raise SteeringError(
            "Baking inside model.steering(...) would mix hooks and weights; leave the context first."
        )
    method = method_of(model.model)
    if method:
        raise SteeringError(
            f"{model.name} is quantised ({method}), so its weights cannot be changed; load it in bfloat16."
        )
    for edit in interventions:
        require_constant(edit)
        edit.check(model)
        for site in edit.sites:
            model.require(site)


def require_constant(edit: Edit) -> None:
    """Raise `SteeringError` unless an edit does the same to every token of every run.

    Anything an edit may carry beyond direction, sites, strength, unit and positions (a schedule, a condition) makes it
    depend on the token, so it has to be left at its default.
    """
    kind = type(edit).__name__
    if not isinstance(edit, Add | Ablate):
        raise SteeringError(
            f"{kind} is not among the changes that become weights; only Add and Ablate can be baked or exported."
        )
    if not isinstance(edit.positions, All):
        raise SteeringError(
            f"{kind} acts at {edit.positions} only, and weights act on every token; give it positions=All() or steer "
            "with hooks."
        )
    for field in fields(edit):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.init and field.name not in _KNOWN and getattr(edit, field.name) != default:
            raise SteeringError(
                f"{kind} has {field.name}={getattr(edit, field.name)!r}, which depends on the token or the run; "
                "weights act on all alike, so leave it out or steer with hooks."
            )


def shift_of(edit: Add, site: Site) -> Tensor:
    """What an `Add` adds to every state at a site, in float64.

    Raises:
        SteeringError: when it is not the same for every state.
    """
    width = edit.direction.vectors[edit.direction.source(site)].shape[1]
    nothing = torch.zeros(width, dtype=torch.float64)
    probe = torch.linspace(-1.0, 1.0, width, dtype=torch.float64)
    shift = edit.apply(nothing, site)
    if not torch.allclose(edit.apply(probe, site) - probe, shift, atol=1e-9, rtol=1e-9):
        raise SteeringError(
            f"{edit.unit} strengths depend on the state, so no bias does the same; use raw, class_gap or norm."
        )
    return shift


def _by_module(steps: Sequence[_Step]) -> list[list[_Step]]:
    """The steps of each module, in their order; those of different modules change different parameters."""
    grouped: dict[int, list[_Step]] = {}
    for step in steps:
        grouped.setdefault(id(step.part.module), []).append(step)
    return list(grouped.values())


@contextmanager
def _rounded_once(module: nn.Module) -> Iterator[None]:
    """A module's own parameters in float32 (or float64) inside, in their dtype again afterwards: one rounding."""
    before = {name: part.dtype for name, part in module.named_parameters(recurse=False)}
    for part in module.parameters(recurse=False):
        part.data = part.data.to(torch.promote_types(part.dtype, torch.float32))
    try:
        yield
    finally:
        first = next(iter(before.values()))
        for name, part in module.named_parameters(recurse=False):
            part.data = part.data.to(before.get(name, first))


# ---------------------------------------------------------------------------------------------------------- planning


def _plan(writers: Writers, edits: Sequence[Edit]) -> list[_Step]:
    """The changes of weights, in the order in which they have to be written."""
    for edit in edits:
        if isinstance(edit, Ablate):
            _require_number(edit)
    everywhere = {
        index: edit.basis(edit.sites[0])
        for index, edit in enumerate(edits)
        if isinstance(edit, Ablate) and _is_everywhere(edit, writers.model)
    }
    _require_commuting(edits, everywhere)
    inputs: list[_Step] = []
    outputs: list[_Step] = []
    late: list[_Step] = []
    for index, edit in enumerate(edits):
        if index in everywhere:
            outputs += _everywhere(writers, everywhere[index])
            late += _start(writers, edit, index, everywhere)
            continue
        for site in dict.fromkeys(edit.sites):
            at_input = site.name in ("z", "mlp_post")
            if isinstance(edit, Ablate) and (kept := edit.factors(site)) is not None:
                steps = [_Step(_reader(writers, site), "scale_input", kept)]
            elif isinstance(edit, Ablate):
                share = edit.share(site)
                steps = [
                    replace(step, share=None if share == 1 else share)
                    for step in _local(writers, site, edit.basis(site))
                ]
                steps += _shifts(steps, _kept(edit, site))
            else:
                assert isinstance(edit, Add)
                later = [basis for place, basis in everywhere.items() if place > index]
                steps = _addition(writers, site, shift_of(edit, site), later, list(everywhere.values()))
            # What acts on the stream comes after everything that acts on what a part writes.
            place = inputs if at_input else outputs if site.name in (*CONTRIBUTIONS, "embed") else late
            place += steps
    # Seen from the weights an input is changed by the last edit first: W A₂(A₁ h + b₁) + W b₂.
    return [*reversed(inputs), *outputs, *late]


def _is_everywhere(edit: Ablate, model: LanguageModel) -> bool:
    one_vector = all(len(direction.sites) == 1 for direction in (edit.direction, *edit.keep))
    return one_vector and edit.strength == 1 and set(edit.sites) == set(stream_writes(model))


def _require_commuting(edits: Sequence[Edit], everywhere: dict[int, Tensor]) -> None:
    """One ablation of the whole stream keeps what another removed out only if the two projections commute."""
    others = [
        edit.basis(site)
        for index, edit in enumerate(edits)
        if isinstance(edit, Ablate) and index not in everywhere
        for site in edit.sites
        if site.name in (*CONTRIBUTIONS, "embed")
    ]
    bases = list(everywhere.values())
    for place, first in enumerate(bases):
        for second in [*bases[place + 1 :], *others]:
            product = first @ (first.T @ second) @ second.T
            if float((product - product.T).norm()) > _TINY:
                raise SteeringError(
                    "Two ablations remove directions that are not orthogonal, so with hooks each brings back a part of "
                    "the other; ablate them as one subspace (a Direction with several vectors at its site)."
                )


def _everywhere(writers: Writers, basis: Tensor) -> list[_Step]:
    parts = writers.start()
    for layer in range(writers.model.n_layers):
        parts += writers.contributions(layer)
    return [_Step(part, "project", basis) for part in parts]


def _start(writers: Writers, edit: Edit, index: int, everywhere: dict[int, Tensor]) -> list[_Step]:
    """The component that an ablation of the whole stream toward a number leaves, put where the stream begins."""
    assert isinstance(edit, Ablate)
    first = stream_writes(writers.model)[0]
    kept = _kept(edit, first)
    if kept is None:
        return []
    others = {place: basis for place, basis in everywhere.items() if place != index}
    later = [basis for place, basis in others.items() if place > index]
    return _addition(writers, first, kept, later, list(others.values()))


def _kept(edit: Ablate, site: Site) -> Tensor | None:
    """What an ablation puts in place of the component at a site."""
    operator = edit.operator(site)
    assert operator is not None
    return operator.shift


def _shifts(steps: Sequence[_Step], kept: Tensor | None) -> list[_Step]:
    """What an ablation toward a number leaves at one site, behind its projections."""
    if kept is None:
        return []
    verbs: dict[str, Literal["shift", "shift_input"]] = {"project": "shift", "project_input": "shift_input"}
    return [_Step(step.part, verbs[step.verb], kept) for step in steps]


def _require_number(edit: Ablate) -> None:
    """Raise unless the component becomes the same at every site."""
    if edit.constant is None:
        raise SteeringError(
            "An ablation toward a mean, or toward values by site, sets another component at each block, and what "
            "earlier blocks wrote cannot be undone for later ones by weights; ablate toward 0 or one number "
            "everywhere, or steer with hooks."
        )


def _local(writers: Writers, site: Site, basis: Tensor) -> list[_Step]:
    """An ablation at one site: of what a part reads or writes there, but not of the stream alone."""
    match site.name, site.layer:
        case "z" | "mlp_post", _:
            return [_Step(_reader(writers, site), "project_input", basis)]
        case "attn_out" | "mixer_out" | "mlp_out", _:
            return [_Step(part, "project", basis) for part in writers.contribution(site)]
        case "embed", _:
            return [_Step(writers.embedding(), "project", basis)]
    raise SteeringError(
        f"An ablation at {site} alone removes what earlier layers wrote, which their weights cannot undo for this "
        "layer only; ablate everywhere (no sites), at z, mlp_post, attn_out, mlp_out or embed, or steer with hooks."
    )


def _reader(writers: Writers, site: Site) -> Part:
    """The map that reads at z or mlp_post."""
    assert site.layer is not None
    return writers.attention(site.layer) if site.name == "z" else writers.down_projection(site.layer)


def _addition(
    writers: Writers, site: Site, delta: Tensor, later: Sequence[Tensor], everywhere: Sequence[Tensor]
) -> list[_Step]:
    """A constant at one site; `later` are the ablations of the whole stream that come after it in order."""
    model = writers.model
    if not delta.any():
        return []
    if site.name in ("z", "mlp_post"):
        return [_Step(_reader(writers, site), "shift_input", delta)]
    last = site == stream_writes(model)[-1]
    # Where the stream is ablated again before anything reads it, only what all ablations leave remains.
    read_at_once = not last and (
        site.name in ("resid_pre", "resid_mid")
        or (site.name in ("attn_out", "mixer_out") and not model.anatomy.names.parallel)
    )
    here = () if site.name == "resid_mid" else later  # the one read place at which the stream is not ablated
    kept = project(delta, here if last or read_at_once else everywhere)
    if read_at_once and float((kept - project(kept, everywhere)).norm()) > _TINY * float(delta.norm()):
        raise SteeringError(
            f"What is added at {site} is read there and ablated further on, which no weights do; put the Ablate behind "
            "the Add at a site both act on (resid_pre, attn_out), or steer with hooks."
        )
    return [_Step(_carrier(writers, site), "shift", kept)] if kept.any() else []


def _carrier(writers: Writers, site: Site) -> Part:
    """The part whose bias is read at a site for the first time."""
    match site.name, site.layer:
        case "embed", _:
            return writers.embedding()
        case "resid_pre", 0:
            return writers.start_constant()
        case "resid_pre", int(layer):
            return writers.after_block(layer - 1)
        case "resid_post", int(layer):
            return writers.after_block(layer)
        case "resid_mid", int(layer):
            return writers.before_mlp(layer)
        case "attn_out" | "mixer_out" | "mlp_out", _:
            return writers.constant_of(site)
        case "ln_final_in", _:
            return writers.after_block(writers.model.n_layers - 1)
    raise SteeringError(f"Nothing is known here that writes {site} alone; steer with hooks.")
