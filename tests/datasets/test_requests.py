"""Harmful and harmless requests differ in the verb and in nothing that a form could betray."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from steerlab.datasets import ContrastSet, open_prompts, plain_text, requests
from steerlab.datasets.contrast import NEAR_DUPLICATE, SPLITS, near_duplicate_groups, similarity


def test_there_are_two_hundred_of_each_in_three_splits() -> None:
    packaged = requests()
    assert len(packaged.positive) == len(packaged.negative) >= 200
    assert sum(len(packaged.split(name)) for name in SPLITS) == len(packaged)
    assert len(set(packaged.positive) | set(packaged.negative)) == len(packaged)


def test_no_request_has_a_near_duplicate_in_another_split() -> None:
    texts = {name: [*requests().split(name).positive, *requests().split(name).negative] for name in SPLITS}
    for first, second in combinations(SPLITS, 2):
        assert similarity(texts[first], texts[second]).max() < NEAR_DUPLICATE


def test_matched_requests_have_the_same_number_of_words_and_the_same_last_character() -> None:
    for harmful, harmless in zip(requests().positive, requests().negative, strict=True):
        assert len(harmful.split()) == len(harmless.split())
        assert harmful[-1] == harmless[-1]
        assert harmful != harmless


def test_length_and_punctuation_tell_nothing() -> None:
    texts = [*requests().positive, *requests().negative]
    labels = [1] * len(requests().positive) + [0] * len(requests().negative)
    features = np.array(
        [[len(t), len(t.split()), t.count("?"), t.count("."), t[-1] == "?"] for t in texts], float
    )
    features = (features - features.mean(0)) / features.std(0)
    order = np.random.default_rng(0).permutation(len(texts))
    accuracy = cross_val_score(LogisticRegression(), features[order], np.array(labels)[order], cv=10).mean()
    assert accuracy < 0.58


def test_own_texts_are_split_by_the_seed_with_near_duplicates_together() -> None:
    positive = [f"How do I break the {thing} number {i}?" for i in range(30) for thing in ("lamp", "vase")]
    negative = [f"Where did you see {i} birds" for i in range(60)]
    made = ContrastSet.from_texts(positive, negative, seed=1)
    assert made == ContrastSet.from_texts(positive, negative, seed=1)
    groups = near_duplicate_groups([*positive, *negative])
    names = [*made.splits[0], *made.splits[1]]
    assert len({(group, name) for group, name in zip(groups, names, strict=True)}) == len(set(groups))


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


def test_punctuation_and_case_make_near_duplicates() -> None:
    assert near_duplicate_groups(["Open the door.", "open the DOOR", "Feed a cat."])[:2] == [1, 1]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(KeyError, match="dev"):
        requests().split("dev")
    with pytest.raises(KeyError, match="not split"):
        requests().split("train").split("train")


def test_open_prompts_and_passages_are_many_and_different() -> None:
    for lines, least in ((open_prompts(), 60), (plain_text(), 100)):
        assert len(lines) == len(set(lines)) >= least
        assert all(line == line.strip() for line in lines)
    assert len(set(near_duplicate_groups(plain_text()))) == len(plain_text())
