"""Neurons that move the next-token law towards or away from how frequent tokens are.

With u the unit vector along log p_freq minus its mean, p_freq = (count + 1) / Σ: a neuron's frequency share is
what of its effect on the loss disappears when the logits' component along u is held, 1 − |Δloss, frozen| /
|Δloss|; and |ΔKL| how far its ablation moves the law from or to the unigram law. Both directions of KL are named:
KL(model ‖ unigram) is what figures claim, KL(unigram ‖ model) what published code computes.

Source: Stolfo et al. (2024, arXiv 2406.16254), sections on token-frequency neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import DatasetError
from steerlab.models import LanguageModel
from steerlab.models.laws import kl
from steerlab.neurons.head import NeuronHead

FLOOR = 1e-4  # nats; below it a share is a ratio of noise
_CELLS = 2**24  # written logits held at once


@dataclass(frozen=True)
class FrequencyEffects:
    """By neuron, means over tokens, nats: |Δloss|, the same with the frequency component held, and changes of both
    divergences.

    cosine: of the neuron's logits with u, from weights.
    """

    total: Float[np.ndarray, " neuron"]
    frozen: Float[np.ndarray, " neuron"]
    kl_model_unigram: Float[np.ndarray, " neuron"]
    kl_unigram_model: Float[np.ndarray, " neuron"]
    cosine: Float[np.ndarray, " neuron"]

    @property
    def share(self) -> Float[np.ndarray, " neuron"]:
        """1 − frozen / total; NaN below the floor."""
        return np.where(self.total > FLOOR, 1 - self.frozen / np.maximum(self.total, FLOOR), np.nan)

    def candidates(self, count: int = 10) -> list[int]:
        """Neurons whose share and |ΔKL| are both high: the largest products, NaN left out."""
        score = np.nan_to_num(np.clip(self.share, 0, 1)) * np.abs(self.kl_model_unigram)
        return [int(n) for n in np.argsort(-score, kind="stable")[:count] if score[n] > 0]


def read_counts(path: str | Path, vocab_size: int) -> Float[np.ndarray, " vocab"]:
    """Token counts from a .npy file, as published arrays have them; longer ones are cut to the real vocabulary.

    Raises:
        DatasetError: no such array, fewer counts than tokens, or negative ones.
    """
    try:
        counts = np.load(path, allow_pickle=False).astype(np.float64).ravel()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as an array of counts: {error}.") from error
    if len(counts) < vocab_size or (counts < 0).any():
        raise DatasetError(
            f"{path} holds {len(counts)} counts{' with negative ones' if (counts < 0).any() else ''} for {vocab_size} "
            "tokens; it belongs to another tokenizer."
        )
    kept: Float[np.ndarray, " vocab"] = counts[:vocab_size]
    return kept


def count_tokens(model: LanguageModel, texts: Sequence[str]) -> Float[np.ndarray, " vocab"]:
    """How often each token stands in the texts."""
    counts = np.zeros(model.vocab_size)
    for ids in map(np.array, model.token_ids(list(texts))):
        counts += np.bincount(ids[ids < model.vocab_size], minlength=model.vocab_size)
    return counts


def frequency_direction(
    counts: Float[np.ndarray, " vocab"],
) -> tuple[Float[np.ndarray, " vocab"], Float[np.ndarray, " vocab"]]:
    """log p_freq with one added to every count, and the unit vector u along it minus its mean."""
    logs = np.log(counts + 1) - np.log((counts + 1).sum())
    centred = logs - logs.mean()
    norm = np.linalg.norm(centred)
    if norm < 1e-9:
        raise DatasetError("All tokens are counted equally often, so there is no frequency direction.")
    return logs, centred / norm


def frequency_cosines(head: NeuronHead, unit: Float[np.ndarray, " vocab"]) -> Float[np.ndarray, " neuron"]:
    """Cosine with u of what each neuron of the head's layer adds to the logits, their mean taken off; zero where that
    is nothing."""
    u, rows = torch.from_numpy(unit), max(1, _CELLS // len(unit))
    cosines = []
    for start in range(0, head.n_neurons, rows):
        written = head.all_written_logits(range(start, min(start + rows, head.n_neurons))).double()
        centred = written - written.mean(-1, keepdim=True)
        norms = centred.norm(dim=-1) * u.norm()
        cosines.append(torch.where(norms > 0, centred @ u / norms.clamp(min=1e-300), 0.0))
    return np.asarray(torch.cat(cosines).numpy())


def frequency_effects(
    head: NeuronHead, counts: Float[np.ndarray, " vocab"], neurons: Sequence[int] | None = None
) -> FrequencyEffects:
    """Mean-ablate every neuron of the head's layer, or those named, with the norm recomputed."""
    logs, unit = frequency_direction(counts)
    log_freq, u = torch.from_numpy(logs).float(), torch.from_numpy(unit).float()
    chosen = range(head.n_neurons) if neurons is None else neurons
    before = head.logits
    law = before.log_softmax(-1)
    loss = head.loss(before)
    along = before @ u
    divergences = _divergences(law, log_freq)
    rows = []
    for neuron in chosen:
        logits = head.ablated(neuron)
        held = logits + ((along - logits @ u)[:, None] * u)
        moved = _divergences(logits.log_softmax(-1), log_freq)
        rows.append(
            [
                float((head.loss(logits) - loss).abs().mean()),
                float((head.loss(held) - loss).abs().mean()),
                float((moved[0] - divergences[0]).mean()),
                float((moved[1] - divergences[1]).mean()),
                float(torch.cosine_similarity(head.written_logits(neuron), u, dim=0)),
            ]
        )
    return FrequencyEffects(*np.array(rows).T)


def _divergences(
    law: Float[Tensor, "token vocab"], log_freq: Float[Tensor, " vocab"]
) -> tuple[Tensor, Tensor]:
    """KL(model ‖ unigram) and KL(unigram ‖ model) of every token."""
    return kl(law, log_freq), kl(log_freq, law)
