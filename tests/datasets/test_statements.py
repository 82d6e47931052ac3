"""The packaged statements are balanced and exact, in both languages and joined; the zoo's are what they were."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab import zoo
from steerlab.datasets import Statement, StatementSet, statements
from steerlab.datasets.facts import FURTHER_TOPICS, TOPICS, facts
from steerlab.datasets.statement_set import Form
from steerlab.datasets.statements import PACKAGED_TOPICS, state
from steerlab.errors import DatasetError

FORMS: tuple[Form, ...] = ("simple", "conjunction", "disjunction")


def _bare(name: str) -> str:
    """A name of the table as a span shows it: without its article."""
    return re.sub(r"^(the|an?) ", "", name)


def test_the_statements_that_the_bundled_models_were_measured_on_are_unchanged() -> None:
    assert statements(TOPICS).hash == zoo.known_statements().hash == "6e8bafe4972b7182"
    assert zoo.known_statements().topics_present == TOPICS


def test_there_are_many_topics_each_balanced_over_label_and_polarity() -> None:
    packaged = statements()
    assert packaged.topics_present == PACKAGED_TOPICS
    assert len(PACKAGED_TOPICS) >= 12
    for topic in PACKAGED_TOPICS:
        counts = Counter((item.label, item.polarity) for item in packaged.topic(topic))
        assert len(counts) == 4
        assert len(set(counts.values())) == 1
    assert all(len(facts(topic)) >= 40 for topic in FURTHER_TOPICS)


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_statement_is_a_sentence_of_its_own(language: str) -> None:
    texts = [text for form in FORMS for text in statements(language=language, form=form).texts]
    assert len(set(texts)) == len(texts) > 4500
    for text in texts:
        assert text.endswith(".")
        assert text.strip() == text
        assert "  " not in text
        assert text[0].isupper() or text[0].isdigit() or text[0] in '"„'


def test_spans_cut_out_subject_and_object() -> None:
    known = {(fact.topic, _bare(fact.subject)) for topic in PACKAGED_TOPICS for fact in facts(topic)}
    named = {(fact.topic, _bare(fact.object)) for topic in PACKAGED_TOPICS for fact in facts(topic)}
    for form in FORMS:
        for item in statements(form=form).without("numbers"):
            cut = {name: item.text[slice(*span)] for name, span in item.spans.items()}
            assert len(cut) == (2 if form == "simple" else 4)
            for name, words in cut.items():
                assert (item.topic, words) in (known if "subject" in name else named)


def test_labels_of_numbers_follow_arithmetic() -> None:
    for item in statements("numbers"):
        subject, thing = (int(item.text[slice(*item.spans[name])]) for name in ("subject", "object"))
        assert (subject > thing) == (item.label == (item.polarity > 0))


@pytest.mark.parametrize("topic", PACKAGED_TOPICS)
@pytest.mark.parametrize(("form", "joining"), [("conjunction", " and "), ("disjunction", " or ")])
def test_joined_statements_follow_their_parts(topic: str, form: Form, joining: str) -> None:
    """The parts are found in the text, judged by the table read as a dictionary, and joined by Python."""
    right = {_bare(fact.subject): _bare(fact.object) for fact in facts(topic)}
    made = statements(topic, form=form)
    patterns = Counter[tuple[bool, bool]]()
    for item in made:
        cut = {name: item.text[slice(*span)] for name, span in item.spans.items()}
        pairs = [(cut["first_subject"], cut["first_object"]), (cut["subject"], cut["object"])]
        parts = tuple(int(s) > int(o) if topic == "numbers" else right[s] == o for s, o in pairs)
        assert item.label == (all(parts) if form == "conjunction" else any(parts))
        assert item.form == form
        assert not set(pairs[0]) & {pairs[1][0]}
        assert item.text.count(joining) - sum(joining in name for name in cut.values()) == 1
        patterns[parts] += 1  # type: ignore[index]
    same = form == "conjunction"
    n = len(made) // 4
    assert patterns == {(same, same): 2 * n, (True, False): n, (False, True): n}


@pytest.mark.parametrize("topic", PACKAGED_TOPICS)
def test_joined_statements_take_every_fact_in_one_couple(topic: str) -> None:
    made = statements(topic, form="conjunction")
    assert (
        set(Counter(made.subjects).values()) == ({2, 4} if topic == "numbers" else {4}) or topic == "numbers"
    )
    facts_in = len(statements(topic)) // 4
    assert len(made) == 4 * (facts_in // 2)


def test_german_is_english_item_by_item() -> None:
    for form in FORMS:
        english, german = statements(form=form), statements(language="de", form=form)
        assert (english.labels, english.topics, english.polarity) == (
            german.labels,
            german.topics,
            german.polarity,
        )
        assert [list(item.spans) for item in english] == [list(item.spans) for item in german]
        # names are translated one to one, whatever stands around them
        for name in english[0].spans:
            pairs = {
                (e.topic, "object" in name, e.text[slice(*e.spans[name])], g.text[slice(*g.spans[name])])
                for e, g in zip(english, german, strict=True)
            }
            assert (
                len({pair[:3] for pair in pairs})
                == len(pairs)
                == len({(*pair[:2], pair[3]) for pair in pairs})
            )


def test_what_there_is_not_is_said() -> None:
    with pytest.raises(DatasetError, match=r"topic 'weather'.*cities.*verbs"):
        statements(["cities", "weather"])
    with pytest.raises(DatasetError, match=r"language 'fr'.*en, de"):
        statements(language="fr")
    with pytest.raises(DatasetError, match="form 'question'"):
        statements(form="question")  # type: ignore[arg-type]


@given(st.sampled_from([topic for topic in PACKAGED_TOPICS if topic != "numbers"]), st.data())
def test_labels_follow_the_table(topic: str, data: st.DataObject) -> None:
    fact = data.draw(st.sampled_from(facts(topic)))
    thing = data.draw(st.sampled_from([other.object for other in facts(topic)]))
    negated = data.draw(st.booleans())
    item = state(fact, object=thing, negated=negated)
    assert item.label == ((thing == fact.object) != negated)
    assert (" not " in item.text) == negated


def test_subjects_have_one_object_each() -> None:
    for topic in {*PACKAGED_TOPICS} - {"numbers"}:
        counts = Counter(fact.subject for fact in facts(topic))
        assert max(counts.values()) == 1, topic


def test_of_the_bundled_models_topics_only_reserved_facts_are_packaged_and_about_three_in_ten_are_reserved() -> (
    None
):
    reserved = {fact.subject for topic in TOPICS[:-1] for fact in facts(topic) if fact.reserved}
    for item in statements(TOPICS[:-1]):
        assert item.text[slice(*item.spans["subject"])] in reserved
    share = sum(fact.reserved for topic in TOPICS for fact in facts(topic)) / sum(
        len(facts(t)) for t in TOPICS
    )
    assert 0.25 < share < 0.35


def test_a_sample_is_balanced_fixed_by_its_seed_and_never_larger_than_the_set() -> None:
    packaged = statements(TOPICS)
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


def test_statements_about_one_subject_have_one_group() -> None:
    simple = statements("capitals")
    assert set(Counter(simple.subjects).values()) == {4}
    unknown = StatementSet([Statement("Snow is white.", True)])
    assert unknown.subjects == ["Snow is white."]


def test_the_guide_tells_the_counts_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guide" / "data.md").read_text("utf-8")
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (.+) \|$", page, flags=re.M)
    assert tuple(topic for topic, *_ in told) == PACKAGED_TOPICS
    for topic, of_facts, of_statements, example in told:
        packaged = statements(topic)
        assert 4 * int(of_facts) == int(of_statements) == len(packaged)
        assert example in packaged.texts
