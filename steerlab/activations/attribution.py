"""Attribution patching: what a patch sweep would measure, to first order, from one backward pass.

    measure(x + Δ) ≈ measure(x) + Σ Δ · ∂ measure / ∂ x,      Δ = source state − own state

(Nanda 2023; Syed, Rager and Conmy 2023), with the gradient taken in the run that is patched, at every site and token of
its cells at once: two passes for all cells, where an exact sweep takes a part of one for each. The error is of second
order in Δ: small where the two runs differ little, and largest where a state is replaced as a whole (early layers of
the stream, saturated softmaxes). `PatchAttribution.against` measures it on an exact sweep of some prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from steerlab.activations._suffix import WHOLE
from steerlab.activations.measures import PatchMeasure
from steerlab.activations.patches import Cell, RowPatches, StatePatch
from steerlab.activations.sources import load_sources
from steerlab.errors import SteerlabError
from steerlab.models import All, LanguageModel, Prompt, Site, Tokens
from steerlab.models.batches import batches_by_length, run_halving
from steerlab.models.modes import evaluating
from steerlab.progress import track
from steerlab.record import Record

if TYPE_CHECKING:
    from steerlab.activations.patching import PatchResult

_TRACED = 4  # times the memory of a token whose gradient is wanted


class PatchAgreement(Record):
    """How near attributions come to an exact sweep of the same cells.

    Attributes:
        pearson: correlation of the effects over all cells; None where either side is constant.
        spearman: that of their ranks.
        largest_error: the largest difference of an effect, in the measure's unit.
        largest_effect: the largest exact effect, to hold it against.
        k: how many cells of each prompt count as its top.
        top_found: share of the k largest exact effects (in size) that are among the k largest attributed ones, the mean
            over prompts.
        cells: how many were compared.
    """

    pearson: float | None
    spearman: float | None
    largest_error: float
    largest_effect: float
    k: int
    top_found: float
    cells: int


@dataclass(frozen=True, eq=False)
class PatchAttribution:
    """First-order values of all cells, in the shape of `PatchResult`.

    Attributes:
        values: [prompt, cell], what the measure of each patched run would be; NaN where a prompt has fewer cells.
        plain: [prompt] of the runs without any cell.
    """

    values: Float[np.ndarray, "prompt cell"]
    plain: Float[np.ndarray, " prompt"]

    @property
    def effects(self) -> Float[np.ndarray, "prompt cell"]:
        """What each cell changes: values minus plain."""
        changes: NDArray[np.float64] = self.values - self.plain[:, None]
        return changes

    def against(self, exact: PatchResult, *, k: int = 5) -> PatchAgreement:
        """The error, measured on an exact sweep of the same prompts and cells.

        Raises:
            SteerlabError: the exact sweep has another shape or other plain runs, or k is less than one.
        """
        _require_alike(self, exact)
        if k < 1:
            raise SteerlabError(f"The top {k} cells are none; give k of one or more.")
        right, found = exact.values - exact.plain[:, None], self.effects
        known = np.isfinite(right) & np.isfinite(found)
        if not known.any():
            raise SteerlabError(
                "The two sweeps have no cell in common, so nothing can be compared; run the exact one."
            )
        shares = [
            _top_found(right[row][some], found[row][some], k) for row, some in enumerate(known) if some.any()
        ]
        a, b = right[known], found[known]
        varies = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
        return PatchAgreement(
            pearson=float(stats.pearsonr(a, b).statistic) if varies else None,
            spearman=float(stats.spearmanr(a, b).statistic) if varies else None,
            largest_error=float(np.abs(a - b).max()),
            largest_effect=float(np.abs(a).max()),
            k=k,
            top_found=float(np.mean(shares)),
            cells=len(a),
        )


@dataclass(frozen=True, eq=False)
class Job:
    """What `PatchSweep.attribution` hands over: a sweep's prompts, cells and measure."""

    model: LanguageModel
    prompts: Sequence[str | Prompt]
    cells: Sequence[Sequence[Cell]]
    base: Sequence[Cell]
    measure: PatchMeasure

    def done(self, lengths: Sequence[int], token_budget: int, progress: str | None) -> PatchAttribution:
        """The attribution of all cells; a batch is made of prompts with equally many tokens.

        Raises:
            SteerlabError: as `PatchSweep.attribution`.
        """
        values = np.full((len(self.prompts), max(map(len, self.cells))), np.nan)
        plain = np.full(len(self.prompts), np.nan)
        chunks = list(batches_by_length(lengths, max(1, token_budget // _TRACED), stretch=1))
        for chunk in track(chunks, progress, len(chunks)) if progress else chunks:
            run_halving(lambda some: self._take(some, values, plain), chunk, "A prompt with its gradient")
        return PatchAttribution(values, plain)

    def _take(self, numbers: Sequence[int], values: NDArray[np.float64], plain: NDArray[np.float64]) -> None:
        """The values of prompts of one length, written into their rows."""
        base, cells = [self.base[number] for number in numbers], [self.cells[number] for number in numbers]
        load_sources([*base, *(cell for own in cells for cell in own)], numbers)
        tokens = self.model.tokenize([self.prompts[number] for number in numbers])
        base_edit = RowPatches(self.model, [(number, self.base[number], ()) for number in numbers], WHOLE, 0)
        probe = _Probe(sorted({patch.site for own in cells for cell in own for patch in cell}))
        with torch.inference_mode(False), torch.enable_grad():
            normed = _traced(self.model, tokens, base_edit, probe)
            measured = _measured(self.model, normed, numbers, self.measure)
            slopes = probe.slopes(measured) if probe.sites else {}
        with torch.no_grad():
            for row, (number, own) in enumerate(zip(numbers, cells, strict=True)):
                plain[number] = float(measured[row])
                for at, cell in enumerate(own):
                    changes = (
                        _change(
                            self.model, patch, number, probe.states[patch.site][row], slopes[patch.site][row]
                        )
                        for patch in cell
                    )
                    values[number, at] = plain[number] + sum(changes)


# -- private, in the order they are called --


class _Probe:
    """An edit that changes nothing: it adds a zero that has a gradient to the states at some sites.

    Attributes:
        states: by site the run's states [row, position, width].
    """

    positions = All()

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)
        self.states: dict[Site, Tensor] = {}
        self._zeros: dict[Site, Tensor] = {}

    def check(self, model: LanguageModel) -> None:
        """The sweep has checked its cells."""

    def apply(self, state: Float[Tensor, "row position width"], site: Site) -> Tensor:
        """The states, as they are."""
        self.states[site] = state.detach().clone()
        self._zeros[site] = torch.zeros_like(self.states[site]).requires_grad_()
        return state + self._zeros[site]

    def slopes(self, measured: Float[Tensor, " row"]) -> dict[Site, Tensor]:
        """By site the gradient of each row's number by its states; zero where it does not depend on them."""
        if not measured.requires_grad:
            raise SteerlabError(
                "What is measured has no gradient (it leaves torch's graph); use torch's own functions in the measure, "
                "or run the exact sweep."
            )
        zeros = [self._zeros[site] for site in self.sites]
        found = torch.autograd.grad(measured.sum(), zeros, allow_unused=True)
        return {
            site: torch.zeros_like(zero) if slope is None else slope
            for site, zero, slope in zip(self.sites, zeros, found, strict=True)
        }


def _traced(
    model: LanguageModel, tokens: Tokens, base: RowPatches, probe: _Probe
) -> Float[Tensor, "row d_model"]:
    """The final norm's output at the last token, in torch's graph; the probe lies behind the base at each site."""
    model.engine.check()
    inputs = tokens.to(model.device)
    arguments = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    if model.takes_positions:
        arguments["position_ids"] = inputs.position_ids
    with model.lock, evaluating(model.model), ExitStack() as stack:
        stack.enter_context(model.frames.of(tokens))
        for edit in (edit for edit in (base, probe) if edit.sites):
            stack.enter_context(model.steering(edit))
        stack.enter_context(model.frames.watch(model.anatomy.base))
        output = model.anatomy.base(**arguments, use_cache=False, return_dict=True)
        normed: Tensor = output.last_hidden_state[:, -1]
    return normed


def _measured(
    model: LanguageModel, normed: Float[Tensor, "row d_model"], numbers: Sequence[int], measure: PatchMeasure
) -> Float[Tensor, " row"]:
    prompts = torch.tensor(list(numbers))
    if measure.tokens is None:
        logits = model.anatomy.logits_of(normed)[..., : model.vocab_size].float()
    else:
        ids, place = measure.tokens[prompts].unique(return_inverse=True)
        some = model.anatomy.logits_of(normed, ids)
        logits = some.gather(1, place.to(some.device))
    values = measure(logits, prompts)
    if values.dim() != 1:
        raise SteerlabError(
            f"A {type(measure).__name__} gives {tuple(values.shape[1:])} numbers a run, and a gradient is of one; "
            "give a measure of one number, or run the exact sweep."
        )
    return values


def _change(
    model: LanguageModel,
    patch: StatePatch,
    prompt: int,
    state: Float[Tensor, "position width"],
    slope: Float[Tensor, "position width"],
) -> float:
    """Δ · gradient of one patch."""
    where, width = list(patch.positions), state.shape[-1]
    taken = list(patch.source_positions or patch.positions)
    values = patch.source.values(patch.site, prompt, taken, width).to(state.device).float()
    delta = values if patch.source.adds else values - state[where].float()
    product = delta * slope[where].float()
    if patch.heads:
        product = product.unflatten(-1, (model.n_heads, -1))[:, list(patch.heads)]
    return float(product.sum())


def _require_alike(found: PatchAttribution, exact: PatchResult) -> None:
    if exact.values.shape != found.values.shape:
        raise SteerlabError(
            f"The exact sweep has values {exact.values.shape} and the attribution {found.values.shape}; compare sweeps "
            "of the same prompts and cells."
        )
    off = float(np.nanmax(np.abs(exact.plain - found.plain)))
    if off > 1e-2 * max(1.0, float(np.nanmax(np.abs(exact.plain)))):
        raise SteerlabError(
            f"The plain runs differ by {off:.2g}, so these are sweeps of other prompts, measures or interventions; "
            "compare sweeps of the same."
        )


def _top_found(right: Float[np.ndarray, " cell"], found: Float[np.ndarray, " cell"], k: int) -> float:
    k = min(k, len(right))
    tops = (set(np.argsort(-np.abs(one), kind="stable")[:k].tolist()) for one in (right, found))
    return len(set.intersection(*tops)) / k
