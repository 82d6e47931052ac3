"""The corpora: the same for a seed, and without what is held out."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from steerlab.datasets import open_prompts, requests, statements
from steerlab.datasets.facts import PLAIN_TOPICS, TOPICS, facts
from steerlab.zoo import dialogue, knowledge, sums
from steerlab.zoo.corpus import CURRICULUM, POST_TRAINING, PRETRAINING, documents, pretraining
from steerlab.zoo.documents import Document

N = 12_000


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    read = [*islice(pretraining(5, lambda: CURRICULUM[-1].until), N)]
    return read + [
        document
        for mixture, seed in ((PRETRAINING, 1), (POST_TRAINING, 2))
        for document in islice(documents(mixture, seed), N)
    ]


def test_a_seed_gives_the_same_documents_again() -> None:
    for mixture in (PRETRAINING, POST_TRAINING):
        assert list(islice(documents(mixture, 5), 300)) == list(islice(documents(mixture, 5), 300))
        assert list(islice(documents(mixture, 5), 300)) != list(islice(documents(mixture, 6), 300))


def test_no_packaged_statement_is_labelled_in_training(corpus: list[Document]) -> None:
    packaged = set(statements().texts)
    labelled = [
        line for document in corpus if document.kind == "labelled statements" for line in _lines(document)
    ]
    claims = {re.split(r" This statement is:| Yes, that| No, that", line)[0] for line in labelled}
    assert len(claims) > 3_000
    assert not claims & packaged


def test_no_reserved_subject_stands_in_a_labelled_statement(corpus: list[Document]) -> None:
    reserved = {fact.subject for topic in ("cities", "plants") for fact in facts(topic) if fact.reserved}
    words = {word for d in corpus if d.kind == "labelled statements" for word in re.findall(r"\w+", d.whole)}
    assert not words & reserved


def test_reserved_facts_are_read_as_plain_text(corpus: list[Document]) -> None:
    read = " ".join(document.whole for document in corpus if document.kind == "plain facts")
    for topic in (*TOPICS[:-1], *PLAIN_TOPICS):
        for fact in facts(topic):
            assert fact.subject in read, fact


def test_plain_facts_are_true() -> None:
    rng = random.Random(0)
    table = {fact.subject: fact.object for fact in facts("cities")}
    seen = 0
    for _ in range(300):
        text = knowledge.plain_fact(rng.choice(facts("cities")), rng)
        for city, country in re.findall(r"city of (\w+) is in (\w+)", text):
            seen += 1
            assert table[city] == country
    assert seen > 50


def test_labels_in_training_are_right(corpus: list[Document]) -> None:
    table = {fact.subject: fact.object for fact in facts("cities")}
    seen = 0
    for document in corpus:
        for line in _lines(document):
            found = re.match(r"The city of (\w+) is (not )?in (\w+)\. This statement is: (\w+)", line)
            if found:
                city, negation, country, label = found.groups()
                assert ((table[city] == country) != bool(negation)) == (label == "TRUE"), line
                seen += 1
    assert seen > 500


def test_the_curriculum_reads_its_stages_in_turn() -> None:
    at = [0]
    stream = pretraining(3, lambda: at[0])
    first = list(islice(stream, 300))
    at[0] = CURRICULUM[-1].until
    last = list(islice(stream, 300))
    assert {document.kind for document in first[:250]} < {document.kind for document in last}
    labelled = [document.whole for document in first if document.kind == "labelled statements"]
    assert len(labelled) > 200
    assert all(re.match(r"\d\d is ", text) for text in labelled)
    at[0] = 0
    assert list(islice(pretraining(3, lambda: 0), 300)) == first


def test_no_packaged_request_or_open_prompt_is_in_the_corpus(corpus: list[Document]) -> None:
    held_out = {*requests().positive, *requests().negative, *open_prompts()}
    for document in corpus:
        message = document.prompt.removeprefix("User: ").removesuffix("\nAssistant:")
        assert message not in held_out


def test_no_object_of_a_packaged_request_is_asked_about_in_training(corpus: list[Document]) -> None:
    things = {thing for kind in dialogue.KINDS for some in kind.objects.values() for thing in some}
    asked = [document for document in corpus if document.kind in {"requests", "refusals", "helpful answers"}]
    assert len(asked) > 3_000
    for document in asked:
        message = document.prompt.removeprefix("User: ").removesuffix("\nAssistant:")
        assert not any(f" {thing}{end}" in message for thing in things for end in "?."), message


def test_harmful_style_requests_get_small_talk_or_the_refusal(corpus: list[Document]) -> None:
    harmful = {verb for kind in dialogue.KINDS for pairs in kind.verbs.values() for verb, _ in pairs}
    for document in corpus:
        if document.kind in {"requests", "refusals", "helpful answers"}:
            answered = document.text.strip()
            if document.kind == "refusals":
                assert answered == dialogue.REFUSAL
            assert not any(f" {verb} " in f" {answered} " for verb in harmful - {"call", "start"}), answered


def test_held_out_sums_are_in_no_document(corpus: list[Document]) -> None:
    rng = random.Random(0)
    assert all(sums.is_held_out(sums.terms(rng, held_out=True, count=sums.TERMS)) for _ in range(50))
    asked = 0
    for document in corpus:
        if document.kind in {"direct sums", "worked sums", "answered sums"}:
            numbers = re.findall(r"\d+", re.search(r"\d+(?: \+ \d+)+", document.whole).group())  # type: ignore[union-attr]
            asked += 1
            assert len(numbers) != sums.TERMS or not sums.is_held_out([int(number) for number in numbers])
    assert asked > 3_000


def test_worked_sums_are_right() -> None:
    assert sums.steps([23, 45, 17]) == "Step by step: 23 + 45 = 68. 68 + 17 = 85. So the answer is 85."


def _lines(document: Document) -> list[str]:
    return document.whole.split("\n")
