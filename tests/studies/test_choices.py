"""Calibration on multiple choice, against closed forms, scikit-learn and transformers' own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from tolerances import close

from steerlab import zoo
from steerlab.datasets import ChoiceQuestion, choice_questions
from steerlab.errors import PromptError
from steerlab.results import result_from_dict
from steerlab.studies import choice_confidence, read_choices
from steerlab.studies._confidence.changes import choice_changes
from steerlab.studies._confidence.choices import ChoiceReading, choices_of_pair
from steerlab.studies._confidence.figures import choices_figure
from steerlab.studies._confidence.tables import choices_table
from steerlab.studies._confidence.temperature import fit_temperature, tempered_law

QUESTIONS = [
    ChoiceQuestion("A cat is an", ("animal", "island", "anchor"), 0),
    ChoiceQuestion("Rome is in", ("Spain", "Italy"), 1),
    ChoiceQuestion("The dog", ("ran", "sat", "is red", "was"), 0),
]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_continuations_are_sums_of_transformers_log_probabilities(family: str) -> None:
    model = tiny(family)
    found = read_choices(model, QUESTIONS)
    for row, one in enumerate(QUESTIONS):
        ids = [model.tokenize([f"{one.text} {choice}"]).input_ids[0] for choice in one.choices]
        same = next(at for at in range(99) if len({int(row_[at]) for row_ in ids}) > 1)
        for column, tokens in enumerate(ids):
            with torch.inference_mode():
                logits = model.model(tokens[None]).logits[0, :, : model.vocab_size]
            law = logits.double().log_softmax(-1)
            expected = sum(float(law[at - 1, tokens[at]]) for at in range(same, len(tokens)))
            close(found.scores[row, column], expected)
        assert np.isneginf(found.scores[row, len(one.choices) :]).all()
    np.testing.assert_allclose(found.law().sum(axis=1), 1)


def test_letters_are_read_after_the_listed_answers() -> None:
    model = zoo.load_bundled("small-base")
    try:
        found = read_choices(model, QUESTIONS, "letters")
    except PromptError as error:
        assert "token" in str(error)  # noqa: PT017  # this tokenizer may cut letters
        return
    prompt = "Rome is in\nA) Spain\nB) Italy\nAnswer:"
    law = model.logits([prompt]).double().log_softmax(-1)[0]
    np.testing.assert_allclose(
        found.scores[1, :2], [float(law[model.token_id(" A")]), float(law[model.token_id(" B")])], atol=1e-5
    )


def synthetic(n: int = 2000, *, sharpness: float, seed: int = 0) -> ChoiceReading:
    """Right answers drawn from the law of some scores, which are then multiplied: sharpness 1 is calibrated."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 4)) * 1.5
    law = softmax(scores, axis=1)
    right = np.array([rng.choice(4, p=row) for row in law])
    return ChoiceReading(sharpness * scores, right, np.arange(n))


def test_a_calibrated_model_stays_and_an_overconfident_one_is_cooled() -> None:
    calm, loud = synthetic(sharpness=1.0), synthetic(sharpness=3.0)
    for reading, temperature in ((calm, 1.0), (loud, 3.0)):
        assert fit_temperature(reading.scores, reading.right) == pytest.approx(temperature, rel=0.08)
    found = choice_confidence("base", calm, seed=0)
    assert found.calibration.error.value < found.calibration.floor.high + 0.01
    assert found.above_chance
    assert found.chance == 0.25
    louder = choice_confidence("post", loud, seed=0)
    assert louder.calibration.error.value > 0.15
    assert louder.after.error.value < 0.05
    assert louder.brier_after.value < louder.brier.value
    assert louder.temperature == pytest.approx(3.0, rel=0.1)


