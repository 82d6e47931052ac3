"""Packaged contrasts are matched pairs of many wordings; what does not belong to a contrast is alike in its classes."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from steerlab.datasets import ContrastSet, contrast, contrasts, requests
from steerlab.datasets.contrast_set import SHARES, SPLITS
from steerlab.datasets.contrasts import FOLDER, names
from steerlab.datasets.labelled_texts import labelled_texts
from steerlab.datasets.similarity import similarity
from steerlab.errors import DatasetError
from steerlab.readouts.surface import Shortcuts, shortcuts, shortcuts_table

PAIRS = 60
MOST_ALIKE = 0.4  # Jaccard similarity of two texts of one class
LENGTH, FIRST_WORD = 0.65, 0.75  # held-out accuracy, chance 0.5
MEAN_WORDS = 0.08  # relative difference of the classes' mean numbers of words
#: Where the first word tells the class because the contrast lies in it.
FIRST_WORD_TELLS = {
    "question": "a question begins with its question word or its verb, a statement hardly ever"
}
#: Where the last character tells the class because the contrast lies in it.
ENDING_TELLS = {"question": "a question ends with a question mark, which no statement has"}
#: Least shared words of a pair (mean Jaccard similarity), where a pair cannot share what others do.
SHARED = 0.3
SHARED_LESS = {
    "formal": (0.1, "a register is a choice of other words for nearly all of a sentence"),
    "simple": (0.05, "a technical text has other words for nearly all that it says"),
    "concise": (0.1, "in as many words the terse text says more, and the rambling one fills them"),
    "polite": (0.2, "rudeness replaces the words around a request, of which there are many"),
    "concrete": (0.2, "only the frame of a sentence about things fits one about ideas"),
    "spanish": (0.0, "two languages share names and a few short words"),
}

each = pytest.mark.parametrize("name", names())


@cache
def measured(name: str) -> Shortcuts:
    return shortcuts(contrast(name))


@each
def test_pairs_are_enough_and_named_as_the_contrast(name: str) -> None:
    found = contrast(name)
    assert len(found.positive) == len(found.negative) >= PAIRS
    assert found.positive_name == name
    assert found.negative_name not in names()
    assert found.matched


@each
def test_no_text_stands_twice_and_none_is_nearly_another(name: str) -> None:
    found = contrast(name)
    texts = [*found.positive, *found.negative]
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(text == text.strip() and text.isprintable() for text in texts)
    for side in (found.positive, found.negative):
        alike = similarity(side, side) - np.eye(len(side))
        first, second = np.unravel_index(alike.argmax(), alike.shape)
        assert alike.max() <= MOST_ALIKE, (side[first], side[second])


@each
def test_length_does_not_tell_the_class(name: str) -> None:
    found = measured(name)
    assert found.length.value <= LENGTH
    assert abs(found.words[0] - found.words[1]) <= MEAN_WORDS * sum(found.words) / 2


@each
def test_the_first_word_tells_the_class_only_where_the_contrast_lies_in_it(name: str) -> None:
    assert (measured(name).first_word.value > FIRST_WORD) == (name in FIRST_WORD_TELLS)


@each
def test_both_of_a_pair_end_alike(name: str) -> None:
    assert (measured(name).same_ending != 1.0) == (name in ENDING_TELLS)


@each
def test_both_of_a_pair_share_words(name: str) -> None:
    least, _ = SHARED_LESS.get(name, (SHARED, ""))
    assert (measured(name).shared_words or 0.0) >= least


@each
def test_pairs_stand_in_one_split(name: str) -> None:
    found = contrast(name)
    assert found.splits[0] == found.splits[1]
    for split, share in zip(SPLITS, SHARES, strict=True):
        part = found.split(split)
        assert part.matched
        assert len(part.positive) == pytest.approx(share * len(found.positive), abs=1)
        where = [found.positive.index(text) for text in part.positive]
        assert part.negative == tuple(found.negative[row] for row in where)
    assert found.balanced() == found


@each
def test_pairs_are_held_out_together_whatever_their_words(name: str) -> None:
    data = labelled_texts(contrast(name))
    pairs = len(contrast(name).positive)
    assert data.groups.numbers == (*range(pairs), *range(pairs))
    assert data.groups.matched == pairs


def test_exceptions_are_of_packaged_contrasts_and_have_a_reason() -> None:
    reasons = {**FIRST_WORD_TELLS, **ENDING_TELLS, **{name: why for name, (_, why) in SHARED_LESS.items()}}
    assert set(reasons) <= set(names())
    assert all(len(reason.split()) > 3 for reason in reasons.values())


def test_no_text_is_in_two_contrasts() -> None:
    texts = list(chain.from_iterable((*found.positive, *found.negative) for found in contrasts().values()))
    assert len(set(texts)) == len(texts)


def test_a_name_is_the_same_everywhere() -> None:
    assert list(contrasts()) == list(names())
    assert all((FOLDER / f"{name}.csv").is_file() for name in names())
    with pytest.raises(
        DatasetError, match=r"no packaged contrast 'cheerful'; the names are .*formal, .*happy"
    ):
        contrast("cheerful")


def test_the_guide_shows_the_shortcuts_of_every_contrast() -> None:
    """To two digits: the last one may round otherwise on another machine."""
    page = (Path(__file__).parents[2] / "docs" / "guide" / "data.md").read_text("utf-8")
    shown = page.partition("<!-- shortcuts: datasets.contrasts() -->\n")[2].partition("\n\n")[0]
    cells = [re.findall(r"[^|/ ]+", line) for line in shown.splitlines()]
    expected = [re.findall(r"[^|/ ]+", line) for line in shortcuts_table(contrasts()).splitlines()]
    assert cells[:2] == expected[:2]
    for ours, theirs in zip(cells[2:], expected[2:], strict=True):
        assert ours[:7] == theirs[:7]
        assert [float(cell) for cell in ours[7:]] == pytest.approx(
            [float(cell) for cell in theirs[7:]], abs=0.021
        )


def test_every_file_is_in_the_wheel() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["steerlab"]
    package = FOLDER.parents[2]
    shipped = {file for pattern in patterns for file in package.glob(pattern)}
    assert {file for file in FOLDER.parent.rglob("*") if file.is_file()} <= shipped


def test_matched_texts_come_in_pairs() -> None:
    with pytest.raises(DatasetError, match="2 warm and 1 cold texts are no pairs"):
        ContrastSet(("a", "b"), ("c",), "warm", "cold", matched=True)
    with pytest.raises(DatasetError, match="both of a pair in one split"):
        ContrastSet(("a",), ("b",), splits=(("train",), ("val",)), matched=True)
    unlike = ContrastSet.from_texts(list("abcdefghij"), list("klmnopqrst"), matched=True)
    assert unlike.splits[0] == unlike.splits[1]


def test_the_hash_of_a_set_that_is_not_matched_is_what_manifests_hold() -> None:
    assert requests().hash == "d53794d5c8cde2d2"
    assert ContrastSet(("a",), ("b",)).hash == "bc199779734b3415"
    assert ContrastSet(("a",), ("b",), matched=True).hash != ContrastSet(("a",), ("b",)).hash
