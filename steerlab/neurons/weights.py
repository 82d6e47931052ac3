"""Which neurons could set a model's confidence without choosing a token? Candidates from three tensors, and their test.

An entropy neuron writes with a large weight where the unembedding reads almost nothing, so that it acts through the
final norm's scale. With U = gain * unembedding (rows u_v over the real vocabulary, minus their mean; for LayerNorm
both U and w_out lose their mean over the width) and u_v made unit vectors with covariance C:

    LogitVar(w) = Var_v cos(w, u_v) = (w/|w|)' C (w/|w|)      rho(w) = |projection of w on U's null space| / |w|

Candidates (published rule): of the 25 % of neurons with the largest |w_out|, the 10 with the lowest LogitVar. The
test: a neuron's activation is set to its mean, with the final norm recomputed (total) and its scale frozen (direct).
Sources: Stolfo et al., 2024 (arXiv 2406.16254); Gurnee et al., 2024; Du et al., 2025 for the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.errors import ModelError
from steerlab.models import LanguageModel, OutputWeights, SlicedRows
from steerlab.models.weights import takes_mean_off

Rule = Literal["published", "null space", "universal"]
TOP_SHARE, COUNT = 0.25, 10
MOST_KURTOSIS = 10.0  # Gurnee et al. (2024), for models of GPT-2's size
_BLOCKS = 16
_WIDE = (
    1024  # beyond this width block covariances take gigabytes: one block, and no interval over the vocabulary
)
_CELLS = 2**24  # logits or unembedding entries held at once


@dataclass(frozen=True)
class OutputSpace:
    """What the unembedding reads, vocabulary in random blocks; all in float64 up to width 1024.

    counts: tokens of each block. sums, outer: sum of unit rows u and of u u' by block. values, vectors: eigenvalues
    (rising) and eigenvectors of U'U; where the norm centres, the constant direction is left out.
    """

    counts: Float[Tensor, " block"]
    sums: Float[Tensor, "block d_model"]
    outer: Float[Tensor, "block d_model d_model"]
    values: Float[Tensor, " direction"]
    vectors: Float[Tensor, "d_model direction"]
    centred: bool

    @property
    def null_size(self) -> int:
        """Directions below the largest drop in the lower quarter of the spectrum of singular values."""
        logs = self.values.clamp(min=float(self.values[-1]) * 1e-12).log()
        reach = max(1, len(logs) // 4)
        drops = logs[1 : reach + 1] - logs[:reach]
        return int(drops.argmax()) + 1 if len(drops) else 1


@dataclass(frozen=True)
class Neurons:
    """One layer's neurons by weights: |w_out|, LogitVar and the share rho of w_out in the null space, [neuron].

    kurtosis: of the cosines with the vocabulary (3 for a normal law), where `with_kurtosis` has read it; NaN elsewhere.
    """

    layer: int
    norm: Float[np.ndarray, " neuron"]
    logit_var: Float[np.ndarray, " neuron"]
    null_share: Float[np.ndarray, " neuron"]
    kurtosis: Float[np.ndarray, " neuron"] | None = None

    def eligible(self, share: float = TOP_SHARE) -> Bool[np.ndarray, " neuron"]:
        """Neurons with a norm strictly above the (1 - share) quantile."""
        return np.asarray(self.norm > np.quantile(self.norm, 1 - share))

    def candidates(self, count: int = COUNT, *, share: float = TOP_SHARE) -> list[int]:
        """The published rule: among the eligible ones the `count` with the lowest LogitVar, lowest first."""
        return lowest(self.logit_var, self.eligible(share), count)

    def chosen(self, rule: Rule = "published", count: int = COUNT) -> list[int]:
        """By a named rule.

        "published": large norm, lowest LogitVar (Du et al., 2025). "null space": largest rho (Stolfo et al., 2024).
        "universal": lowest LogitVar among neurons with an output norm above the median whose cosines with the
        vocabulary have a kurtosis of at most ten, where that is known (`with_kurtosis`): Gurnee et al. (2024) leave out
        neurons that promote single words; their bounds on |w_in| and on activations need more than these tensors.
        """
        if rule == "published":
            return self.candidates(count)
        if rule == "null space":
            return self.null_space_candidates(count)
        among = self.eligible(0.5)
        if self.kurtosis is not None:
            among = among & ~(self.kurtosis > MOST_KURTOSIS)
        return lowest(self.logit_var, among, count)

    def null_space_candidates(self, count: int = COUNT) -> list[int]:
        """The other rule: the `count` neurons with the largest share of their weight in the null space."""
        return lowest(-self.null_share, np.ones(len(self.norm), dtype=bool), count)


def lowest(values: Float[np.ndarray, " neuron"], among: Bool[np.ndarray, " neuron"], count: int) -> list[int]:
    """Numbers of the `count` lowest values among some neurons, lowest first, ties by number."""
    numbers = np.flatnonzero(among)
    return [int(number) for number in numbers[np.argsort(values[numbers], kind="stable")][:count]]


def iou(first: Sequence[int], second: Sequence[int]) -> float:
    """Size of the intersection over size of the union (NaN for two empty sets)."""
    union = set(first) | set(second)
    return len(set(first) & set(second)) / len(union) if union else float("nan")


def final_norm(model: LanguageModel) -> torch.nn.Module:
    """The module before the unembedding. Raises ModelError where there is none."""
    if model.anatomy.ln_final is None:
        raise ModelError("This model has no final norm, and entropy neurons act through the final norm.")
    return model.anatomy.ln_final


def norm_centres(model: LanguageModel) -> bool:
    """Whether the final norm takes the mean off (LayerNorm) or not (RMSNorm), found by using it."""
    return takes_mean_off(final_norm(model), model.d_model, model.device, model.dtype)


def output_space(
    unembedding: Float[Tensor, "vocab d_model"] | SlicedRows,
    gain: Float[Tensor, " d_model"],
    *,
    centred: bool,
    blocks: int = _BLOCKS,
    seed: int = 0,
) -> OutputSpace:
    """Stream over the vocabulary once for its mean and once for the covariances."""
    vocab, width = unembedding.shape
    blocks = min(blocks, vocab) if width <= _WIDE else 1
    rows, starts = _streamed(unembedding, gain, centred)
    # rows are read in their order, as a file gives them, and belong to random blocks
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    block_of = torch.empty(vocab, dtype=torch.int64)
    for block, members in enumerate(torch.tensor_split(order, blocks)):
        block_of[members] = block
    kind = _kind(width)
    mean = sum((rows(start).sum(0) for start in starts), torch.zeros(width, dtype=kind)) / vocab
    gram = torch.zeros(width, width, dtype=kind)
    sums, outer = torch.zeros(blocks, width, dtype=kind), torch.zeros(blocks, width, width, dtype=kind)
    for start in starts:
        part = rows(start) - mean
        unit = part / part.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        gram += part.T @ part
        for block in range(blocks):
            members = unit[block_of[start : start + len(unit)] == block]
            sums[block] += members.sum(0)
            outer[block] += members.T @ members
    values, vectors = torch.linalg.eigh(gram)
    first = 1 if centred else 0  # the constant direction: exactly null, and w_out has nothing along it
    counts = torch.bincount(block_of, minlength=blocks).to(kind)
    return OutputSpace(counts, sums, outer, values[first:].clamp(min=0), vectors[:, first:], centred)


class Spaces:
    """Output spaces of loaded models, each made once: the same unembedding behind the same norm has the same one.

    Weights are not to change as long as it is used.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._made: list[tuple[Tensor, Tensor, bool, OutputSpace]] = []

    def of(self, model: LanguageModel) -> OutputSpace:
        """What the model's unembedding reads. Raises ModelError where it has no final norm."""
        rows, gain, centred = model.unembedding, model.final_norm_gain, norm_centres(model)
        for known_rows, known_gain, known_centred, space in self._made:
            if centred == known_centred and _same(gain, known_gain) and _same(rows, known_rows):
                return space
        space = output_space(rows, gain, centred=centred, seed=self._seed)
        self._made.append((rows, gain, centred, space))
        return space


