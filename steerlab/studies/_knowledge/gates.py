"""Do both models know the answers? Pairs with the labelled lines that the weaker model answers best with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steerlab.datasets import Differ, StatementPair, StatementSet
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.studies._knowledge.maps import PairAnswers, answer
from steerlab.studies._knowledge.pairs import TracingPairs, tracing_pairs
from steerlab.studies._knowledge.result import Gate

FEWEST = 8  # pairs that both models answer right
_CHANCE = 0.25  # both sides right by coin


def answered_pairs(
    models: Mapping[str, LanguageModel],
    statements: StatementSet | Sequence[StatementPair],
    answers: tuple[str, str],
    differ: Differ,
    shots: int | None,
    published: bool,
    seed: int,
    asked: int | None = None,
) -> tuple[TracingPairs, dict[str, PairAnswers]]:
    """The pairs with the number of labelled lines with which the weaker model answers most of them right.

    asked: how many pairs, drawn by the seed; None asks about all.
    """
    best: tuple[float, TracingPairs, dict[str, PairAnswers]] | None = None
    failed: SteerlabError | None = None
    for n in (0, 4) if shots is None else (shots,):
        try:
            pairs = tracing_pairs(
                list(models.values()),
                statements,
                answers=answers,
                differ=differ,
                shots=n,
                matching="published" if published else "corrected",
                seed=seed,
            )
            if asked is not None and asked < len(pairs):
                drawn = np.random.default_rng(seed).permutation(len(pairs))[:asked]
                pairs = pairs.only(np.sort(drawn).tolist())
            own = {name: answer(model, pairs) for name, model in models.items()}
        except PromptError as error:
            # Four lines may be more than the context holds; that the answers are no tokens is so without any.
            failed = error
            continue
        share = min(float(given.right.mean()) for given in own.values())
        if best is None or share > best[0]:
            best = share, pairs, own
    if best is None:
        assert failed is not None
        raise failed
    return best[1], best[2]


def gate(name: str, own: PairAnswers, pairs: TracingPairs) -> Gate:
    return Gate(
        model=name,
        pairs=len(pairs),
        right=int(own.right.sum()),
        **{f"{side}_side": own.accuracy(side, pairs.clusters) for side in ("true", "false")},
        both=own.accuracy("both", pairs.clusters),
    )


def at_chance(gates: Sequence[Gate], right: int, published: bool) -> str:
    """Why nothing can be mapped, or nothing."""
    for gate in gates:
        if not gate.both.low > _CHANCE:
            return (
                f"The {gate.model} model answers both statements of a pair right for {gate.both} of pairs, which is "
                f"not above chance ({_CHANCE}), so there is no knowledge of them to locate; ask in another way "
                "(answers, shots), or about what it knows."
            )
    if right < FEWEST and not published:
        return (
            f"Both models answer only {right} pairs right on both sides; at least {FEWEST} are needed for a map. Give "
            "more statements."
        )
    return ""
