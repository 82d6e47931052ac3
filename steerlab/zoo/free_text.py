"""Free text: little stories and descriptions from a grammar with many choices, so that base models learn variety."""

from __future__ import annotations

import random
import re

from steerlab.zoo.documents import Document

_WORDS = {
    "name": "Anna Ben Clara David Emma Felix Greta Henry Iris Jack Kate Leo Mara Nick Olga Paul Rosa Sam Tara Victor "
    "Wendy Oscar Lily Max Nora Peter Ruth Simon Vera Walter",
    "adj": "old small red blue quiet bright heavy strange warm cold empty soft broken green little dark golden narrow "
    "wooden dusty round tall clean yellow simple famous hidden gentle grey wild",
    "thing": "box lamp map letter coat basket bell book chair bottle blanket drum key ladder mirror painting rope "
    "shoe stone table umbrella violin wheel hat spoon kite candle clock ring bag",
    "creature": "fox crow cat dog horse rabbit goose owl mouse frog goat swan bear duck bee donkey sparrow turtle "
    "hen pony pig wolf",
    "place": "garden kitchen market forest station harbor school tower village library barn bridge field museum "
    "street river square mill castle lake hill shop park island church",
    "person": "farmer baker teacher sailor doctor neighbor singer painter child king grandmother uncle stranger "
    "tailor friend cook guard student sister mayor",
    "food": "bread soup cheese honey rice cake apples tea milk plums beans fish eggs salad",
    "weather": "rain snow wind fog sun storm frost cloud",
    "time": "morning evening afternoon night winter summer autumn spring Monday Friday Sunday",
    "did": "found carried painted lost opened cleaned dropped moved sold bought kept watched needed wanted borrowed "
    "mended hid noticed counted remembered",
    "went": "walked ran drove travelled hurried climbed wandered rode swam came",
    "feel": "happy tired sad proud hungry surprised calm afraid lucky busy curious angry",
    "how": "slowly quickly quietly gladly often always again never suddenly carefully early late",
    "near": "near behind beside under above inside across from beyond",
    "hue": "white black silver brown orange pink purple",
    "few": "two three four five six seven many some several",
    "sound": "laughed waited sang slept listened smiled cried danced whispered nodded",
}
_POOLS = {key: tuple(words.split()) for key, words in _WORDS.items()}

_SENTENCES = (
    "{name} {did} a {adj} {thing} in the {place}.",
    "The {adj} {thing} was {near} the {place}.",
    "On a {adj} {time}, {name} {went} to the {place} with the {person}.",
    "The {person} {did} the {thing} and {sound}.",
    "There was {weather} over the {place} all {time}.",
    "A {creature} {went} {how} through the {place}.",
    "{name} was {feel}, but the {person} was {feel}.",
    "They had {food} and {food} for dinner.",
    "The {creature} and the {creature} {sound} {near} the {thing}.",
    "In the {time} the {place} is {adj} and {adj}.",
    "{name} and {name} {did} {few} {adj} things.",
    "The {hue} {thing} belongs to the {person} from the {place}.",
    "Nobody {did} the {thing} of the {adj} {person}.",
    "{name} {how} {went} home after the {weather}.",
    "It was a {adj} {time}, and the {creature} {sound}.",
    "The {person} gave {name} a {hue} {thing} and some {food}.",
    "Behind the {place} there are {few} {adj} houses.",
    "When the {weather} came, the {person} {sound} {how}.",
    "{name} likes {food}, {food} and the {adj} {place}.",
    "At {time} a {person} {went} {near} the {place}.",
    "Every {time} the {person} {went} to the {place} for {food}.",
    "Once there was a {adj} {creature} who {did} a {thing}.",
    "The {place} has a {adj} {thing} and {few} {hue} doors.",
    "{name} said that the {thing} was {adj}.",
    "My {person} {did} the {thing} of a {feel} {person}.",
    "{few} {adj} people {sound} in the {place}.",
    "I {did} the {hue} {thing} {near} the {place}.",
    "We {how} had {food} in the {time}.",
    "Was the {creature} {feel}? The {person} {sound}.",
    '"Where is the {thing}?" said {name}. "In the {place}," said the {person}.',
    "The {weather} was {adj}, so {name} {did} a {thing}.",
    "{name} is a {feel} {person} with a {hue} {creature}.",
)


def sentence(rng: random.Random) -> str:
    """One sentence of the grammar."""
    form = rng.choice(_SENTENCES)
    parts = form.split("{")
    filled = parts[0] + "".join(_fill(part, rng) for part in parts[1:])
    return articles(filled[0].upper() + filled[1:])


def articles(text: str) -> str:
    """Write "an" for "a" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def sentences(rng: random.Random, low: int, high: int) -> str:
    """Between `low` and `high` sentences in a row."""
    return " ".join(sentence(rng) for _ in range(rng.randint(low, high)))


def story(rng: random.Random) -> Document:
    """A free-text document."""
    return Document("free text", sentences(rng, 3, 8) if rng.random() < 0.9 else sentences(rng, 9, 16))


def pick(pool: str, rng: random.Random) -> str:
    """A word of one of the grammar's pools."""
    return rng.choice(_POOLS[pool])


def _fill(part: str, rng: random.Random) -> str:
    pool, rest = part.split("}", 1)
    return pick(pool, rng) + rest
