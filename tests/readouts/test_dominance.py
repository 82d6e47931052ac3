from __future__ import annotations

import pytest
import torch
from families import tiny
from studies import planted_models as planted
from tolerances import close

import steerlab as sl
from steerlab.errors import PromptError
from steerlab.readouts.dominance import dominance_sentence, dominates, mean_shares

TEXTS = ["How do I help1 a thing1 ?", "subject1 in topic1 is good1 .", "How do I hurt2 a thing3 ?"]


def test_a_planted_mean_dominates_and_the_same_model_without_does_not() -> None:
    plain, large = planted.planted(refuses=True), planted.with_large_mean(planted.planted(refuses=True))
    assert not dominates(mean_shares(plain, TEXTS))
    found = mean_shares(large, TEXTS)
    assert dominates(found)
    assert all(row.share > 0.99 and row.top > 1000 for row in found)
    assert "toward the mean of a class" in dominance_sentence(found)
    assert "toward the mean of a class" not in dominance_sentence(mean_shares(plain, TEXTS))


def test_the_numbers_are_those_of_the_states() -> None:
    model = tiny("llama")
    texts = ["The cat sat on the mat", "Rome is in Italy"]
    states = [
        sl.capture(model, [text], "resid_post.1", positions=sl.All())["resid_post.1"].double()
        for text in texts
    ]
    rest, first = torch.cat([rows[1:] for rows in states]), torch.stack([rows[0] for rows in states])
    norm, mean = rest.norm(dim=1).mean(), rest.mean(dim=0)
    found = mean_shares(model, texts)[1]
    close([found.share, found.first], [float(mean.norm() / norm), float(first.norm(dim=1).mean() / norm)])
    close(found.top, float(mean.abs().max() / mean.abs().median()))


def test_no_text_gets_a_sentence() -> None:
    with pytest.raises(PromptError):
        mean_shares(tiny("llama"), [])