def with_kurtosis(
    neurons: Neurons,
    w_out: Float[Tensor, "neuron d_model"],
    unembedding: Float[Tensor, "vocab d_model"] | SlicedRows,
    gain: Float[Tensor, " d_model"],
    space: OutputSpace,
    *,
    among: Bool[np.ndarray, " neuron"] | None = None,
) -> Neurons:
    """The neurons with the kurtosis of their cosines with the vocabulary: one more pass over it.

    Args:
        among: which neurons; by default those with an output norm above the median, which the "universal" rule takes.

    Cost: neurons x vocabulary x width multiplications.
    """
    chosen = np.flatnonzero(neurons.eligible(0.5) if among is None else among)
    unit = _unit(_written(w_out, space)[chosen])
    rows, starts = _streamed(unembedding, gain, space.centred)
    vocab = unembedding.shape[0]
    mean = sum((rows(start).sum(0) for start in starts), torch.zeros(unit.shape[1], dtype=unit.dtype)) / vocab
    sums = torch.zeros(4, len(chosen), dtype=torch.float64)
    for start in starts:
        cosines = (_unit(rows(start) - mean) @ unit.T).double()
        power = torch.ones_like(cosines)
        for order in range(4):
            power = power * cosines
            sums[order] += power.sum(0)
    first, second, third, fourth = sums / vocab
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    kurtosis = np.full(len(neurons.norm), np.nan)
    kurtosis[chosen] = (central / variance.clamp(min=1e-30) ** 2).numpy()
    return replace(neurons, kurtosis=kurtosis)


