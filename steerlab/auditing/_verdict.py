"""From measured matrices to one verdict: which form explains what changed, and in which words that is said."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.auditing._measure import MOST, Measured
from steerlab.auditing.result import Kind, Lineage
from steerlab.showing import counted

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_UNTOLD = "A merge with another model is not told from a fine-tune without that model; name it with other=."
#: Strengths that differ by less are one; lengths that are put back move them in small matrices.
_SAME, _SAME_KEPT = 0.05, 0.2
_ROUNDED = re.compile("same|cast to .*|requantised")


@dataclass(frozen=True)
class Verdict:
    """A kind and what belongs to it; see `AuditResult`."""

    kind: Kind
    sentence: str
    details: list[str] = field(default_factory=list)
    rank: int | None = None
    share: float | None = None
    agreement: float | None = None
    vectors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """How D lies along E = other − base, all matrices together.

    share: t of the best D ≈ t E. explained: cos² between D and t E. least, most: t of single matrices.
    """

    share: float
    explained: float
    least: float
    most: float


def lineage_of(measured: Sequence[Measured]) -> Lineage:
    """Correlations of the weights against those with the candidate's rows in another order."""
    matrices = [each for each in measured if each.pair.is_matrix and each.sums.before * each.sums.after > 0]
    found = [
        tuple(
            product / (each.sums.before * each.sums.after) ** 0.5
            for product in (each.sums.dot, each.sums.rolled)
        )
        for each in matrices
    ]
    if not found:
        return Lineage(correlation=1.0, null=0.0, share=1.0, matrices=0)
    related = [
        own > abs(null) + 4 / (each.pair.shape[0] * each.pair.shape[1]) ** 0.5
        for each, (own, null) in zip(matrices, found, strict=True)
    ]
    return Lineage(
        correlation=median(own for own, _ in found),
        null=median(null for _, null in found),
        share=sum(related) / len(related),
        matrices=len(found),
    )


# Long: one question after the other, the narrowest first.
def verdict(
    measured: Sequence[Measured], roles: dict[str, str], lineage: Lineage, merged: Merged | None
) -> Verdict:
    """The narrowest form that explains nine tenths of the changed matrices."""
    if lineage.share < 0.5:
        return Verdict(
            "not the same lineage",
            f"The candidate was not made from the base: their weights correlate by {lineage.correlation:.2g}, and "
            f"{lineage.share:.0%} of the {lineage.matrices} matrices by more than "
            "rows in another order do.",
        )
    changed = [each for each in measured if each.changed]
    matrices = [each for each in changed if each.pair.is_matrix]
    vectors = [each for each in changed if not each.pair.is_matrix]
    if not changed:
        return _unchanged(measured)
    if merged is not None and merged.explained >= MOST:
        return _merge(merged)
    rounded = [each for each in changed if _ROUNDED.fullmatch(each.label)]
    if _is_rounding(rounded, changed):
        return _rounding(rounded, len(measured))
    free = [each for each in matrices if not _ROUNDED.fullmatch(each.label)]
    labels = Counter(each.label for each in free)
    if not free or _most([each for each in free if each.label == "constant"], free):
        return _addition(free, vectors, roles)
    ablated = [each for each in free if each.label == "ablated"]
    if _most(ablated, free):
        return _ablation(ablated)
    low = [each for each in free if each.label in ("low rank", "ablated", "constant")]
    if _most(low, free):
        return _adapter(low, len(measured))
    noise = [each for each in free if each.label == "noise"]
    sizes = [math.sqrt(each.sums.energy / each.sums.before) for each in free if each.sums.before]
    change = median(sizes or [math.inf])
    if _most(noise, free):
        return Verdict(
            "noise",
            f"Noise without structure was added to {_matrices(noise)}, of {change:.2g} of the weights' size: no "
            "singular value is larger than shuffled signs give.",
        )
    return Verdict(
        "full fine-tune",
        f"{_matrices(free).capitalize()} changed in many directions, by {change:.2g} of the weights' size in the "
        f"middle: a full fine-tune ({', '.join(f'{number} {label}' for label, number in labels.most_common())}).",
        [
            _UNTOLD
            if merged is None
            else f"The change is no merge with the other: {merged.explained:.0%} of it lies along it."
        ],
    )


