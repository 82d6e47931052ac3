"""Where do two models differ on unrelated text, and does the difference name a narrow topic? No judge is asked.

Both models read the same texts. The average difference of their residual streams, by layer and by place, is read
through base's unembedding (`lens`), compared with what chance makes of it (`nulls`), and added to base (`steering`).
Their next-token laws are compared position by position (`laws`), and their answers where they first fork (`forks`).
Sources: the activation-difference lens and diff mining, Minder et al. (2025, arXiv 2510.13900), which ask language
models to grade; random LoRA as null is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from steerlab import datasets
from steerlab.registry import Size, check_options
from steerlab.statistics import Estimate, bootstrap_mean, mean_and_extremes, permutation_p_value
from steerlab.studies._difference.forks import read_forks
from steerlab.studies._difference.laws import moved, positions, read_laws
from steerlab.studies._difference.lens import Reader, halvings, topic_auc
from steerlab.studies._difference.nulls import (
    changed_maps,
    flips,
    shared_by_text,
    with_lora,
    with_random_mean,
)
from steerlab.studies._difference.reading import (
    PLACES,
    Differences,
    Texts,
    own_states,
    read_differences,
    read_texts,
    require_room,
)
from steerlab.studies._difference.result import (
    FLIPS,
    LORA,
    VECTORS,
    DifferenceResult,
    Layer,
    Null,
    Place,
    verdict_of,
)
from steerlab.studies._difference.sentences import headline, sentences
from steerlab.studies._difference.steering import steer
from steerlab.studies._pair import LARGE, Models, Pair, amounts_note, amounts_of

_ITSELF = "itself"
_DRAWS = "mean, least and greatest of {n} draws"


@dataclass(frozen=True)
class Amount:
    """How much is read: texts and their tokens, draws of each null, sign flips, halvings; texts steered and random
    vectors beside; texts whose answers fork, new tokens, and continuations of each fork's token."""

    texts: int
    tokens: int
    draws: int = 19
    flips: int = 199
    halvings: int = 2
    steered: int = 16
    randoms: int = 10
    forks: int = 16
    steps: int = 24
    continuations: int = 4


_AMOUNTS: dict[str, Amount] = {
    "quick": Amount(texts=48, tokens=32),
    LARGE: Amount(texts=20, tokens=24, halvings=1, steered=6, randoms=5, forks=6, steps=16),
    "full": Amount(texts=200, tokens=64, draws=39, halvings=4, steered=64, randoms=20, forks=64, steps=48),
}


def difference_amount(size: str) -> Amount:
    """How much a run of this size reads ("quick", "full", or `studies._pair.LARGE`)."""
    return _AMOUNTS[size]


