"""What an average difference says in words, and whether it says it again on other texts.

A difference m is read through base's final norm and the rows w of its unembedding, less what they make of nothing:

    score(v) = w_v · (norm(m) − norm(0))              (the norm takes the length of m away)

Words are the tokens of three letters or more to which base gives a hundredth of the uniform probability or more on
average (a token that training never met has a row that says nothing). The texts are halved; m_A and m_B are the means
of the halves, and with the 20 words that score highest in one half

    stands out = their mean score in the other half, in standard deviations over all words; both ways round
    alike      = mean cosine of the unembedding of one half's words with that of the other half's, a word with itself
                 left out, less the mean over all words

Nothing is chosen on the texts that it is measured on. Source of the reading: Minder et al. (2025, arXiv 2510.13900).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from steerlab.errors import DatasetError
from steerlab.models import LanguageModel
from steerlab.statistics import Estimate
from steerlab.statistics.resampling import cluster_weights, from_draws

TOP = 20
_LETTERS = 3
_MET = 0.01
_AUC_DRAWS = 500


class Legible(NamedTuple):
    """How much a difference says on texts that its words were not chosen on; see the module."""

    stands_out: float
    alike: float


class Reader:
    """Base's words, and what it makes of a vector.

    chances: [vocab] mean probability that base gives to every token.
    """

    def __init__(self, model: LanguageModel, chances: Float[Tensor, " vocab"]) -> None:
        self.model = model
        met = (chances >= _MET / model.vocab_size).tolist()
        texts = model.tokenizer.batch_decode([[token] for token in range(model.vocab_size)])
        self.texts: list[str] = texts
        found = [
            token
            for token, text in enumerate(texts)
            if met[token] and len(text.strip()) >= _LETTERS and text.strip().isalpha()
        ]
        #: [word] ids of the tokens that are words; every token where hardly any is.
        self.words: Int[Tensor, " word"] = torch.tensor(found if len(found) > 2 * TOP else range(len(texts)))

    @cached_property
    def _rows(self) -> Float[Tensor, "word width"]:
        return self._rows_of(self.words)

    @cached_property
    def _units(self) -> Float[Tensor, "word width"]:
        rows = self._rows - self._rows.mean(dim=0)
        return torch.nn.functional.normalize(rows, dim=1)

    def _rows_of(self, ids: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        rows = self.model.unembedding
        return rows[ids.to(rows.device)].float().cpu()

    def normed(self, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """What the unembedding is given, less what it is given of a vector of zeros."""
        norm = self.model.anatomy.ln_final
        if norm is None:
            return vectors
        with torch.inference_mode():
            given = torch.cat([vectors, torch.zeros(1, vectors.shape[1])]).to(
                self.model.device, self.model.dtype
            )
            found: Tensor = norm(given).float().cpu()
        less: Tensor = found[:-1] - found[-1]
        return less

    def scores(
        self, vectors: Float[Tensor, "row width"], ids: Sequence[int] | None = None
    ) -> Float[Tensor, "row some"]:
        """Scores of some tokens, by default the words."""
        rows = self._rows if ids is None else self._rows_of(torch.tensor(ids))
        return self.normed(vectors) @ rows.T

    def top(self, vector: Float[Tensor, " width"], count: int = TOP) -> tuple[str, ...]:
        """The words that score highest; none of a vector of zeros."""
        if not bool(vector.any()):
            return ()
        best = self.scores(vector[None])[0].topk(min(count, len(self.words))).indices
        return tuple(self.texts[int(word)] for word in self.words[best])

    def legible(
        self, rows: Float[Tensor, "layer text width"], halves: NDArray[np.bool_]
    ) -> Float[np.ndarray, "layer 2"]:
        """`stands out` and `alike` at each layer of the second half of the model, where a lens reads, the mean over the
        halvings [split, text]; 0 of zeros, NaN at the layers before."""
        masks = torch.from_numpy(halves)
        means = torch.stack([rows[:, half].mean(dim=1) for mask in masks for half in (mask, ~mask)], dim=1)
        found = np.full((len(rows), 2), np.nan)
        for layer in range(len(rows) // 2, len(rows)):
            vectors = means[layer]
            found[layer] = 0.0
            if not bool(vectors.any()):
                continue
            scores = self.scores(vectors)
            z = (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, keepdim=True).clamp(min=1e-12)
            best = scores.topk(TOP, dim=1).indices
            both = [_both(z, best, self._units, pair) for pair in range(0, len(vectors), 2)]
            found[layer] = np.mean(both, axis=0)
        return found

    def ids_of(self, words: Iterable[str]) -> list[int]:
        """The tokens of words that are one token, with a space before them or without.

        Raises:
            DatasetError: none of the words is a token.
        """
        listed = list(words)
        wanted = {word.strip().lower() for word in listed}
        ids = [int(word) for word in self.words if self.texts[int(word)].strip().lower() in wanted]
        if not ids:
            raise DatasetError(
                f"None of the topic's words ({', '.join(listed[:5])}) is one token of {self.model.name}; name others."
            )
        return ids


def halvings(count: int, splits: int, seed: int) -> NDArray[np.bool_]:
    """[split, text] which texts are in the first half."""
    rng = np.random.default_rng(seed)
    halves = np.zeros((splits, count), dtype=bool)
    for half in halves:
        half[rng.permutation(count)[: count // 2]] = True
    return halves


def topic_auc(
    reader: Reader,
    rows: Float[Tensor, "text width"],
    topic: Sequence[int],
    others: Sequence[int],
    *,
    less: Float[Tensor, "text width"] | None = None,
    seed: int = 0,
) -> Estimate:
    """Rank AUC of the topic's words among other words in the average difference, resampled by text; 0.5 of nothing.

    less: another difference of the same texts; the estimate is then of AUC less that one's, with the same draws.
    """
    both = [rows] if less is None else [rows, less]

    def value(weights: Float[np.ndarray, "draw text"]) -> Float[np.ndarray, " draw"]:
        weighted = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()
        found = [_auc(reader.scores(weighted @ each, [*topic, *others]).numpy(), len(topic)) for each in both]
        return found[0] if less is None else found[0] - found[1]

    drawn = [value(weights) for weights in cluster_weights(len(rows), seed=seed, draws=_AUC_DRAWS)]
    return from_draws(
        float(value(np.ones((1, len(rows))))[0]),
        np.concatenate(drawn),
        n=len(rows),
        level=0.95,
        method=f"bootstrap over texts, {_AUC_DRAWS} draws, seed {seed}",
    )


# -- private, in the order they are called --


def _both(z: Tensor, best: Tensor, units: Tensor, pair: int) -> Legible:
    """Of one halving, both ways round."""
    a, b = best[pair], best[pair + 1]
    out = (z[pair + 1, a].mean() + z[pair, b].mean()) / 2
    cosines = units[a] @ units[b].T
    other = a[:, None] != b[None]
    alike = float(cosines[other].mean()) if bool(other.any()) else math.nan
    return Legible(float(out), alike)


def _auc(scores: Float[np.ndarray, "row some"], positive: int) -> Float[np.ndarray, " row"]:
    """Rank AUC of the first columns among all; ties count one half."""
    ranks = rankdata(scores, axis=1)[:, :positive].sum(axis=1)
    found: Float[np.ndarray, " row"] = (ranks - positive * (positive + 1) / 2) / (
        positive * (scores.shape[1] - positive)
    )
    return found
