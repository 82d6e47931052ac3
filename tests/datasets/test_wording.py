"""The German wordings, against sentences written by hand: gender, case and negation."""

from __future__ import annotations

import re

import pytest

from steerlab.datasets import statements
from steerlab.datasets.facts import TOPICS, facts
from steerlab.datasets.statements import PACKAGED_TOPICS
from steerlab.datasets.wording import german_names

# English, German; the German ones were written without the table.
SENTENCES = [
    ("The city of Munich is in Germany.", "Die Stadt München liegt in Deutschland."),
    ("The country Ukraine is not in Europe.", "Die Ukraine liegt nicht in Europa."),
    ("The country Sudan is in Africa.", "Der Sudan liegt in Afrika."),
    ("A goat is not a mammal.", "Eine Ziege ist kein Säugetier."),
    ("An owl is a bird.", "Eine Eule ist ein Vogel."),
    ("A cherry is not a fruit.", "Eine Kirsche ist keine Frucht."),
    ("A spinach is a vegetable.", "Spinat ist ein Gemüse."),
    ("The Spanish word verde is not for a color.", "Das spanische Wort verde steht nicht für eine Farbe."),
    ("The chemical symbol of iron is Fe.", "Das chemische Symbol von Eisen ist Fe."),
    ("The capital of Switzerland is not Bern.", "Die Hauptstadt der Schweiz ist nicht Bern."),
    ("The capital of Iraq is Baghdad.", "Die Hauptstadt des Irak ist Bagdad."),
    ("The currency of Turkey is the lira.", "Die Währung der Türkei ist die Lira."),
    ("The currency of Egypt is not the pound.", "Die Währung von Ägypten ist nicht das Pfund."),
    ("The Eiffel Tower is in France.", "Der Eiffelturm befindet sich in Frankreich."),
    ("The Hagia Sophia is not in Turkey.", "Die Hagia Sophia befindet sich nicht in der Türkei."),
    ("The White House is in the United States.", "Das Weiße Haus befindet sich in den Vereinigten Staaten."),
    ('"The Trial" was not written by Franz Kafka.', "„Der Prozess“ wurde nicht von Franz Kafka geschrieben."),
    ("An hour is not a unit of time.", "Eine Stunde ist keine Einheit der Zeit."),
    ("A pascal is a unit of pressure.", "Ein Pascal ist eine Einheit des Drucks."),
    ("The past tense of go is not went.", "Die Vergangenheitsform des englischen Verbs go ist nicht went."),
]
# Nouns of each class by hand: feminine ones take "eine" and "keine", the others "ein" and "kein".
FEMININE = """
    Ziege Eule Möwe Sardine Biene Hornisse Motte Libelle Heuschrecke Termite Eidechse Schildkröte Landschildkröte Kobra
    Pflaume Kirsche Orange Melone Aprikose Zwiebel Rübe Eiche Kiefer Weide Tanne Fichte Zeder Sonnenblume Nelke
    Frucht Blume Farbe Zahl Meile Seemeile Sekunde Minute Stunde Woche Gallone Kalorie Kilowattstunde
"""


@pytest.mark.parametrize(("english", "german"), SENTENCES)
def test_sentences_written_by_hand(english: str, german: str) -> None:
    at = statements().texts.index(english)
    assert statements(language="de").texts[at] == german


def test_a_joined_sentence_written_by_hand() -> None:
    made = statements("animals", form="conjunction", language="de")
    assert "Ein Gecko ist ein Reptil, und eine Schildkröte ist ein Reptil." in made.texts
    made = statements("landmarks", form="disjunction")
    assert "Chichen Itza is in Mexico, or the Terracotta Army is in Japan." in made.texts


def test_indefinite_articles_fit_the_gender() -> None:
    indefinite = {name: article for article, name in german_names().values() if article in {"ein", "eine"}}
    assert {name for name, article in indefinite.items() if article == "eine"} == set(FEMININE.split())


def test_negation_is_said_once_and_only_where_it_is_meant() -> None:
    for language, words in (("en", r"\bnot\b"), ("de", r"\b(?:nicht|keine?)\b")):
        for item in statements(language=language):
            # titles may hold such words of their own ("Im Westen nichts Neues")
            assert len(re.findall(words, item.text)) == (item.polarity < 0)


def test_every_name_that_differs_by_language_stands_in_the_table() -> None:
    kept = {"numbers", "verbs"}
    for topic in PACKAGED_TOPICS:
        for fact in facts(topic):
            if topic in kept or (topic in TOPICS and not fact.reserved):
                continue
            if topic != "spanish":
                assert (topic, fact.subject) in german_names(), fact
            if topic != "elements":
                assert (topic, fact.object) in german_names(), fact