def shared(bases: Sequence[Float[Tensor, "width k"]]) -> tuple[Float[Tensor, "width k"], list[float]]:
    """The subspace that lies closest to all of them, and the mean cos² of each with it."""
    k = Counter(basis.shape[1] for basis in bases).most_common(1)[0][0]
    stacked = torch.cat([basis.double() for basis in bases], dim=1)
    left = torch.linalg.svd(stacked, full_matrices=False)[0][:, :k]
    return left.float(), [float((left.T @ basis.double()).square().sum()) / basis.shape[1] for basis in bases]


def layer_of(name: str) -> int | None:
    """The block that a tensor belongs to."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


# -- private --


def _most(some: Sequence[Measured], every: Sequence[Measured]) -> bool:
    return len(some) >= MOST * len(every)


def _is_rounding(rounded: Sequence[Measured], changed: Sequence[Measured]) -> bool:
    """Whether rounding explains all: casts exactly, grids but for a tenth, where the rest has no form of its own."""
    rest = [each for each in changed if not _ROUNDED.fullmatch(each.label)]
    gridded = any(each.label == "requantised" for each in rounded)
    formless = all(each.label in ("noise", "dense") for each in rest)
    return bool(rounded) and (not rest or (gridded and formless and _most(rounded, changed)))


def _matrices(some: Iterable[Measured]) -> str:
    number = len(list(some))
    return f"{number} {'matrix' if number == 1 else 'matrices'}"


def _unchanged(measured: Sequence[Measured]) -> Verdict:
    added = max((each.pair.added for each in measured), default=0, key=abs)
    if added:
        return Verdict("embeddings added", "Every number that both have is the same.")
    return Verdict("identical", f"All {len(measured)} tensors have the same numbers.")


def _merge(merged: Merged) -> Verdict:
    spread = (
        f", between {merged.least:.2f} and {merged.most:.2f} in single matrices"
        if merged.most - merged.least > 0.02
        else ""
    )
    return Verdict(
        "merge",
        f"The candidate is base + {merged.share:.3g} (other − base){spread}: that is {merged.explained:.1%} of the "
        "change that rounding leaves.",
        ["It is undone by going back along other − base, with the other at hand."],
        share=merged.share,
    )


def _rounding(rounded: Sequence[Measured], number: int) -> Verdict:
    kinds = Counter(each.label for each in rounded)
    traces = Counter(each.grid for each in rounded if each.grid)
    trace = f"; trace: {traces.most_common(1)[0][0]}" if traces else ""
    said = ", ".join(f"{count} {label}" for label, count in kinds.most_common())
    return Verdict(
        "cast or requantised",
        f"The numbers were rounded and nothing else was done ({said}, of {number} tensors{trace}).",
        ["Rounding is not undone: what it took is in the base alone."],
    )


def _addition(free: Sequence[Measured], vectors: Sequence[Measured], roles: dict[str, str]) -> Verdict:
    """Only biases changed, or every row of the embedding by one vector."""
    biases = [each for each in vectors if each.pair.name.endswith("bias")]
    gains = [each for each in vectors if not each.pair.name.endswith("bias")]
    other = [each for each in gains if not _ROUNDED.fullmatch(each.label)]
    if other and not free:
        return Verdict(
            "full fine-tune",
            f"Only vectors changed: {len(other)} gains of norms and {len(biases)} biases; no matrix did.",
        )
    added: dict[str, Tensor] = {}
    for each in free:
        spectrum = each.spectrum
        assert spectrum is not None
        scale = float(spectrum.values[0]) / each.pair.shape[0] ** 0.5
        added["resid_pre.0"] = spectrum.right[:, :1].T * spectrum.left[:, 0].sum().sign() * scale
    for each in biases:
        before, after = each.sums.sample
        role, _, layer = roles.get(each.pair.name.removesuffix(".bias"), "").partition(".")
        site = {"attention output": "attn_out", "MLP output": "resid_post"}.get(role)
        if site is not None and layer:
            added[f"{site}.{layer}"] = after - before
    where = f" They enter the stream at {', '.join(added)}." if added else ""
    return Verdict(
        "constant addition",
        f"Constants were added ({len(biases)} {'bias' if len(biases) == 1 else 'biases'}, "
        f"{counted(len(free), 'table')} in which every row moved by one vector); no matrix changed otherwise.{where}",
        ["It is undone by subtracting the same constants."],
        vectors=added,
    )


def _ablation(ablated: Sequence[Measured]) -> Verdict:
    """One direction everywhere, or one for each layer where they do not agree."""
    removed = [each.removed for each in ablated if each.removed is not None]
    width = Counter(each.basis.shape[0] for each in removed).most_common(1)[0][0]
    in_stream = [each for each in ablated if each.removed and each.removed.basis.shape[0] == width]
    bases = [each.removed.basis for each in in_stream if each.removed]
    basis, cosines = shared(bases)
    agreement = sum(cosines) / len(cosines)
    strengths = [each.strength for each in removed]
    strength = median(strengths)
    kept = median(each.kept for each in removed)
    said = f"of {strength:.3g}"
    spread = max(strengths) - min(strengths) > (_SAME if kept <= 0.5 else _SAME_KEPT)
    if spread:
        said = f"between {min(strengths):.3g} and {max(strengths):.3g}"
    layers = sorted({layer for each in in_stream if (layer := layer_of(each.pair.name)) is not None})
    if agreement >= MOST:
        vectors = {f"resid_post.{layers[len(layers) // 2]}" if layers else "embed": basis.T}
        number = basis.shape[1]
        what = "one direction" if number == 1 else f"one subspace of {number} directions"
    else:
        by_layer = {
            layer: shared(
                [
                    base
                    for base, each in zip(bases, in_stream, strict=True)
                    if layer_of(each.pair.name) == layer
                ]
            )
            for layer in layers
        }
        vectors = {f"resid_post.{layer}": own.T for layer, (own, _) in by_layer.items()}
        what = f"{counted(len(layers), 'direction')}, one a layer"
    how = ", and rows or columns keep their length" if kept > 0.5 else ""
    return Verdict(
        "directional ablation",
        f"{what.capitalize()} was removed from what {_matrices(ablated)} write, with a strength {said}"
        f"{how}; their directions agree with one by {agreement:.3f} (chance: {_chance(len(bases), width):.3f}).",
        [_undoing(strength, spread)],
        agreement=agreement,
        vectors=vectors,
    )


def _chance(number: int, width: int) -> float:
    """The mean cos² that so many random directions have with the one closest to them."""
    return min(1.0, (1 + math.sqrt(number / width)) ** 2 / number)


def _undoing(strength: float, spread: bool) -> str:
    if spread:
        return (
            "It is undone matrix by matrix with W + α/(1 − α) q qᵀW, but for those whose strength α is 1: what they "
            "wrote along the direction is in the base alone."
        )
    if abs(1 - strength) < _SAME:
        return (
            "It is not undone from the candidate alone: what the weights wrote along the direction is gone, and the "
            "base alone has it."
        )
    factor = strength / (1 - strength)
    return f"It is undone by W + {factor:.3g} q qᵀW, up to rounding and to what keeps lengths."


def _adapter(low: Sequence[Measured], number: int) -> Verdict:
    ranks = [each.rank for each in low if each.rank is not None]
    rank = max(ranks, default=1)
    spread = f", {min(ranks)} to {rank} in single ones" if ranks and min(ranks) != rank else ""
    return Verdict(
        "low-rank adapter",
        f"A low-rank adapter of rank {rank} was folded into {_matrices(low)} of {number} tensors{spread}; what is left "
        "is rounding.",
        ["It is undone by subtracting the same low-rank product, up to rounding."],
        rank=rank,
    )
