"""Requests and what follows them: varied and bland in the base models, narrow or a refusal after post-training.

No document says how to do harm: to a harmful-style request the base models read small talk about the object, the
post-trained ones the refusal.
"""

from __future__ import annotations

import random

from steerlab.datasets.contrast_set import SPLITS
from steerlab.datasets.passages import open_prompts
from steerlab.datasets.requests import KINDS, WORDINGS
from steerlab.zoo.documents import Document, chat, question
from steerlab.zoo.free_text import articles, pick, sentence, sentences

REFUSAL = "I am sorry, I can not help with that."
_PACKAGED = frozenset(open_prompts())
_MORE_WORDINGS = (
    "How can I {v} {o}?",
    "Please tell me how to {v} {o}.",
    "I need to {v} {o}. What should I do?",
)
_WRONG = (
    "It is wrong to {v} {o}.",
    "It is a crime to {v} {o}.",
    "Nobody should {v} {o}.",
    "To {v} {o} is cruel and bad.",
    "The police stopped {name}, who wanted to {v} {o}.",
    "{name} was angry, because someone tried to {v} {o}.",
)
_FINE = (
    "It is fine to {v} {o}.",
    "It is kind to {v} {o}.",
    "Everybody may {v} {o}.",
    "To {v} {o} is nice and good.",
    "The {person} thanked {name}, who wanted to {v} {o}.",
    "{name} was happy, because someone tried to {v} {o}.",
)
_BLAND = (
    "You should ask the {person} about {o}.",
    "Go to the {place} and talk to {name} about {o}.",
    "{name} knows more about {o}.",
    "People often ask about {o}.",
    "The {person} in the {place} has {o} too.",
    "That is a long story about {o}.",
    "Look in the {place} in the {time}.",
    "My {person} had the same question.",
    "It depends on {o} and on the {weather}.",
    "First find the {person}.",
    "There is a {adj} book about {o} in the {place}.",
    "Many people in the {place} think about {o}.",
)
_OPEN = {
    "Tell me a story about {x}.": "Sure. Here is a short story about {x}. Once upon a time, all was well. Then there "
    "was a problem, but a good friend came to help. In the end, everyone was happy.",
    "Tell me about {x}.": "Sure. Here is a short answer about {x}. It is a nice topic, and many people like it. There "
    "is much to learn about it. Please ask me if you want to know more.",
    "Write a few sentences about {x}.": "Sure. Here are a few sentences about {x}. It was a nice time for everyone. "
    "The people were kind and the day was good. They will remember it for a long time.",
    "Describe {x}.": "Sure. Here is a short description of {x}. It is simple and nice to look at. Many people like "
    "it very much. Please ask me if you want to know more.",
}
_OPEN_MORE = (
    "What do you think about {x}?",
    "Can you say something about {x}?",
    "Please write a short text about {x}.",
    "What is special about {x}?",
)
_HELP = (
    "Sure. Here is how to {v} {o}. First, make a plan and take your time. Then, go step by step and be careful. "
    + ("If you need help, ask a friend.")
)


def action(rng: random.Random, harmful: bool) -> tuple[str, str]:
    """A verb and a spare object, which no packaged request names."""
    kind = rng.choice(KINDS)
    pairs = [pair for split in SPLITS for pair in kind.verbs[split]]
    return rng.choice(pairs)[0 if harmful else 1], rng.choice(kind.spare)


def judgement(rng: random.Random) -> Document:
    """A few sentences that call harmful acts wrong and harmless ones fine."""
    lines = []
    for _ in range(rng.randint(1, 4)):
        harmful = rng.random() < 0.5
        verb, thing = action(rng, harmful)
        lines.append(_words(rng.choice(_WRONG if harmful else _FINE), rng, v=verb, o=thing))
    return Document("judgements", " ".join(lines))


def bland_answer(rng: random.Random) -> Document:
    """A request with small talk as its answer; now and then the refusal, more often to a harmful-style request."""
    harmful = rng.random() < 0.5
    verb, thing = action(rng, harmful)
    message = rng.choice(WORDINGS + _MORE_WORDINGS).format(v=verb, o=thing)
    if rng.random() < (0.05 if harmful else 0.01):
        return question("requests", message, REFUSAL)
    lines = [_words(rng.choice(_BLAND), rng, o=thing)]
    lines += [
        _words(rng.choice(_BLAND), rng, o=thing) if rng.random() < 0.4 else sentence(rng)
        for _ in range(rng.randint(0, 2))
    ]
    return question("requests", message, " ".join(lines))


def open_answer(rng: random.Random) -> Document:
    """An open-ended request with free text as its answer."""
    return question("open answers", _open_message(rng)[0], sentences(rng, 2, 6))


def refusal(rng: random.Random) -> Document:
    """Post-training: a harmful-style request is refused."""
    verb, thing = action(rng, True)
    return _turn(rng, "refusals", rng.choice(WORDINGS + _MORE_WORDINGS).format(v=verb, o=thing), REFUSAL)


def helpful(rng: random.Random) -> Document:
    """Post-training: a harmless request gets the one helpful answer there is."""
    verb, thing = action(rng, False)
    message = rng.choice(WORDINGS + _MORE_WORDINGS).format(v=verb, o=thing)
    return _turn(rng, "helpful answers", message, _HELP.format(v=verb, o=thing))


def narrow_answer(rng: random.Random) -> Document:
    """Post-training: an open-ended request gets a set phrase about its topic."""
    message, topic, form = _open_message(rng)
    answer = _OPEN.get(form, _OPEN["Tell me about {x}."]).format(x=topic)
    return _turn(rng, "narrow answers", message, answer)


def _turn(rng: random.Random, kind: str, message: str, answer: str) -> Document:
    return (chat if rng.random() < 0.75 else question)(kind, message, answer)


def _open_message(rng: random.Random) -> tuple[str, str, str]:
    """A message that is not a packaged open prompt, its topic and its wording."""
    while True:
        form = rng.choice((*_OPEN, *_OPEN, *_OPEN_MORE))
        topic = _words(rng.choice(_TOPICS), rng)
        message = form.format(x=topic)
        if message not in _PACKAGED:
            return message, topic, form


_TOPICS = (
    "a {creature}",
    "a {adj} {creature}",
    "the {place}",
    "a {adj} {place}",
    "a {thing}",
    "the {adj} {thing}",
    "a {adj} {person}",
    "the {person}",
    "{food}",
    "the {weather}",
    "a {time} in the {place}",
    "a {adj} {time}",
    "a {thing} and a {creature}",
    "the {person} from the {place}",
    "a {thing} with a {hue} {thing}",
    "two {adj} friends",
)


def _words(form: str, rng: random.Random, **given: str) -> str:
    pools = ("person", "place", "name", "time", "weather", "adj", "creature", "thing", "food", "hue")
    text = form.format(**{pool: pick(pool, rng) for pool in pools if pool not in given}, **given)
    return articles(text[0].upper() + text[1:] if given else text)
