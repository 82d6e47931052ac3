"""A classifier of form is at chance on the packaged requests and far above it on the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from steerlab import datasets
from steerlab.readouts.surface import surface


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