def test_the_numbers_are_scikit_learns() -> None:
    reading = synthetic(600, sharpness=1.7, seed=3)
    law = reading.law()
    found = choice_confidence("base", reading, seed=0)
    onehot = np.eye(4)[reading.right]
    expected = sum(brier_score_loss(onehot[:, column], law[:, column]) for column in range(4))
    assert found.brier.value == pytest.approx(expected)
    correct, sure = law.argmax(1) == reading.right, law.max(1)
    shares, means = calibration_curve(correct, sure, n_bins=10)
    np.testing.assert_allclose([one.accuracy.value for one in found.calibration.curve], shares, atol=1e-9)
    np.testing.assert_allclose([one.confidence for one in found.calibration.curve], means, atol=1e-9)
    temperature = fit_temperature(reading.scores, reading.right)
    losses = [
        log_loss(reading.right, reading.law(value), labels=range(4))
        for value in (temperature * 0.9, temperature, temperature * 1.1)
    ]
    assert losses[1] == min(losses)


def test_each_half_gets_the_others_temperature() -> None:
    reading = synthetic(400, sharpness=2.0, seed=1)
    law, mean = tempered_law(reading.scores, reading.right, reading.subject, seed=0)
    np.testing.assert_allclose(law.sum(axis=1), 1)
    ratios = set()
    for row in range(len(law)):
        one = (reading.scores[row, 0] - reading.scores[row, 1]) / (np.log(law[row, 0]) - np.log(law[row, 1]))
        ratios.add(round(float(one), 6))
    assert len(ratios) == 2
    assert mean == pytest.approx(np.mean(list(ratios)), abs=1e-5)


def test_changes_stand_beside_what_swapping_the_models_gives() -> None:
    calm, loud = synthetic(1000, sharpness=1.0), synthetic(1000, sharpness=3.0)
    laws = {"base": calm.law(), "post": loud.law()}
    found = {
        one.what: one
        for one in choice_changes(laws, calm.right, calm.subject, above_chance=True, seed=0)  # type: ignore[arg-type]
    }
    assert not found["accuracy on multiple choice"].identified  # a temperature keeps the order
    for name in ("confidence", "Brier score", "calibration error"):
        one = found[f"{name} on multiple choice"]
        assert one.identified
        assert one.value.value > one.control.high
    gap = (
        choice_confidence("post", loud, seed=0).brier.value
        - choice_confidence("base", calm, seed=0).brier.value
    )
    assert found["Brier score on multiple choice"].value.value == pytest.approx(gap)
    same = choice_changes(
        {"base": calm.law(), "post": calm.law()}, calm.right, calm.subject, above_chance=False, seed=0
    )
    assert not any(one.identified for one in same)
    assert len(same) == 3


def test_a_temperature_at_the_bound_is_said() -> None:
    models = {"base": zoo.load_bundled("small-base"), "post": zoo.load_bundled("small-post")}
    found = choices_of_pair(models, choice_questions(zoo.known_statements()), source="made", seed=0)
    assert "bound" not in choices_table(found).note
    low = found.answers[1].model_copy(update={"temperature": 0.05})
    note = choices_table(found.model_copy(update={"answers": (found.answers[0], low)})).note
    assert "post at the bound of the search, 0.05 to 20" in note


def test_the_bundled_pair_and_questions_that_are_too_few() -> None:
    models = {"base": zoo.load_bundled("small-base"), "post": zoo.load_bundled("small-post")}
    made = choice_questions(zoo.known_statements())
    found = choices_of_pair(models, made, source="made", seed=0)
    assert found.form in ("continuations", "letters")
    assert all(one.above_chance for one in found.answers)
    assert "multiple-choice questions" in found.sentences[0]
    assert choices_table(found).rows
    assert choices_figure(found).data
    few = choices_of_pair(models, made[:12], source="made", seed=0)
    assert not few.answers
    assert "too few" in few.sentences[0]
    with pytest.raises(PromptError, match="beginning of another"):
        read_choices(models["base"], [ChoiceQuestion("Rome is", ("in Italy", "in Italy now"), 0)])


@pytest.mark.usefixtures("smaller_studies")
def test_the_confidence_study_carries_it() -> None:
    from steerlab import datasets, studies

    base, post = zoo.load_bundled("small-base"), zoo.load_bundled("small-post")
    result = studies.confidence((base, post), zoo.known_statements(), plain_text=datasets.plain_text()[:12])
    assert result.choices is not None
    assert "choice_confidence" in {table.key for table in result.tables()}
    assert "choice_confidence" in result.figures()
    assert any("multiple" in line for line in result.summary)
    assert result_from_dict(result.to_dict()).to_dict() == result.to_dict()
