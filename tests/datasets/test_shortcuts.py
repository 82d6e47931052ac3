"""No word betrays the label: counts are equal, and a bag of words finds nothing on subjects it has not seen."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from steerlab.datasets import StatementSet, statements
from steerlab.datasets.facts import FURTHER_TOPICS, facts
from steerlab.datasets.statements import PACKAGED_TOPICS, state

WORD = r"[^\s,.]+"


def accuracy(items: StatementSet) -> float:
    """Of a bag-of-words classifier on held-out subjects."""
    counts = CountVectorizer(token_pattern=WORD, lowercase=False).fit_transform(items.texts)
    folds = GroupKFold(3, shuffle=True, random_state=0)
    labels = np.array(items.labels)
    predicted = cross_val_predict(LogisticRegression(), counts, labels, groups=items.subjects, cv=folds)
    return float((predicted == labels).mean())


def counted(items: StatementSet) -> dict[bool, Counter[str]]:
    """How often each word stands in true and in false ones; German articles of either gender are one word."""
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for item in items:
        words = re.findall(WORD, re.sub(r"\b(k?ein)e\b", r"\1", item.text.lower()))
        found[item.label].update(words)
    return found


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("topic", PACKAGED_TOPICS)
def test_a_bag_of_words_finds_nothing_on_held_out_subjects(topic: str, language: str) -> None:
    # Exactly balanced words make a classifier on held-out subjects err below one half, never above.
    for form in ("simple", "conjunction", "disjunction"):
        assert accuracy(statements(topic, language=language, form=form)) <= 0.55


@pytest.mark.parametrize("topic", PACKAGED_TOPICS)
def test_every_word_stands_in_as_many_true_as_false_statements(topic: str) -> None:
    for form in ("simple", "conjunction", "disjunction"):
        for language in ("en", "de"):
            words = counted(statements(topic, language=language, form=form))
            assert words[True] == words[False], form


@pytest.mark.parametrize("topic", FURTHER_TOPICS)
def test_words_are_balanced_in_affirmations_alone_and_in_negations_alone(topic: str) -> None:
    for polarity in (1, -1):
        words = counted(StatementSet(item for item in statements(topic) if item.polarity == polarity))
        assert words[True] == words[False]


def test_the_classifier_finds_a_word_that_does_betray_the_label() -> None:
    """The same measure on statements whose false ones all name one object."""
    made = StatementSet(
        item
        for fact in facts("continents")
        if fact.object != "Asia"
        for item in (state(fact), state(fact, object="Asia"))
    )
    assert accuracy(made) > 0.9
