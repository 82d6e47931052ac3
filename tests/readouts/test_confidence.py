"""Confidence on texts and statements against a plain forward pass, and calibration against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import TEXTS
from sklearn.calibration import calibration_curve
from studies import planted_models

from steerlab.models import LanguageModel
from steerlab.readouts.confidence import calibration, fitting, read_answers, read_texts
from steerlab.readouts.questions import plan


def test_texts_are_read_as_a_plain_forward_reads_them(tiny_gpt2: LanguageModel) -> None:
    reading = read_texts(tiny_gpt2, TEXTS, seed=0, description="")
    at = 0
    for number, text in enumerate(TEXTS):
        ids = tiny_gpt2.tokenize([text]).input_ids
        logits = tiny_gpt2.model(ids).logits[0, :-1, : tiny_gpt2.vocab_size].detach().double()
        law = logits.log_softmax(-1)
        here = slice(at, at + len(law))
        at += len(law)
        assert (reading.text[here] == number).all()
        assert reading.entropy[here] == pytest.approx(-(law.exp() * law).sum(-1).numpy(), abs=1e-4)
        assert reading.loss[here] == pytest.approx(-law[torch.arange(len(law)), ids[0, 1:]].numpy(), abs=1e-4)
        assert reading.p_max[here] == pytest.approx(law.max(-1).values.exp().numpy(), abs=1e-4)
    assert at == len(reading.text)
    assert reading.per_byte()[0] == pytest.approx(
        reading.entropy[reading.text == 0].sum() / len(TEXTS[0].encode())
    )


def test_calibration_closed_form() -> None:
    """One hundred answers at 0.9 with 70 right, one hundred at 0.6 with 60 right: 0.5 * 0.2 + 0.5 * 0."""
    sure = np.repeat([0.9, 0.6], 100)
    right = np.concatenate([np.arange(100) < 70, np.arange(100) < 60])
    found = calibration(sure, right, np.arange(200), seed=0)
    assert found.error.value == pytest.approx(0.1)
    assert found.adaptive.value == pytest.approx(0.1)
    assert found.floor.high < 0.1
    assert [(one.n, one.accuracy.value) for one in found.curve] == [(100, 0.6), (100, 0.7)]


def test_calibration_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 400)
    right = rng.random(400) < sure**2
    found = calibration(sure, right, np.arange(400), seed=0)
    share, mean = calibration_curve(right, sure, n_bins=10)
    assert [one.accuracy.value for one in found.curve] == pytest.approx(share.tolist())
    assert [one.confidence for one in found.curve] == pytest.approx(mean.tolist())
    counts = np.histogram(sure, bins=np.linspace(0, 1, 11))[0]
    assert found.error.value == pytest.approx((counts[counts > 0] / 400) @ np.abs(share - mean))
    assert found.error.value > found.floor.high


def test_long_texts_are_cut_to_the_context(tiny_llama: LanguageModel) -> None:
    found = fitting([tiny_llama], ["word " * 200, "short text", " "])
    assert len(found) == 2
    assert tiny_llama.tokenize(found[:1]).lengths[0] <= 64


def test_answers_are_the_two_way_softmax() -> None:
    model, made = planted_models.planted(), planted_models.statements()
    chosen = plan(made, per_topic=10, held_out=2, seed=0)
    rows = np.arange(0, len(chosen.labels), 7)
    found = read_answers(model, chosen, rows, 0)
    for number, row in enumerate(rows):
        law = model.logits([chosen.statements[int(row)].text + " This statement is:"])[0].double().softmax(-1)
        true, false = (float(law[model.token_id(word)]) for word in (" TRUE", " FALSE"))
        assert found.p_true[number] == pytest.approx(true / (true + false), abs=1e-4)
        assert found.mass[number] == pytest.approx(true + false, abs=1e-4)
        assert found.confidence[number] == pytest.approx(max(true, false) / (true + false), abs=1e-4)
