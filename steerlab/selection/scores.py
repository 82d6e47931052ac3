"""Bypass, induce and KL of many candidate directions, with as little forward pass as the answer needs.

Candidates that are added at one layer are rows of one batch that starts at that layer. Ablation begins at the first
block, so its candidates share batches but no blocks. KL is a mean of numbers that are never negative: a candidate
whose sum over some prompts already exceeds what all may have is left before the others are run (`ceiling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.activations import Recording, record, sweep
from steerlab.activations.sweep import Measure
from steerlab.models import LanguageModel, Prompt, Site
from steerlab.models.laws import divergence, log_odds
from steerlab.steering import stream_writes

_FIRST = 0.25  # share of the prompts after which a candidate may be left
Vectors = Float[np.ndarray, "candidate width"]
Scores = Float[np.ndarray, " candidate"]


@dataclass(frozen=True)
class Odds:
    """How the log-odds of the tokens R are computed: exactly, or with the published 1e-8 in both logarithms."""

    tokens: tuple[int, ...]
    floor: float = 0.0

    def __call__(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, " *batch"]:
        """ln P(R) - ln P(not R), float64; NaN without tokens."""
        return log_odds(logits, self.tokens, floor=self.floor)


class Scorer:
    """Recorded validation prompts of a model, ready to score candidates.

    Args:
        harmful: prompts on which bypass is measured.
        harmless: those of induce and KL.
        site: "resid_pre" or "resid_post", where candidates are added.
        layers: of the candidates.
        windows: whether ablations that begin at a candidate's layer are scored as well.
    """

    def __init__(
        self,
        model: LanguageModel,
        harmful: Sequence[Prompt],
        harmless: Sequence[Prompt],
        *,
        site: str,
        layers: Sequence[int],
        odds: Odds,
        kl_floor: float = 0.0,
        windows: bool = False,
    ) -> None:
        self.model, self.odds, self.site, self.kl_floor = model, odds, site, kl_floor
        starts = [layer + (site == "resid_post") for layer in layers]
        kept = sorted({start for start in starts if 0 < start < model.n_layers})
        first = max(1, round(_FIRST * len(harmless)))
        self._harmless = [
            record(model, part, kept) for part in (harmless[:first], harmless[first:]) if len(part)
        ]
        self._harmful = record(model, harmful, kept if windows else ())

    def induce(self, vectors: Vectors, layer: int) -> Scores:
        """Mean log-odds of refusing harmless prompts with each vector added at a layer, at every token."""
        change = _Added(Site(self.site, layer), self._tensor(vectors))
        parts = [
            sweep(part, change, len(vectors), lambda logits, _: self.odds(logits)) for part in self._harmless
        ]
        return _mean(parts)

    def kl(
        self, change: Ablations, ceiling: float = np.inf, progress: str | None = None
    ) -> tuple[Scores, Bool[np.ndarray, " candidate"]]:
        """Mean KL on harmless prompts under each ablation, and where it was left as a lower bound."""
        if self.kl_floor:
            ceiling = np.inf  # with a floor in the logarithms a prompt's KL may be negative
        total = sum(len(part) for part in self._harmless)
        sums, left = np.zeros(len(change)), np.arange(len(change))
        read = np.zeros(len(change), dtype=int)
        for part in self._harmless:
            kept = change.only(left)
            values = sweep(part, kept, len(left), self._divergence(part), progress=progress)
            sums[left] += values.sum(dim=1).numpy()
            read[left] += len(part)
            left = left[sums[left] <= ceiling * total]
            if not len(left):
                break
        bounds = read < total
        # rounding must not put a sum above the ceiling back onto it
        return np.where(bounds, np.maximum(sums / total, np.nextafter(ceiling, np.inf)), sums / total), bounds

    def bypass(self, change: Ablations, progress: str | None = None) -> Scores:
        """Mean log-odds of refusing harmful prompts under each ablation."""
        swept = sweep(
            self._harmful, change, len(change), lambda logits, _: self.odds(logits), progress=progress
        )
        return _mean([swept])

    def everywhere(self, vectors: Vectors) -> Ablations:
        """Each vector removed wherever something enters the stream."""
        return Ablations(stream_writes(self.model), self._tensor(_units(vectors)))

    def toward(self, vectors: Vectors, means: Mapping[Site, Vectors] | Sequence[Site]) -> Ablations:
        """Each vector removed at some sites but for the first token, toward its mean there where there is one."""
        units = _units(vectors)
        kept = {}
        if isinstance(means, Mapping):
            kept = {site: self._tensor((rows * units).sum(axis=1)) for site, rows in means.items()}
        return Ablations(tuple(means), self._tensor(units), kept, first=1)

    def _tensor(self, vectors: Vectors) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(vectors)).to(
            self.model.device, torch.promote_types(self.model.dtype, torch.float32)
        )

    def _divergence(self, part: Recording) -> Measure:
        def measure(logits: Tensor, prompts: Tensor) -> Tensor:
            return divergence(part.logits[prompts.to(part.logits.device)], logits, floor=self.kl_floor)

        return measure


def plain_odds(model: LanguageModel, prompts: Sequence[Prompt], odds: Odds) -> Float[np.ndarray, " prompt"]:
    """Log-odds of each prompt without any change."""
    values: Float[np.ndarray, " prompt"] = model.logits(prompts, reduce=odds).numpy()
    return values


@dataclass(frozen=True)
class _Added:
    """Variant i adds vector i at one site, at every token."""

    site: Site
    vectors: Float[Tensor, "variant width"]

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.site,)

    def apply(self, state: Tensor, site: Site, variants: slice, prompts: Tensor) -> Tensor:
        return state + self.vectors[variants, None, None].to(state)


@dataclass(frozen=True)
class Ablations:
    """Variant i loses its component along unit vector i at some sites, but for what is kept of it there.

    kept: by site a number a variant. first: the tokens before it are left alone.
    """

    sites: tuple[Site, ...]
    units: Float[Tensor, "variant width"]
    kept: Mapping[Site, Float[Tensor, " variant"]] = field(default_factory=dict)
    first: int = 0

    def __len__(self) -> int:
        return len(self.units)

    def apply(self, state: Tensor, site: Site, variants: slice, prompts: Tensor) -> Tensor:
        """The states [variant, prompt, position, width] of some variants without their component."""
        unit = self.units[variants].to(state)
        along = torch.einsum("vptd,vd->vpt", state, unit)
        if site in self.kept:
            along = along - self.kept[site][variants, None, None].to(state)
        along[..., : self.first] = 0
        return state - along[..., None] * unit[:, None, None]

    def only(self, variants: np.ndarray) -> Ablations:
        """Some of the variants."""
        chosen = torch.from_numpy(variants)
        kept = {site: numbers[chosen] for site, numbers in self.kept.items()}
        return replace(self, units=self.units[chosen], kept=kept)


def _units(vectors: Vectors) -> Vectors:
    units: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def _mean(parts: Sequence[Tensor]) -> Scores:
    joined = torch.cat([part.double() for part in parts], dim=1)
    means: Scores = joined.mean(dim=1).numpy()
    return means
