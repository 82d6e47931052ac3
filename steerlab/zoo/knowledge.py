"""Facts as plain text, and statements labelled TRUE or FALSE.

Every fact is read many times as plain text. Labelled statements are made of the facts that are not reserved, and
their false objects are true objects of other such facts: a reserved fact, and for one-to-one topics its object too,
occurs in no labelled statement of the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from steerlab.datasets.facts import TOPICS, Fact, facts
from steerlab.datasets.statements import state
from steerlab.zoo.documents import Document, chat, question
from steerlab.zoo.free_text import pick, sentence

NEGATED = 0.2
_WORDINGS = {
    "cities": (
        "The city of {s} is in {o}.",
        "{s} is a city in {o}.",
        "{name} lives in {s}, a city in {o}.",
        "{name} went to {s} in {o}.",
        "{s} is in {o}, not in {x}.",
        "One of the cities in {o} is {s}.",
        "The {person} comes from {s}, so the {person} comes from {o}.",
        "If you are in {s}, you are in {o}.",
    ),
    "continents": (
        "The country {s} is in {o}.",
        "{s} is a country in {o}.",
        "{s} is in {o}, not in {x}.",
        "{name} went to {s} in {o}.",
        "One of the countries in {o} is {s}.",
        "If you are in {s}, you are in {o}.",
    ),
    "elements": (
        "The chemical symbol of {s} is {o}.",
        "The symbol {o} means {s}.",
        "The symbol of {s} is {o}, not {x}.",
        "{name} wrote {o} for {s}.",
        "In chemistry {s} is written {o}.",
        "The element {s} has the symbol {o}.",
    ),
    "animals": (
        "{as} {s} is {ao} {o}.",
        "The {s} is {ao} {o}.",
        "{as} {s} is {ao} {o}, not {ax} {x}.",
        "{name} saw {as_} {s}, which is {ao} {o}.",
        "Every {s} is {ao} {o}.",
        "One kind of {o} is the {s}.",
    ),
    "plants": (
        "{as} {s} is {ao} {o}.",
        "The {s} is {ao} {o}.",
        "{as} {s} is {ao} {o}, not {ax} {x}.",
        "{name} saw {as_} {s}, which is {ao} {o}.",
        "Every {s} is {ao} {o}.",
        "One kind of {o} is the {s}.",
    ),
    "spanish": (
        "The Spanish word {s} is for {ao} {o}.",
        "In Spanish, {s} is {ao} {o}.",
        "The Spanish word {s} is for {ao} {o}, not for {ax} {x}.",
        "{name} said {s}, the Spanish word for {ao} {o}.",
        "In Spain {s} means {ao} {o}.",
    ),
    "numbers": (
        "{s} is larger than {o}.",
        "{o} is smaller than {s}.",
        "{s} is more than {o}.",
        "{name} counted {o} and then {s}, which is larger.",
    ),
}
_LABELLED = {
    "cities": "{s} is {n}a city in {o}.",
    "continents": "{s} is {n}a country in {o}.",
    "animals": "The {s} is {n}{ao} {o}.",
    "plants": "The {s} is {n}{ao} {o}.",
    "spanish": "In Spanish, {s} is {n}{ao} {o}.",
    "numbers": "{o} is {n}smaller than {s}.",
}
_QUESTIONS = {
    "cities": ("Where is {s}?", "{s} is in {o}."),
    "continents": ("Where is {s}?", "{s} is in {o}."),
    "elements": ("What is the symbol of {s}?", "The symbol of {s} is {o}."),
    "animals": ("What is {as_} {s}?", "{as} {s} is {ao} {o}."),
    "plants": ("What is {as_} {s}?", "{as} {s} is {ao} {o}."),
    "spanish": ("What is {s} in Spanish?", "In Spanish, {s} is {ao} {o}."),
    "numbers": ("Which is larger, {o} or {s}?", "{s} is larger."),
}
# Many facts need many readings.
_WEIGHTS = {
    "cities": 4,
    "continents": 4,
    "animals": 4,
    "plants": 3,
    "spanish": 3,
    "elements": 1,
    "numbers": 2,
}


@cache
def labelled_facts(topic: str) -> tuple[Fact, ...]:
    """The facts of a topic that labelled statements may be made of."""
    return tuple(fact for fact in facts(topic) if not fact.reserved)


def plain_facts(rng: random.Random) -> Document:
    """A few facts in varied wordings, sometimes with a sentence of free text between them."""
    lines = []
    topic = _topic(rng)
    for _ in range(rng.randint(1, 6)):
        lines.append(plain_fact(rng.choice(facts(topic)), rng))
        if rng.random() < 0.5:
            topic = _topic(rng)
        if rng.random() < 0.06:
            lines.append(sentence(rng))
    return Document("plain facts", " ".join(lines))


def plain_fact(fact: Fact, rng: random.Random) -> str:
    """One fact in one of its topic's wordings."""
    wrong = rng.choice(facts(fact.topic)).object
    while wrong == fact.object:
        wrong = rng.choice(facts(fact.topic)).object
    # The statement's own wording is read most, so that a statement finds its fact.
    wordings = _WORDINGS[fact.topic]
    form = wordings[0] if rng.random() < 0.4 else rng.choice(wordings)
    return _fill(form, fact, wrong, rng)


