"""Answers drawn again from a position on: what has been committed to, against a chain that settles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy import NONE, Chain, model_of

from steerlab.errors import PromptError
from steerlab.readouts.resampling import commitment, resample
from steerlab.readouts.samples import sample


def settling() -> Chain:
    """State 0 goes on with .8, settles to right (1) or wrong (2) with .1 each, and stays there."""
    return Chain(torch.tensor([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def test_resampling_changes_no_accuracy_at_one_and_commitment_grows() -> None:
    found = resample(
        model_of(settling()),
        [[0]] * 40,
        lambda _, text: text.endswith("b"),
        positions=(0, 5, 20),
        rollouts=12,
        continuations=8,
        max_new_tokens=40,
        law=NONE,
    )
    for one in found:
        assert not one.change.excludes(0), one
        # right with 1/2 from the start; after t steps settled with 1 - .8^t
        assert one.commitment.value == pytest.approx(1 - 0.8**one.t, abs=0.07)
    assert found[0].commitment.low < 0.05


def test_ended_answers_stay_what_they_were() -> None:
    chain = Chain(
        torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    )
    (found,) = resample(
        model_of(chain, (3,)),
        [[0]] * 20,
        lambda _, text: "b" in text,
        positions=(5,),
        max_new_tokens=9,
        law=NONE,
    )
    assert found.ended == 1
    assert found.change.value == 0
    assert found.commitment.value == pytest.approx(1)


def test_rollouts_that_were_drawn_already_are_taken() -> None:
    model = model_of(settling())
    drawn = sample(model, [[0]] * 3, samples=4, max_new_tokens=9, law=NONE, seed=2)
    options = {"positions": (0, 3), "rollouts": 4, "max_new_tokens": 9, "law": NONE, "seed": 2}
    plain = resample(model, [[0]] * 3, lambda _, text: text.endswith("b"), **options)  # type: ignore[arg-type]
    before = model.model.tokens_read
    taken = resample(model, [[0]] * 3, lambda _, text: text.endswith("b"), first=drawn, **options)  # type: ignore[arg-type]
    assert model.model.tokens_read - before < before - len(drawn)
    assert [one.model_dump_json() for one in taken] == [one.model_dump_json() for one in plain]
    with pytest.raises(PromptError, match="leave them out"):
        resample(model, [[0]], lambda _, text: True, first=drawn, **options)  # type: ignore[arg-type]


def test_no_variance_is_no_commitment() -> None:
    assert math.isnan(commitment(np.ones((3, 4)), 2).value)
    for arguments, match in (
        ({"rollouts": 1}, "at least two rollouts"),
        ({"positions": (99,)}, "cannot be taken up"),
    ):
        given = {"positions": (1,), "max_new_tokens": 5, **arguments}
        with pytest.raises(PromptError, match=match):
            resample(model_of(settling()), [[0]], lambda _, text: True, **given)  # type: ignore[arg-type]
