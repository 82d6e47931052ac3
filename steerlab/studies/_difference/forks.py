"""Where answers fork: the first token at which post leaves base's greedy path, and what hangs on it.

Base goes on greedily behind the beginning of each text; post reads the same tokens. The fork is the first position at
which post's likeliest token is another one. Asked are its position, the share of the path's KL(base ‖ post) that lies
there (control: the share of a position drawn at random, one over the path's length), and commitment: from both tokens
post writes on, an outcome is whether what follows is more post-like than the text's median,

    advantage = (ln P_post − ln P_base) of the continuation, nats a token

and commitment is the share of the outcomes' variance that lies between the two tokens (`readouts.resampling`; control:
outcomes shuffled between them).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.models import LanguageModel, Tokens
from steerlab.models.batches import run_in_batches
from steerlab.models.laws import kl
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.resampling import commitment
from steerlab.readouts.samples import sample
from steerlab.readouts.scoring import token_log_probabilities
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, proportion
from steerlab.studies._difference.reading import Texts

BEGINNING = 8  # tokens of a text that answers go on from
_BUDGET = 1024
_SHUFFLES = 100
_GREEDY = SamplingLaw(0.0, "none", 1.0)
_PLAIN = SamplingLaw(1.0, "none", 1.0)


class Example(Record):
    """One fork: what stands before it, and the two tokens."""

    before: str
    base: str
    post: str
    position: int


class Forks(Record):
    """Forks over texts.

    texts, steps: how many, and tokens of a path at most. forked: share of texts with one. position: of the fork, from
    1. share: of the path's KL that lies there; share_control: one over the path's length. commitment: at the fork's
    token; commitment_control: outcomes shuffled (mean, central 95 %). None without a fork.
    """

    texts: int
    steps: int
    forked: Estimate
    position: Estimate | None = None
    share: Estimate | None = None
    share_control: Estimate | None = None
    commitment: Estimate | None = None
    commitment_control: Estimate | None = None
    examples: tuple[Example, ...] = ()


def read_forks(
    base: LanguageModel, post: LanguageModel, texts: Texts, steps: int, continuations: int, seed: int
) -> Forks:
    """The forks behind the beginnings of the texts; see the module."""
    starts = [ids[: texts.skip + BEGINNING] for ids in texts.ids]
    written = sample(base, starts, samples=1, max_new_tokens=steps, law=_GREEDY, description="greedy paths")
    paths = [row[row >= 0].tolist() for row in written.tokens]
    read = _compared(base, post, starts, paths)
    forks = [_first(other, path) for (_, other), path in zip(read, paths, strict=True)]
    rows = [row for row, at in enumerate(forks) if at is not None]
    found = Forks(
        texts=len(starts),
        steps=steps,
        forked=proportion(np.array([at is not None for at in forks], dtype=bool)),
    )
    if not rows:
        return found
    at = [forks[row] or 0 for row in rows]
    divergences = [read[row][0] for row in rows]
    shares = [each[place] / max(each.sum(), 1e-300) for each, place in zip(divergences, at, strict=True)]
    ways = [
        [
            [*starts[row], *paths[row][:place], token]
            for token in (paths[row][place], int(read[row][1][place]))
        ]
        for row, place in zip(rows, at, strict=True)
    ]
    settled, control = _commitment(base, post, ways, steps, continuations, seed)
    decode = base.tokenizer.decode
    return found.model_copy(
        update={
            "position": bootstrap_mean(np.array(at) + 1.0, seed=seed),
            "share": bootstrap_mean(shares, seed=seed),
            "share_control": bootstrap_mean([1 / len(each) for each in divergences], seed=seed),
            "commitment": settled,
            "commitment_control": control,
            "examples": tuple(
                Example(
                    before=decode(two[0][texts.skip : -1]),
                    base=decode([two[0][-1]]),
                    post=decode([two[1][-1]]),
                    position=place + 1,
                )
                for two, place in list(zip(ways, at, strict=True))[:8]
            ),
        }
    )


# -- private, in the order they are called --


def _compared(
    base: LanguageModel, post: LanguageModel, starts: Sequence[Sequence[int]], paths: Sequence[Sequence[int]]
) -> list[tuple[Float[np.ndarray, " step"], Tensor]]:
    """By text KL(base ‖ post) at every step of base's path, and post's likeliest token there."""
    whole = [[*start, *path] for start, path in zip(starts, paths, strict=True)]
    found: dict[int, tuple[np.ndarray, Tensor]] = {}

    def read(rows: list[int]) -> None:
        batch = Tokens.of_ids([whole[row] for row in rows])
        places = [
            (number, column)
            for number, row in enumerate(rows)
            for column in range(len(starts[row]) - 1, len(whole[row]) - 1)
        ]
        at = torch.tensor([row for row, _ in places]), torch.tensor([column for _, column in places])
        states = [model.last_hidden(batch, *at) for model in (base, post)]
        divergences, tokens = [], []
        for (_, logits), (_, others) in zip(
            base.logits_in_slices(states[0]), post.logits_in_slices(states[1]), strict=True
        ):
            p, q = (each.double().log_softmax(dim=-1).cpu() for each in (logits, others))
            divergences.append(kl(p, q))
            tokens.append(q.argmax(dim=-1))
        every, likeliest = torch.cat(divergences).numpy(), torch.cat(tokens)
        for number, row in enumerate(rows):
            mine = at[0] == number
            found[row] = every[mine.numpy()], likeliest[mine]

    run_in_batches(read, list(map(len, whole)), _BUDGET)
    return [found[row] for row in range(len(whole))]


def _first(likeliest: Tensor, path: Sequence[int]) -> int | None:
    """The first step at which another token is likeliest; None where there is none."""
    other = (likeliest != torch.tensor(list(path))).nonzero()
    return int(other[0]) if len(other) else None


def _commitment(
    base: LanguageModel,
    post: LanguageModel,
    ways: Sequence[Sequence[Sequence[int]]],
    steps: int,
    continuations: int,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """How much of whether post's continuation is post-like is settled by the token, and with outcomes shuffled."""
    prompts = [way for two in ways for way in two]
    runs = sample(
        post,
        prompts,
        samples=continuations,
        max_new_tokens=max(4, steps // 2),
        law=_PLAIN,
        seed=seed,
        description="continuations of forks",
    )
    ids = [
        [*prompts[prompt], *row[row >= 0].tolist()]
        for prompt, row in zip(runs.prompt, runs.tokens, strict=True)
    ]
    begin = [len(prompts[prompt]) for prompt in runs.prompt]
    scores = [_scores(model, ids, begin) for model in (post, base)]
    advantage = (scores[0] - scores[1]).reshape(len(ways), 2 * continuations)
    likes = advantage > np.median(advantage, axis=1, keepdims=True)
    found = commitment(likes.reshape(len(ways), 2, continuations).mean(axis=2), continuations, seed=seed)
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(_SHUFFLES):
        shuffled = rng.permuted(likes, axis=1).reshape(len(ways), 2, continuations)
        null.append(commitment_value(shuffled.mean(axis=2), continuations))
    known = np.array([value for value in null if np.isfinite(value)])
    if not len(known):
        return found, Estimate(value=float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    control = Estimate(
        value=float(np.clip(known.mean(), low, high)),
        low=float(low),
        high=float(high),
        n=len(ways),
        method=f"{_SHUFFLES} shuffles between the two tokens",
    )
    return found, control


def commitment_value(rates: Float[np.ndarray, "text 2"], continuations: int) -> float:
    """The value of `readouts.resampling.commitment` for two prefixes, without its interval."""
    within = float((rates * (1 - rates)).mean(axis=1).sum()) * continuations / (continuations - 1)
    whole = float((rates.mean(axis=1) - rates[:, 0] * rates[:, 1]).sum())
    return 1 - within / whole if whole > 1e-12 else float("nan")


def _scores(
    model: LanguageModel, ids: Sequence[Sequence[int]], begin: Sequence[int]
) -> Float[np.ndarray, " row"]:
    """Mean ln P of each row's tokens from `begin` on, nats a token."""
    found = np.zeros(len(ids))

    def read(rows: list[int]) -> None:
        each = token_log_probabilities(
            model, Tokens.of_ids([ids[row] for row in rows]), [begin[row] for row in rows]
        )
        found[rows] = [float(of_row.mean()) for of_row in each]

    run_in_batches(read, list(map(len, ids)), _BUDGET)
    return found