# Long: a third of it documents its options, a third names the fields of the result.
def difference(
    pair: Pair | Models,
    texts: Sequence[str] | None = None,
    *,
    topic: Sequence[str] = (),
    against: Sequence[str] = (),
    size: Size = "quick",
    seed: int = 0,
) -> DifferenceResult:
    """Compare two models of one shape on texts that have nothing to do with what may differ.

    Args:
        pair: base and post, loaded, with the same tokenizer, depth and width.
        texts: plain texts, at least 8; by default packaged passages.
        topic: words of a topic that one suspects; their rank AUC in the difference is reported, the verdict does not
            look at them.
        against: the words that the topic's are ranked among; by default every other word of the vocabulary.
        size: "full" reads more and longer texts beside more draws of each null.
        seed: of halvings, nulls, continuations and intervals.

    Raises:
        DatasetError: no text, an empty one, fewer than 8, or a topic without a word of one token.
        SteerlabError: models with different tokenizers or of different shape, or an unknown size.
        PromptError: a text that does not fit into a context.
    """
    check_options("The difference study", size=size)
    pair = Pair.of(pair)
    base, post = pair
    amount = _AMOUNTS[amounts := amounts_of(size, pair)]
    given = datasets.plain_text() if texts is None else texts
    chosen = read_texts(pair, given, amount.texts, amount.tokens)
    steps = require_room(pair, chosen, amount.steps)
    law = read_laws(base, post, chosen)
    reader = Reader(base, law.base)
    words = _topic(reader, topic, against)
    norms = changed_maps(base, post)
    found = _read(pair, chosen, norms, amount, seed)
    own, lora = found["post"], [found[name] for name in found if name.startswith(LORA)]
    halves = halvings(len(chosen), amount.halvings, seed)
    legible = reader.legible(own.at(), halves)
    best = int(np.nanargmax(legible[:, 0]))
    by_text = _shared(own)
    shared = bootstrap_mean(by_text.mean(axis=0), seed=seed)
    nulls = _nulls(reader, own, lora, halves, shared, legible, amount, seed)
    up, down, called, tested = moved(base, law, chosen)
    result = DifferenceResult(
        summary=[],
        verdict=verdict_of(shared, nulls),
        texts=len(chosen),
        tokens=sum(chosen.tokens.lengths),
        shared=shared,
        stands_out=float(legible[best, 0]),
        alike=float(legible[best, 1]),
        kl=bootstrap_mean(law.text_kl, seed=seed),
        read_at=best,
        layers=_layers(reader, own, by_text, lora, legible, words, seed),
        places=_places(reader, own, seed),
        nulls=nulls,
        positions=tuple(positions(law, seed)),
        promoted=tuple(up),
        demoted=tuple(down),
        called=called,
        tested=tested,
        forks=read_forks(base, post, chosen.some(amount.forks), steps, amount.continuations, seed),
        steering=steer(
            base,
            post,
            chosen.some(amount.steered),
            own.at()[base.n_layers // 2].mean(dim=0),
            base.n_layers // 2,
            amount.randoms,
            seed,
        ),
        itself=float(found[_ITSELF].rows.nan_to_num().abs().max()),
        missing=_missing(norms, own),
    )
    return result.model_copy(
        update={
            "status": "not identified" if result.verdict == "not identified" else "done",
            "summary": [*sentences(result), *result.missing.values(), *amounts_note(amounts)],
            "headline": headline(result),
        }
    )


# -- private, in the order they are called --


def _topic(
    reader: Reader, topic: Sequence[str], against: Sequence[str]
) -> tuple[list[int], list[int]] | None:
    """The tokens of the topic's words and of the others; None without a topic."""
    if not topic:
        return None
    ids = reader.ids_of(topic)
    others = reader.ids_of(against) if against else reader.words.tolist()
    return ids, sorted(set(others) - set(ids))


def _read(
    pair: Pair, texts: Texts, norms: dict[str, float], amount: Amount, seed: int
) -> dict[str, Differences]:
    """Post, base itself, and base with each random LoRA, all less base."""
    base, post = pair
    others = {"post": (own_states(post), PLACES), _ITSELF: (own_states(base), ("all",))}
    if norms:
        for draw in range(amount.draws):
            others[f"{LORA} {draw}"] = with_lora(base, norms, seed + draw), ("all",)
    return read_differences(base, others, texts, "reading both models and random changes")


def _shared(found: Differences, place: str = "all") -> Float[np.ndarray, "layer text"]:
    """What each text shares with the others at every layer."""
    return np.stack(
        [shared_by_text(rows, float(norm))[0] for rows, norm in zip(found.at(place), found.norm, strict=True)]
    )


def _nulls(
    reader: Reader,
    own: Differences,
    lora: Sequence[Differences],
    halves: np.ndarray,
    shared: Estimate,
    legible: np.ndarray,
    amount: Amount,
    seed: int,
) -> tuple[Null, ...]:
    """The three quantities under every null."""
    rows = own.at()
    signs = flips(rows.shape[1], amount.flips, seed)
    mixed = np.mean(
        [
            shared_by_text(at, float(norm), signs).mean(axis=1)
            for at, norm in zip(rows, own.norm, strict=True)
        ],
        axis=0,
    )
    # A reading knows no length, so flipped signs, which shrink what texts share and do not turn it, are no null of it.
    drawn: dict[str, tuple[np.ndarray | None, list[Tensor]]] = {
        FLIPS: (mixed, []),
        VECTORS: (None, [with_random_mean(rows, seed, draw) for draw in range(amount.draws)]),
        LORA: (np.array([_shared(each).mean() for each in lora]), [each.at() for each in lora]),
    }
    return tuple(
        _null(name, values, [_peak(reader.legible(each, halves)) for each in states], shared, _peak(legible))
        for name, (values, states) in drawn.items()
        if states or name == FLIPS
    )


def _peak(legible: np.ndarray) -> tuple[float, float]:
    """Both numbers at the layer where words stand out most."""
    best = int(np.nanargmax(legible[:, 0]))
    return float(legible[best, 0]), float(legible[best, 1])


def _null(
    name: str,
    values: np.ndarray | None,
    peaks: Sequence[tuple[float, float]],
    shared: Estimate,
    peak: tuple[float, float],
) -> Null:
    drawn = {"shared": (shared.value, None if values is None else values.tolist())}
    for number, field in enumerate(("stands_out", "alike")):
        drawn[field] = (
            float(np.nan_to_num(peak[number])),
            [float(np.nan_to_num(each[number])) for each in peaks],
        )
    fields: dict[str, Any] = {"name": name}
    for field, (own, null) in drawn.items():
        fields[field] = mean_and_extremes(null, _DRAWS) if null else None
        fields[f"{field}_p"] = permutation_p_value(own, null) if null else float("nan")
    return Null(**fields)


def _layers(
    reader: Reader,
    own: Differences,
    by_text: Float[np.ndarray, "layer text"],
    lora: Sequence[Differences],
    legible: np.ndarray,
    words: tuple[list[int], list[int]] | None,
    seed: int,
) -> tuple[Layer, ...]:
    """A row a layer, random LoRA beside it."""
    random = np.array([_shared(each).mean(axis=1) for each in lora])
    return tuple(
        Layer(
            layer=layer,
            shared=bootstrap_mean(by_text[layer], seed=seed),
            lora=mean_and_extremes(random[:, layer].tolist(), _DRAWS) if len(random) else None,
            stands_out=float(legible[layer, 0]),
            alike=float(legible[layer, 1]),
            words=reader.top(rows.mean(dim=0)),
            topic=None if words is None else topic_auc(reader, rows, *words, seed=seed),
        )
        for layer, rows in enumerate(own.at())
    )


def _places(reader: Reader, own: Differences, seed: int) -> tuple[Place, ...]:
    """A row a place and layer, of the places that two texts have."""
    made = []
    for place in own.places:
        rows: Tensor = own.at(place)
        if rows.shape[1] < 2:
            continue
        for layer, by_text in enumerate(_shared(own, place)):
            made.append(
                Place(
                    layer=layer,
                    place=place,
                    texts=rows.shape[1],
                    shared=bootstrap_mean(by_text, seed=seed),
                    words=reader.top(rows[layer].mean(dim=0), 8),
                )
            )
    return tuple(made)


def _missing(norms: dict[str, float], own: Differences) -> dict[str, str]:
    if norms:
        return {}
    if own.nothing:
        return {LORA: "No weight and no state differs, so there is no random LoRA of equal norm."}
    return {
        LORA: "No linear map's weights differ between the models (or both hold one set of them), so there is no random "
        "LoRA of equal norm and the verdict rests on the other nulls; fold an adapter into weights of its own."
    }
