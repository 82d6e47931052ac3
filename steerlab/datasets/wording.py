"""How a fact is put into words, in English and in German.

A wording holds the subject `{s}`, the object `{o}` and a place for the negation: `{n}` takes a word ("not ", "nicht ")
and `{k}` the letter that makes "ein" a "kein". `{as}` and `{ao}` are the English indefinite articles that the words
after them need. German words and the articles they take in the wording stand in a table, one row a name; a name without
a row is the same in both languages. Spans cover a name without its article.
"""

from __future__ import annotations

import csv
import string
from functools import cache
from importlib.resources import files

from steerlab.datasets.facts import Fact

LANGUAGES = ("en", "de")
WORDINGS = {
    "en": {
        "cities": "the city of {s} is {n}in {o}",
        "continents": "the country {s} is {n}in {o}",
        "animals": "{as} {s} is {n}{ao} {o}",
        "plants": "{as} {s} is {n}{ao} {o}",
        "spanish": "the Spanish word {s} is {n}for {ao} {o}",
        "numbers": "{s} is {n}larger than {o}",
        "elements": "the chemical symbol of {s} is {n}{o}",
        "capitals": "the capital of {s} is {n}{o}",
        "currencies": "the currency of {s} is {n}the {o}",
        "landmarks": "{s} is {n}in {o}",
        "authors": '"{s}" was {n}written by {o}',
        "units": "{s} is {n}a unit of {o}",
        "verbs": "the past tense of {s} is {n}{o}",
    },
    "de": {
        "cities": "die Stadt {s} liegt {n}in {o}",
        "continents": "{s} liegt {n}in {o}",
        "animals": "{s} ist {k}{o}",
        "plants": "{s} ist {k}{o}",
        "spanish": "das spanische Wort {s} steht {n}für {o}",
        "numbers": "{s} ist {n}größer als {o}",
        "elements": "das chemische Symbol von {s} ist {n}{o}",
        "capitals": "die Hauptstadt {s} ist {n}{o}",
        "currencies": "die Währung {s} ist {n}{o}",
        "landmarks": "{s} befindet sich {n}in {o}",
        "authors": "„{s}“ wurde {n}von {o} geschrieben",
        "units": "{s} ist {k}eine Einheit {o}",
        "verbs": "die Vergangenheitsform des englischen Verbs {s} ist {n}{o}",
    },
}
_NOT = {"en": "not ", "de": "nicht "}
_AND = {"en": "and", "de": "und"}
_OR = {"en": "or", "de": "oder"}
_ARTICLES = ("the ", "a ", "an ")

Spans = dict[str, tuple[int, int]]


def sentence(fact: Fact, named: str, *, negated: bool, language: str) -> tuple[str, Spans]:
    """The sentence that a fact's subject stands, or does not stand, in the topic's relation to `named`."""
    text, spans = _clause(fact, named, negated, language)
    return _capital(text) + ".", spans


def joined(
    first: tuple[Fact, str], second: tuple[Fact, str], *, both: bool, language: str
) -> tuple[str, Spans]:
    """Two claims (a fact and the object named) joined by "and" or "or"; the first one's spans are "first_...".

    In German, too, "and" and "or" leave the order of words as it is.
    """
    start, before = _clause(*first, False, language)
    end, after = _clause(*second, False, language)
    link = f", {(_AND if both else _OR)[language]} "
    moved = len(start) + len(link)
    spans = {f"first_{name}": span for name, span in before.items()}
    spans |= {name: (low + moved, high + moved) for name, (low, high) in after.items()}
    return _capital(
        f"{start}{link}{end}.",
    ), spans


def german_names() -> dict[tuple[str, str], tuple[str, str]]:
    """By topic and English name: the German article (or preposition) in the topic's wording, and the German name."""
    return dict(_german())


# -- private, in the order they are called --


def _clause(fact: Fact, named: str, negated: bool, language: str) -> tuple[str, Spans]:
    """The claim without its capital and its full stop."""
    words = {
        "as": _indefinite(fact.subject),
        "ao": _indefinite(named),
        "n": _NOT[language] if negated else "",
        "k": "k" if negated else "",
    }
    text, spans = "", {}
    for literal, slot, _, _ in string.Formatter().parse(WORDINGS[language][fact.topic]):
        text += literal
        if slot in {"s", "o"}:
            article, name = _name(fact.topic, fact.subject if slot == "s" else named, language)
            text += article
            spans["subject" if slot == "s" else "object"] = (len(text), len(text) + len(name))
            text += name
        elif slot:
            text += words[slot]
    return text, spans


def _name(topic: str, name: str, language: str) -> tuple[str, str]:
    """The article with the space after it, and the bare name."""
    if language == "de":
        article, bare = _german().get((topic, name), ("", name))
        return (f"{article} " if article else ""), bare
    article = next(
        (listed for listed in _ARTICLES if topic in {"landmarks", "units"} and name.startswith(listed)), ""
    )
    return article, name.removeprefix(article)


def _indefinite(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


@cache
def _german() -> dict[tuple[str, str], tuple[str, str]]:
    source = files("steerlab.datasets").joinpath("data/german.csv")
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return {(row["topic"], row["english"]): (row["article"], row["german"]) for row in rows}
