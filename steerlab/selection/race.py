"""The candidates of a selection with their scores, filled in where the choice needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab.models import LanguageModel
from steerlab.progress import track
from steerlab.readouts.refusals import Verdicts
from steerlab.readouts.requests import ClassMeans, Reading
from steerlab.selection.candidates import KL_BOUND, USABLE_DEPTH, Candidate
from steerlab.selection.scores import Scorer

Differences: TypeAlias = Float[np.ndarray, "layer position width"]


class Places:
    """The candidates' vectors [candidate, width], positions outside, layers inside, and their separation."""

    def __init__(self, model: LanguageModel, train: ClassMeans, val: Reading, published: bool) -> None:
        shared = min(train.harmful.shape[1], val.n_positions)
        self.means = train.last(shared)
        n_layers, differences = model.n_layers, self.means.differences
        separation = _separation(val, differences, shared)
        self.usable = max(0 if published else 1, int(USABLE_DEPTH * n_layers))
        self.at = [(layer, position) for position in range(-shared, 0) for layer in range(n_layers)]
        self.vectors = np.stack([differences[layer, position] for layer, position in self.at])
        self.candidates = [
            Candidate(
                layer=layer,
                position=position,
                separation=float(separation[layer, position]),
                gap=float(np.linalg.norm(differences[layer, position])),
            )
            for layer, position in self.at
        ]

    @property
    def layers(self) -> range:
        """All layers of the model."""
        return range(1 + max(layer for layer, _ in self.at))

    @property
    def open(self) -> list[int]:
        """Candidates at usable layers that point somewhere."""
        return [
            number
            for number, place in enumerate(self.candidates)
            if place.layer < self.usable and place.gap > 0
        ]


class Race:
    """Scores filled in where the choice needs them."""

    def __init__(self, places: Places, scorer: Scorer, *, complete: bool) -> None:
        self.places, self.scorer, self.complete = places, scorer, complete
        self.candidates = list(places.candidates)
        self.usable = places.open
        if complete:
            every = [number for number, place in enumerate(self.candidates) if place.gap > 0]
            self.induce(every)
            self.kl(every)
            self.bypass(every)

    def induce(self, places: Sequence[int]) -> None:
        """Fill in induce, layer by layer."""
        missing = [number for number in places if np.isnan(self.candidates[number].induce)]
        layers = sorted({self.candidates[number].layer for number in missing})
        for layer in track(layers, self._bar("induce"), len(layers)):
            here = [number for number in missing if self.candidates[number].layer == layer]
            self._put("induce", here, self.scorer.induce(self.places.vectors[here], layer))

    def kl(self, places: Sequence[int]) -> None:
        """Fill in KL; without `complete` a candidate is left once it is above the bound."""
        missing = [number for number in places if np.isnan(self.candidates[number].kl)]
        if missing:
            ceiling = np.inf if self.complete else KL_BOUND
            change = self.scorer.everywhere(self.places.vectors[missing])
            values, bounds = self.scorer.kl(change, ceiling, progress=self._bar("KL"))
            self._put("kl", missing, values)
            self._put("kl_at_least", missing, bounds)

    def bypass(self, places: Sequence[int]) -> None:
        """Fill in bypass."""
        missing = [number for number in places if np.isnan(self.candidates[number].bypass)]
        if missing:
            change = self.scorer.everywhere(self.places.vectors[missing])
            values = self.scorer.bypass(change, progress=self._bar("bypass"))
            self._put("bypass", missing, values)

    def _put(self, field: str, numbers: Sequence[int], values: np.ndarray) -> None:
        for number, value in zip(numbers, values.tolist(), strict=True):
            self.candidates[number] = self.candidates[number].model_copy(update={field: value})

    def _bar(self, what: str) -> str:
        return f"{what} of candidates in {self.scorer.model.name}"


def expected(verdicts: Verdicts, by_tokens: bool, *, broken: bool = False) -> NDArray[np.bool_]:
    """Which prompts got the expected kind of answer (a refusal), or with `broken` that or no answer at all."""
    said: NDArray[np.bool_] = verdicts.odds > 0 if by_tokens else verdicts.refused
    return said | verdicts.gibberish | verdicts.unfinished if broken else said


# -- private --


def _separation(val: Reading, differences: Differences, shared: int) -> Float[np.ndarray, "layer position"]:
    along = np.einsum("lnpd,lpd->lpn", val.states[:, :, -shared:].astype(np.float64), differences)
    high, low = along[..., val.labels], along[..., ~val.labels]
    spread = np.sqrt((high.var(axis=-1) + low.var(axis=-1)) / 2)
    gap = high.mean(axis=-1) - low.mean(axis=-1)
    return np.asarray(np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0))
