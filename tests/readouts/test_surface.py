"""A classifier of form is at chance on the packaged requests and far above it on the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from steerlab import datasets
from steerlab.errors import DatasetError
from steerlab.readouts.surface import shortcuts, shortcuts_table, surface


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_packaged_requests_cannot_be_told_apart_by_form(split: str) -> None:
    part = datasets.requests().split(split)
    found = surface(part.positive, part.negative)
    assert found is not None
    assert not found.above_chance
    assert found.ends_in_punctuation == (1.0, 1.0)
    assert found.words[0] == pytest.approx(found.words[1], abs=0.35)


def test_published_requests_can(shared: Path) -> None:
    folder = shared / "data/instructions"
    texts = [
        [
            row["instruction"] for row in json.loads((folder / f"{kind}_train.json").read_text())
        ]  # 260 and 18,793
        for kind in ("harmful", "harmless")
    ]
    found = surface(*texts)
    assert found is not None
    assert found.above_chance
    assert found.accuracy.value > 0.8
    assert found.ends_in_punctuation[0] < 0.4 < 0.6 < found.ends_in_punctuation[1]


def test_too_few_prompts_say_nothing() -> None:
    assert surface(["a"] * 9, ["b"] * 20) is None


def test_the_level_of_the_verdict() -> None:
    """On kinds drawn from one distribution of forms the verdict is right about 95 times in 100."""
    rng = np.random.default_rng(0)
    fired = 0
    for _ in range(40):
        texts = [
            " ".join(["w"] * n) + mark
            for n, mark in zip(rng.integers(3, 9, 80), rng.choice(list(".?!"), 80), strict=True)
        ]
        found = surface(texts[:40], texts[40:])
        assert found is not None
        fired += found.above_chance
    assert fired <= 5


THINGS = [
    f"{animal} near {place}"
    for animal in ("owls", "foxes", "hens")
    for place in ("Oslo", "Rome", "Lima", "Bonn")
]
PLANTED = {  # what tells the classes apart: a pair of texts about one thing
    "length": ("There were {} once, they say, a good while ago.", "There were {}."),
    "first_word": ("Yesterday I saw {}.", "Tomorrow I saw {}."),
    "bag_of_words": ("There were happy {}.", "There were gloomy {}."),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_shortcut_is_found_where_it_was_planted(planted: str) -> None:
    found = shortcuts([tuple(frame.format(thing) for frame in PLANTED[planted]) for thing in THINGS])
    told = {name for name in PLANTED if getattr(found, name).value > 0.9}
    assert told == {planted, "bag_of_words"}  # whatever tells is words
    assert found.texts == (len(THINGS), len(THINGS))
    assert found.same_ending == 1.0
    assert found.shared_words is not None


def test_texts_that_are_no_pairs_have_no_twins_to_share_words_with() -> None:
    texts = [[f"{word}{n} is {word}{n + 50}" for n in range(size)] for word, size in (("a", 20), ("b", 10))]
    found = shortcuts(*texts)
    assert (found.shared_words, found.same_ending) == (None, None)
    assert found.chance == pytest.approx(2 / 3)
    labelled = [
        {"text": text, "label": kind} for kind, side in zip("xy", texts, strict=True) for text in side
    ]
    assert "| `own` | y | 20 + 10 | 3.0 / 3.0 |" in shortcuts_table({"own": labelled})


def test_too_few_texts_are_a_sentence() -> None:
    with pytest.raises(DatasetError, match="are too few for 5 folds"):
        shortcuts(["a b", "c d"], ["e f", "g h"])
    with pytest.raises(DatasetError, match=r"^1 groups of texts of a class"):
        shortcuts([f"one{n} more{n}" for n in range(9)], ["only this"])
