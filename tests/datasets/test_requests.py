"""Harmful and harmless requests differ in the verb and in nothing that a form could betray."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steerlab.datasets import ContrastSet, open_prompts, plain_text, requests
from steerlab.datasets.contrast_set import SPLITS
from steerlab.datasets.requests import KINDS
from steerlab.datasets.similarity import NEAR_DUPLICATE, near_duplicate_groups, similarity
from steerlab.errors import DatasetError


def test_there_are_two_hundred_of_each_in_three_splits() -> None:
    packaged = requests()
    assert len(packaged.positive) == len(packaged.negative) >= 200
    assert sum(len(packaged.split(name)) for name in SPLITS) == len(packaged)
    assert len(set(packaged.positive) | set(packaged.negative)) == len(packaged)


def test_no_request_has_a_near_duplicate_in_another_split() -> None:
    texts = {name: [*requests().split(name).positive, *requests().split(name).negative] for name in SPLITS}
    for first, second in combinations(SPLITS, 2):
        assert similarity(texts[first], texts[second]).max() < NEAR_DUPLICATE


def _parts(split: str) -> tuple[set[str], set[str]]:
    """The verbs and the objects of a split, as phrases."""
    verbs = {verb for kind in KINDS for pair in kind.verbs[split] for verb in pair}
    return verbs, {thing for kind in KINDS for thing in kind.objects[split]}


def _without_verb(text: str, split: str) -> str:
    verb = next(verb for verb in sorted(_parts(split)[0], key=len, reverse=True) if f" {verb} " in text)
    return text.replace(f" {verb} ", " ", 1)


def test_near_duplicates_are_none_even_where_the_verb_does_not_count() -> None:
    """All splits share the wordings; with the verb left out what differs is the object alone, and that is enough."""
    texts = {
        name: [
            _without_verb(text, name)
            for text in (*requests().split(name).positive, *requests().split(name).negative)
        ]
        for name in SPLITS
    }
    for first, second in combinations(SPLITS, 2):
        assert similarity(texts[first], texts[second]).max() < NEAR_DUPLICATE


def test_verbs_and_objects_of_one_split_occur_in_no_other() -> None:
    for first, second in combinations(SPLITS, 2):
        for mine, theirs in zip(_parts(first), _parts(second), strict=True):
            assert mine
            assert not mine & theirs


def test_without_the_verb_matched_requests_are_the_same() -> None:
    for name in SPLITS:
        part = requests().split(name)
        for harmful, harmless in zip(part.positive, part.negative, strict=True):
            assert _without_verb(harmful, name) == _without_verb(harmless, name)


def test_matched_requests_have_the_same_number_of_words_and_the_same_last_character() -> None:
    for harmful, harmless in zip(requests().positive, requests().negative, strict=True):
        assert len(harmful.split()) == len(harmless.split())
        assert harmful[-1] == harmless[-1]
        assert harmful != harmless


def _held_out_accuracy(features: NDArray[np.float64]) -> float:
    """Of a classifier of harmful against harmless, matched requests held out together."""
    pairs = len(requests().positive)
    labels = np.repeat([1, 0], pairs)
    groups = np.tile(np.arange(pairs), 2)
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    folds = GroupKFold(10, shuffle=True, random_state=0)
    return float(cross_val_score(classifier, features, labels, groups=groups, cv=folds).mean())


def test_length_and_punctuation_tell_nothing() -> None:
    texts = [*requests().positive, *requests().negative]
    marks = np.array([[t.count("?"), t.count("."), t.count(","), t[-1] == "?"] for t in texts], float)
    lengths = np.array([[len(t), len(t.split()), len(t.split()[-1])] for t in texts], float)
    assert _held_out_accuracy(marks) <= 0.5
    assert _held_out_accuracy(np.hstack([marks, lengths])) < 0.55


def test_the_same_classifier_finds_a_mark_that_does_tell() -> None:
    texts = [text.rstrip(".?") for text in requests().positive] + list(requests().negative)
    assert _held_out_accuracy(np.array([[t.count("?"), t.count("."), len(t)] for t in texts], float)) > 0.95


def test_own_texts_are_split_by_the_seed_with_near_duplicates_together() -> None:
    positive = [f"How do I break the {thing} number {i}?" for i in range(30) for thing in ("lamp", "vase")]
    negative = [f"Where did you see {i} birds" for i in range(60)]
    made = ContrastSet.from_texts(positive, negative, seed=1)
    assert made == ContrastSet.from_texts(positive, negative, seed=1)
    groups = near_duplicate_groups([*positive, *negative])
    names = [*made.splits[0], *made.splits[1]]
    assert len({(group, name) for group, name in zip(groups, names, strict=True)}) == len(set(groups))


def test_matched_texts_of_both_kinds_stand_in_one_split() -> None:
    words = [f"thing{n} of place{n} near street{n}" for n in range(20)]
    made = ContrastSet.from_texts([f"break {w}" for w in words], [f"clean {w}" for w in words])
    assert made.splits[0] == made.splits[1]
    named = ContrastSet.from_texts(
        [f"a{n}" for n in range(20)], [f"b{n}" for n in range(20)], groups=[*range(20), *range(20)]
    )
    assert named.splits[0] == named.splits[1]
    assert set(named.splits[0]) == set(SPLITS)


@given(st.integers(5, 40), st.integers(0, 99))
def test_every_split_gets_a_share_of_distinct_prompts(n: int, seed: int) -> None:
    made = ContrastSet.from_texts(
        [f"alpha{i} beta{i} gamma{i}" for i in range(n)],
        [f"delta{i} eta{i} theta{i}" for i in range(n)],
        seed=seed,
    )
    for name in SPLITS:
        assert len(made.split(name).positive) >= 1
        assert len(made.split(name).negative) >= 1


@given(
    st.lists(st.text("ab c", max_size=8), max_size=6),
    st.lists(st.text("ab c", max_size=8), min_size=1, max_size=6),
)
def test_similarity_is_jaccard_of_word_sets(texts: list[str], others: list[str]) -> None:
    measured = similarity(texts, others)
    assert measured.shape == (len(texts), len(others))
    for i, j in np.ndindex(measured.shape):
        one, other = set(texts[i].split()), set(others[j].split())
        expected = len(one & other) / len(one | other) if one | other else 1.0
        assert measured[i, j] == pytest.approx(expected)


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 9))
def test_balancing_draws_from_every_split(n: int, m: int, split: bool, seed: int) -> None:
    positive, negative = [f"a{i}" for i in range(n)], [f"b{i}" for i in range(m)]
    made = (
        ContrastSet.from_texts(positive, negative, seed=seed)
        if split
        else ContrastSet(tuple(positive), tuple(negative))
    )
    balanced = made.balanced(seed)
    assert balanced == made.balanced(seed) == balanced.balanced(seed)
    assert len(balanced.positive) == len(balanced.negative) <= min(n, m)
    assert set(balanced.positive) <= set(positive)
    if not split:
        assert len(balanced.positive) == min(n, m)
        return
    for name in SPLITS:
        assert len(balanced.split(name).positive) == min(
            len(made.split(name).positive), len(made.split(name).negative)
        )


def test_the_requests_that_the_bundled_models_were_measured_on_are_unchanged() -> None:
    assert requests().hash == "d53794d5c8cde2d2"
    assert requests().balanced() == requests()


def test_punctuation_and_case_make_near_duplicates() -> None:
    assert near_duplicate_groups(["Open the door.", "open the DOOR", "Feed a cat."])[:2] == [1, 1]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DatasetError, match="dev"):
        requests().split("dev")
    with pytest.raises(DatasetError, match="not split"):
        requests().split("train").split("train")


def test_open_prompts_and_passages_are_many_and_different() -> None:
    for lines, least in ((open_prompts(), 60), (plain_text(), 100)):
        assert len(lines) == len(set(lines)) >= least
        assert all(line == line.strip() for line in lines)
    assert len(set(near_duplicate_groups(plain_text()))) == len(plain_text())
