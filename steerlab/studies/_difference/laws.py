"""Where the next-token laws of two models differ on the same tokens, text by text.

    KL(base ‖ post) at each position, nats;  rank in post of the token that base holds likeliest (0: no shift)
    Δ_i(v) = mean over the positions of text i of ln p_post(v) − ln p_base(v)

Promoted and demoted are tokens whose Δ_i differ from zero over the texts (Student's t, two-sided, false discovery after
Benjamini and Hochberg, 1995), among those with a mean probability of at least 1e-5 in one of the models; a token's
context is where its probability changed most. A few positions' logits exist at a time; kept is a handful of numbers
a token of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from steerlab.models import LanguageModel
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import kl
from steerlab.progress import counting
from steerlab.record import Record
from steerlab.statistics import Estimate, benjamini_hochberg, bootstrap_mean
from steerlab.studies._difference.reading import Texts

_BUDGET = 1024
_PLAUSIBLE = 1e-5
LEVEL = 0.05  # false discoveries among what is called
_SHOWN = 12  # tokens of each direction
_CONTEXT = 8  # tokens of a context
_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 1 << 30)


class Position(Record):
    """The laws at some positions: which text tokens they stand behind, KL in nats, and how far base's likeliest token
    falls in post, in ranks."""

    behind: str
    kl: Estimate
    rank_shift: Estimate


class Moved(Record):
    """A token that became likelier or less likely: change of ln p (nats) with its interval, q-value, mean
    probabilities, and the beginning behind which its probability changed most."""

    token: str
    change: Estimate
    q: float
    base: float
    post: float
    context: str


@dataclass(frozen=True)
class LawDifference:
    """By text and over the vocabulary.

    kl, rank_shift: [text][position]. mean, square: [vocab] Σ_i Δ_i and Σ_i Δ_i². base, post: [vocab] mean probability.
    most: [vocab] largest change of probability; where: [vocab] text and position of it.
    """

    kl: list[Float[np.ndarray, " position"]]
    rank_shift: list[Float[np.ndarray, " position"]]
    total: Float[Tensor, " vocab"]
    squares: Float[Tensor, " vocab"]
    base: Float[Tensor, " vocab"]
    post: Float[Tensor, " vocab"]
    where: Int[Tensor, "2 vocab"]

    @property
    def text_kl(self) -> Float[np.ndarray, " text"]:
        """Mean KL of each text, nats a token."""
        return np.array([each.mean() for each in self.kl])


def read_laws(base: LanguageModel, post: LanguageModel, texts: Texts) -> LawDifference:
    """Both models' laws behind every text token, compared a few positions at a time."""
    vocab, count = base.vocab_size, len(texts)
    total, squares, first, second = (torch.zeros(vocab, dtype=torch.float64) for _ in range(4))
    most, where = torch.full((vocab,), -1.0), torch.zeros((2, vocab), dtype=torch.long)
    divergences: list[np.ndarray] = [np.zeros(0)] * count
    shifts: list[np.ndarray] = [np.zeros(0)] * count

    def compared(text: int, p_states: Tensor, q_states: Tensor) -> None:
        delta = torch.zeros(vocab, dtype=torch.float64)
        parts = []
        for (some, logits), (_, others) in zip(
            base.logits_in_slices(p_states), post.logits_in_slices(q_states), strict=True
        ):
            p, q = (each.log_softmax(dim=-1).cpu() for each in (logits, others))
            best = p.argmax(dim=-1)
            parts.append((kl(p, q), (q > q.gather(1, best[:, None])).sum(dim=1)))
            delta += (q - p).sum(dim=0).double()
            chances, changed = p.exp(), q.exp()
            first.add_(chances.mean(dim=0).double() * len(p) / len(p_states))
            second.add_(changed.mean(dim=0).double() * len(p) / len(p_states))
            largest, at = (changed - chances).abs().max(dim=0)
            larger = largest > most
            most[larger] = largest[larger]
            where[0, larger], where[1, larger] = text, at[larger] + some.start
        mean = delta / len(p_states)
        total.add_(mean)
        squares.add_(mean**2)
        divergences[text], shifts[text] = (
            torch.cat(column).double().numpy() for column in zip(*parts, strict=True)
        )

    def read(rows: list[int]) -> None:
        batch = texts.batch(rows)
        at = texts.places(batch)
        states = [model.last_hidden(batch, *at) for model in (base, post)]
        for number, text in enumerate(rows):
            mine = at[0] == number
            compared(text, *(each[mine.to(each.device)] for each in states))

    with counting("comparing laws", count) as done:
        run_in_batches(read, texts.tokens.lengths, _BUDGET, done=done)
    return LawDifference(divergences, shifts, total, squares, first / count, second / count, where)


def positions(law: LawDifference, seed: int) -> list[Position]:
    """KL and rank shift by position, in widening spans, resampled by text."""
    longest = max(map(len, law.kl))
    rows = []
    for start, stop in pairwise(_EDGES):
        if start >= longest:
            break
        last = min(stop, longest)
        rows.append(
            Position(
                behind=f"{start + 1}" if last - start == 1 else f"{start + 1} to {last}",
                kl=_over_texts(law.kl, start, last, seed),
                rank_shift=_over_texts(law.rank_shift, start, last, seed),
            )
        )
    return rows


def moved(base: LanguageModel, law: LawDifference, texts: Texts) -> tuple[list[Moved], list[Moved], int, int]:
    """Tokens promoted and demoted most, those called at a false-discovery rate of 5 % only; how many were called and
    tested."""
    count = len(law.kl)
    mean = law.total / count
    error = ((law.squares / count - mean**2).clamp(min=0) * count / (count - 1) / count).sqrt()
    tested = (torch.maximum(law.base, law.post) >= _PLAUSIBLE).numpy()
    t = (mean / error.clamp(min=1e-300)).numpy()
    p = np.where(tested, 2 * stats.t.sf(np.abs(t), count - 1), np.nan)
    p[tested & (mean.numpy() == 0)] = 1.0
    q = benjamini_hochberg(p)
    called = np.flatnonzero(tested & (q <= LEVEL))
    order = called[np.argsort(mean.numpy()[called])]
    reach = float(stats.t.ppf(0.975, count - 1))

    def row(token: int) -> Moved:
        value, half = float(mean[token]), reach * float(error[token])
        text, at = (int(each) for each in law.where[:, token])
        ids = texts.ids[text][texts.skip : texts.skip + at + 1]
        return Moved(
            token=base.tokenizer.decode([token]),
            change=Estimate(
                value=value, low=value - half, high=value + half, n=count, method="Student's t over texts"
            ),
            q=float(q[token]),
            base=float(law.base[token]),
            post=float(law.post[token]),
            context=base.tokenizer.decode(ids[-_CONTEXT:]),
        )

    up = [row(token) for token in order[::-1] if mean[token] > 0][:_SHOWN]
    down = [row(token) for token in order if mean[token] < 0][:_SHOWN]
    return up, down, len(called), int(tested.sum())


# -- private --


def _over_texts(rows: list[np.ndarray], start: int, stop: int, seed: int) -> Estimate:
    means = [row[start:stop].mean() for row in rows if len(row) > start]
    return bootstrap_mean(means, seed=seed)
