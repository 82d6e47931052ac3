"""The packaged statements are balanced, exact and made of reserved facts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.datasets import Statement, StatementSet, statements
from steerlab.datasets.facts import TOPICS, facts
from steerlab.datasets.statements import state


def test_there_are_six_topics_or_more_each_balanced_over_label_and_polarity() -> None:
    packaged = statements()
    assert len(packaged.topics_present) >= 6
    for topic in packaged.topics_present:
        counts = Counter((item.label, item.polarity) for item in packaged.topic(topic))
        assert len(counts) == 4
        assert len(set(counts.values())) == 1


def test_every_statement_is_a_sentence_of_its_own() -> None:
    texts = statements().texts
    assert len(set(texts)) == len(texts)
    assert all(text.endswith(".") and text.strip() == text and "  " not in text for text in texts)


def test_spans_cut_out_subject_and_object() -> None:
    known = {(fact.topic, fact.subject) for topic in TOPICS for fact in facts(topic)}
    named = {(fact.topic, fact.object) for topic in TOPICS for fact in facts(topic)}
    for item in statements():
        subject, thing = (item.text[slice(*item.spans[name])] for name in ("subject", "object"))
        if item.topic == "numbers":
            assert (int(subject) > int(thing)) == (item.label == (item.polarity > 0))
            continue
        assert (item.topic, subject) in known
        assert (item.topic, thing) in named


@given(st.sampled_from([topic for topic in TOPICS if topic != "numbers"]), st.data())
def test_labels_follow_the_table(topic: str, data: st.DataObject) -> None:
    fact = data.draw(st.sampled_from(facts(topic)))
    thing = data.draw(st.sampled_from([other.object for other in facts(topic)]))
    negated = data.draw(st.booleans())
    item = state(fact, object=thing, negated=negated)
    assert item.label == ((thing == fact.object) != negated)
    assert (" not " in item.text) == negated


def test_subjects_have_one_object_each() -> None:
    for topic in TOPICS[:-1]:
        counts = Counter(fact.subject for fact in facts(topic))
        assert max(counts.values()) == 1, topic


def test_only_reserved_facts_are_packaged_and_about_three_in_ten_are_reserved() -> None:
    reserved = {fact.subject for topic in TOPICS[:-1] for fact in facts(topic) if fact.reserved}
    for item in statements().without("numbers"):
        assert item.text[slice(*item.spans["subject"])] in reserved
    share = sum(fact.reserved for topic in TOPICS for fact in facts(topic)) / sum(
        len(facts(t)) for t in TOPICS
    )
    assert 0.25 < share < 0.35


def test_a_sample_is_balanced_fixed_by_its_seed_and_never_larger_than_the_set() -> None:
    packaged = statements()
    some = packaged.sample(48, seed=3)
    assert some == packaged.sample(48, seed=3)
    assert some != packaged.sample(48, seed=4)
    assert sum(some.labels) == 24
    assert set(Counter(some.topics).values()) == {8}
    assert len(packaged.sample(10**6, seed=0)) == len(packaged)


def test_topic_and_without_divide_the_set_and_the_hash_tells_sets_apart() -> None:
    packaged = statements()
    assert len(packaged.topic("cities")) + len(packaged.without("cities")) == len(packaged)
    assert packaged.topic("cities").hash != packaged.hash
    assert StatementSet(list(packaged)).hash == packaged.hash
    with pytest.raises(KeyError, match="weather"):
        packaged.topic("weather")


def test_a_slice_is_a_set() -> None:
    assert isinstance(statements()[:3], StatementSet)
    assert isinstance(statements()[0], Statement)