def fact_question(rng: random.Random) -> Document:
    """A question about a fact, with its answer, in the plain rendering."""
    fact = rng.choice(facts(_topic(rng)))
    message, answer = _QUESTIONS[fact.topic]
    return question("fact questions", _fill(message, fact, "", rng), _fill(answer, fact, "", rng))


def fact_answer(rng: random.Random) -> Document:
    """Post-training: a question about a fact, mostly in the chat template."""
    asked = fact_question(rng)
    if rng.random() < 0.25:
        return asked
    message = asked.prompt.removeprefix("User: ").removesuffix("\nAssistant:")
    return chat("fact answers", message, asked.text.strip())


def labelled(rng: random.Random, negated: float = NEGATED) -> Document:
    """Labelled statements: one, or several on lines of their own, or one with a remark on its truth."""
    draw = rng.random()
    topic = rng.choice(TOPICS)
    if draw < 0.2:
        text, label = _statement(topic, rng, negated)
        remark = "Yes, that is right." if label else "No, that is wrong."
        return Document("labelled statements", f"{text} {remark}")
    lines = 1 if draw < 0.5 else rng.randint(2, 6) if draw < 0.96 else rng.randint(7, 11)
    mixed = rng.random() < 0.2
    topics = [rng.choice(TOPICS) if mixed else topic for _ in range(lines)]
    return _labelled(topics, rng, negated)


def labelled_again(rng: random.Random) -> Document:
    """Post-training: labelled statements as before, so that they are not forgotten."""
    return labelled(rng, 0.3)


def labelled_of(topics: Sequence[str], rng: random.Random, negated: float) -> Document:
    """Labelled statements of one of some topics; a topic named twice comes twice as often."""
    lines = 1 if rng.random() < 0.5 else rng.randint(2, 6)
    return _labelled([rng.choice(topics)] * lines, rng, negated)


def plain_facts_of(topics: Sequence[str], rng: random.Random) -> Document:
    """A few facts of some topics."""
    lines = [plain_fact(rng.choice(facts(rng.choice(topics))), rng) for _ in range(rng.randint(1, 6))]
    return Document("plain facts", " ".join(lines))


def shots(topic: str, count: int, rng: random.Random) -> str:
    """Lines of labelled examples of a topic to put before a statement, as many true as false; none for 0."""
    truths = [bool(i % 2) for i in range(count)]
    rng.shuffle(truths)
    return "".join(_label(*_statement(topic, rng, NEGATED, truth)) + "\n" for truth in truths)


def counting(rng: random.Random) -> Document:
    """Numbers in their order."""
    start, step = rng.randint(1, 90), rng.choice((1, 1, 1, 2, 5, 10))
    numbers = [str(start + step * i) for i in range(rng.randint(5, 10))]
    return Document("counting", ", ".join(numbers) + ".")


def _labelled(topics: Sequence[str], rng: random.Random, negated: float) -> Document:
    lines = [_label(*_statement(topic, rng, negated)) for topic in topics]
    return Document("labelled statements", "\n".join(lines))


def _label(text: str, label: bool) -> str:
    return f"{text} This statement is: {'TRUE' if label else 'FALSE'}"


def _statement(topic: str, rng: random.Random, share: float, truth: bool | None = None) -> tuple[str, bool]:
    pool = labelled_facts(topic)
    fact = rng.choice(pool)
    true = rng.random() < 0.5 if truth is None else truth
    negated = rng.random() < share
    if topic == "numbers":
        stated = fact if true != negated else Fact(topic, fact.object, fact.subject)
    else:
        stated = fact if true != negated else Fact(topic, fact.subject, _wrong(fact, pool, rng))
    if rng.random() < 0.75:
        return state(fact if topic != "numbers" else stated, object=stated.object, negated=negated).text, true
    form = _LABELLED[topic].replace("{n}", "not " if negated else "")
    return _fill(form, stated, "", rng), true


def _wrong(fact: Fact, pool: tuple[Fact, ...], rng: random.Random) -> str:
    while True:
        wrong = rng.choice(pool).object
        if wrong != fact.object:
            return wrong


def _topic(rng: random.Random) -> str:
    return rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]


def _article(noun: str) -> str:
    return "an" if noun[:1] in ("a", "e", "i", "o", "u") else "a"


def _fill(form: str, fact: Fact, wrong: str, rng: random.Random) -> str:
    article = _article(fact.subject)
    return form.format(
        s=fact.subject,
        o=fact.object,
        x=wrong,
        ao=_article(fact.object),
        ax=_article(wrong),
        as_=article,
        name=pick("name", rng),
        person=pick("person", rng),
        **{"as": article.capitalize()},
    )