def logit_variance(
    w_out: Float[Tensor, "neuron d_model"],
    space: OutputSpace,
    weights: Float[np.ndarray, "draw block"] | None = None,
) -> Float[np.ndarray, "draw neuron"]:
    """Unbiased variance over the vocabulary of cos(w_out, u_v); a row for each row of block `weights` (counts)."""
    unit = _unit(_written(w_out, space))
    counts, sums, outer = space.counts, space.sums, space.outer
    if weights is None:  # the whole vocabulary is one block
        counts, sums, outer = (part.sum(0, keepdim=True) for part in (counts, sums, outer))
        weights = np.ones((1, 1))
    sums = sums @ unit.T
    squares = torch.stack([((unit @ block) * unit).sum(-1) for block in outer])
    drawn = torch.from_numpy(weights).to(sums.dtype)
    total = (drawn @ counts)[:, None]
    variance = (drawn @ squares - (drawn @ sums) ** 2 / total) / (total - 1)
    return np.asarray(variance.clamp(min=0).double().numpy())


def null_share(
    w_out: Float[Tensor, "neuron d_model"], space: OutputSpace, size: int | None = None
) -> Float[np.ndarray, " neuron"]:
    """|projection on the `size` least-read directions| / |w_out| (size: the spectrum's drop unless given)."""
    unit = _unit(_written(w_out, space))
    null = space.vectors[:, : size or space.null_size]
    return np.asarray((unit @ null).norm(dim=-1).double().numpy())


def layer_neurons(model: LanguageModel, layer: int, space: OutputSpace) -> Neurons:
    """The neurons of one layer. Raises SiteError (or ModelError) where a layer has no single down projection."""
    return neurons_of(model.w_into_stream(layer), layer, space)


def checkpoint_neurons(weights: OutputWeights, *, seed: int = 0) -> tuple[Neurons, OutputSpace]:
    """The last layer's neurons of a checkpoint of which only three tensors are read (`models.read_output_weights`)."""
    space = output_space(weights.unembedding, weights.gain, centred=weights.centred, seed=seed)
    return neurons_of(weights.w_out, weights.layer, space), space


def neurons_of(w_out: Float[Tensor, "neuron d_model"], layer: int, space: OutputSpace) -> Neurons:
    """What the weights of some neurons say of them."""
    return Neurons(
        layer=layer,
        norm=np.asarray(_written(w_out, space).norm(dim=-1).double().numpy()),
        logit_var=logit_variance(w_out, space)[0],
        null_share=null_share(w_out, space),
    )


def matched_neurons(
    norm: Float[np.ndarray, " neuron"], candidates: Sequence[int], *, each: int, seed: int
) -> list[int]:
    """`each` random other neurons for every candidate, drawn from the 4 * each nearest to it in norm."""
    rng = np.random.default_rng(seed)
    free = np.setdiff1d(np.arange(len(norm)), candidates)
    picked: list[int] = []
    for candidate in candidates:
        open_ = np.setdiff1d(free, picked)
        near = open_[np.argsort(np.abs(norm[open_] - norm[candidate]), kind="stable")][: 4 * each]
        picked += [int(number) for number in rng.permutation(near)[:each]]
    return picked


def _kind(width: int) -> torch.dtype:
    return torch.float64 if width <= _WIDE else torch.float32


def _streamed(
    unembedding: Float[Tensor, "vocab d_model"] | SlicedRows, gain: Float[Tensor, " d_model"], centred: bool
) -> tuple[Callable[[int], Float[Tensor, "row d_model"]], range]:
    """Rows of the unembedding with the final norm in them, from each of some starts on."""
    vocab, width = unembedding.shape
    chunk, kind = max(1, _CELLS // width), _kind(width)

    def rows(start: int) -> Float[Tensor, "row d_model"]:
        part = unembedding[start : min(start + chunk, vocab)].cpu().to(kind) * gain.cpu().to(kind)
        return part - part.mean(-1, keepdim=True) if centred else part

    return rows, range(0, vocab, chunk)


def _written(w_out: Float[Tensor, "neuron d_model"], space: OutputSpace) -> Float[Tensor, "neuron d_model"]:
    """w_out as the final norm sees it."""
    written = w_out.detach().cpu().to(space.sums.dtype)
    return written - written.mean(-1, keepdim=True) if space.centred else written


def _same(first: Tensor, second: Tensor) -> bool:
    alike = first.dtype == second.dtype and first.device == second.device
    return alike and torch.equal(first, second)


def _unit(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    unit: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return unit
