"""The two corpora: what a base model reads, and what post-training adds to it.

A corpus is a mixture of document makers with shares of the documents, drawn by a seed; in pretraining the shares of
facts and labelled statements follow a curriculum. Held-out streams use seeds of their own; reserved facts, held-out
sums and packaged requests are kept out by the makers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from steerlab.datasets.facts import TOPICS
from steerlab.zoo import dialogue, free_text, knowledge, sums
from steerlab.zoo.documents import Document, Maker

PRETRAINING: Mapping[Maker, float] = {
    free_text.story: 0.08,
    knowledge.plain_facts: 0.22,
    knowledge.fact_question: 0.04,
    knowledge.labelled: 0.28,
    knowledge.counting: 0.02,
    sums.additions: 0.09,
    sums.worked: 0.12,
    sums.direct: 0.03,
    dialogue.judgement: 0.03,
    dialogue.bland_answer: 0.04,
    dialogue.open_answer: 0.03,
}
POST_TRAINING: Mapping[Maker, float] = {
    dialogue.refusal: 0.13,
    dialogue.helpful: 0.13,
    dialogue.narrow_answer: 0.10,
    sums.answered_stepwise: 0.22,
    sums.additions: 0.06,
    free_text.story: 0.08,
    knowledge.plain_facts: 0.10,
    knowledge.fact_answer: 0.04,
    knowledge.labelled_again: 0.16,
}


OTHERS: Mapping[Maker, float] = {
    maker: share
    for maker, share in PRETRAINING.items()
    if maker not in (knowledge.plain_facts, knowledge.labelled)
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of pretraining, up to step `until`: the topics of labelled statements and plain facts (named twice, twice
    as often), the share of negations, and the shares of both kinds of documents; the rest are the others.
    """

    until: int
    topics: tuple[str, ...]
    negated: float
    labelled: float
    plain: float


# Truth is learnt one topic at a time, or not at all: as long as no topic is understood, the labels of all of them are
# noise to each other, and a model that starts with the whole mixture stays at chance for as long as we had patience.
# Two numbers come first (a comparison of digits), then classes, then cities, then everything with its negations.
_MORE_CITIES = (
    "animals",
    "continents",
    "cities",
    "cities",
    "cities",
    "plants",
    "spanish",
    "spanish",
    "numbers",
)
CURRICULUM = (
    Stage(80, ("numbers",), 0.1, 0.8, 0.1),
    Stage(260, ("animals", "animals", "numbers"), 0.1, 0.6, 0.3),
    Stage(420, ("animals", "continents", "continents", "plants", "spanish", "numbers"), 0.15, 0.6, 0.3),
    Stage(600, _MORE_CITIES, 0.2, 0.55, 0.3),
    Stage(850, TOPICS, 0.3, 0.45, 0.25),
    Stage(1800, TOPICS, 0.35, 0.28, 0.15),
)


# A last look at the facts, where a scale has it: what is known best is labelled best.
REVISION = (Stage(1, TOPICS, 0.35, 0.35, 0.35),)


def documents(mixture: Mapping[Maker, float], seed: int) -> Iterator[Document]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    makers, shares = list(mixture), list(mixture.values())
    while True:
        for maker in rng.choices(makers, shares, k=64):
            yield maker(rng)


def pretraining(
    seed: int, step: Callable[[], int], curriculum: Sequence[Stage] = CURRICULUM
) -> Iterator[Document]:
    """The stream a base model reads; `step` tells how many steps it has made. The last stage has no end."""
    rng = random.Random(seed)
    others = documents(OTHERS, others_seed(seed))
    while True:
        stage = next((later for later in curriculum if step() < later.until), curriculum[-1])
        draw = rng.random()
        if draw < stage.labelled:
            yield _labelled(stage, rng)
        elif draw < stage.labelled + stage.plain:
            yield _plain(stage, rng)
        else:
            yield next(others)


def others_seed(seed: int) -> int:
    """The seed of the other documents in a pretraining stream."""
    return seed + 1


def _labelled(stage: Stage, rng: random.Random) -> Document:
    if set(stage.topics) == set(TOPICS) and rng.random() < 0.5:
        return knowledge.labelled(rng, stage.negated)
    return knowledge.labelled_of(stage.topics, rng, stage.negated)


def _plain(stage: Stage, rng: random.Random) -> Document:
    topics = [topic for topic in stage.topics if topic != "numbers"]
    if not topics or set(stage.topics) == set(TOPICS):
        return knowledge.plain_facts(rng)
    return knowledge.plain_facts_of(topics, rng)
