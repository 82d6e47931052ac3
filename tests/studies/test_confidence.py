"""The confidence study on real, random and planted pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import tiny
from studies import planted_models

from steerlab import datasets
from steerlab.errors import PromptError
from steerlab.models import LanguageModel, load_model
from steerlab.results import result_from_dict
from steerlab.studies import confidence
from steerlab.studies._confidence.changes import _change
from steerlab.studies._confidence.result import ConfidenceResult


def test_change_and_its_control() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=80)
    moved = _change("x", "texts", base + 0.5 + 0.1 * rng.normal(size=80), base, None, 0)
    assert moved.identified
    same = _change("x", "texts", base + 0.1 * rng.normal(size=80), base, None, 0)
    assert not same.identified
    assert same.control.low < 0 < same.control.high
    clustered = _change("x", "answers", base, np.zeros(80), np.repeat(np.arange(2), 40), 0)
    assert len(np.unique([clustered.control.low, clustered.control.high])) == 2


def wellformed(result: ConfidenceResult) -> None:
    written = result.to_dict()
    assert result_from_dict(written).to_dict() == written
    assert {"text_confidence", "changes"} <= {table.key for table in result.tables()}
    figures = result.figures()
    assert {"text_confidence", "next_token_reliability"} <= set(figures)
    assert ("entropy_neurons" in figures) == bool(result.neurons.sets)
    assert all(sentence.endswith(".") for sentence in result.summary)
    assert result.plot() is not None


@pytest.mark.usefixtures("smaller_studies")
@pytest.mark.parametrize(("base", "post"), [("llama", "llama"), ("mixtral", "mixtral"), ("gpt2", "bloom")])
def test_random_pair_identifies_nothing(base: str, post: str) -> None:
    pair = tiny(base, seed=1), tiny(post, seed=2, chat=True)
    result = confidence(pair, datasets.statements(), plain_text=datasets.plain_text()[:12])
    wellformed(result)
    assert result.status == "not identified"
    assert not any(one.reads for one in result.texts)
    assert not result.neurons.specific
    notes = " ".join(result.neurons.notes)
    if base == "mixtral":
        assert "mixture of experts" in notes
        assert not result.neurons.sets
    if base == "gpt2":
        assert "d_mlp" in notes or "vocab" in notes
        assert not result.neurons.agreements


@pytest.mark.usefixtures("smaller_studies")
def test_stories_pair(shared: Path) -> None:
    base, post = (load_model(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local"))
    result = confidence((base, post), datasets.statements(), plain_text=datasets.plain_text()[:20])
    wellformed(result)
    assert result.status == "done"
    assert all(one.reads for one in result.texts)
    assert result.texts[0].loss.value < 4
    assert not result.answers  # " TRUE" is several tokens there
    assert "TRUE" in result.form
    overlap = {one.name: one.value for one in result.neurons.agreements}
    assert overlap["rank correlation of the norm, all neurons"].low > 0.9
    assert overlap["overlap of random neurons of like norm"].value < 0.4
    assert not result.neurons.specific


@pytest.mark.usefixtures("smaller_studies")
def test_a_model_against_itself_changes_nothing(shared: Path) -> None:
    model = load_model(shared / "models" / "stories260K")
    result = confidence((model, model), datasets.statements(), plain_text=datasets.plain_text()[:8])
    wellformed(result)
    assert result.status == "not identified"
    assert not any(one.identified for one in result.changes)
    assert result.neurons.agreements[0].value.value == 1


def test_answers_of_a_model_that_knows_and_of_one_that_does_not() -> None:
    made = planted_models.statements()
    texts = [one.text for one in made][:10]
    knows, guesses = planted_models.planted(), planted_models.planted(truth=False)
    result = confidence((knows, guesses), made, plain_text=texts)
    wellformed(result)
    base, post = result.answers
    assert base.above_chance
    assert base.accuracy.value > 0.95
    assert base.brier.value < 0.05
    assert not post.above_chance
    assert any("not identified for post: accuracy at chance" in sentence for sentence in result.summary)
    table = next(table for table in result.tables() if table.key == "answer_confidence")
    assert table.rows[1][table.columns.index("calibration error")] == "not identified: at chance"
    assert not any("calibration" in one.what for one in result.changes if one.of == "answers")
    accuracy = next(one for one in result.changes if one.what == "accuracy on statements")
    assert accuracy.identified
    assert accuracy.value.high < 0


def test_other_answers_are_asked_for_and_named() -> None:
    made, knows = planted_models.statements(), planted_models.planted()
    texts = [one.text for one in made][:10]
    turned = confidence((knows, knows), made, plain_text=texts, answers=(" FALSE", " TRUE"))
    assert turned.words == (" FALSE", " TRUE")
    assert turned.answers[0].accuracy.value < 0.7  # the model says TRUE of what is true
    assert any("FALSE or TRUE" in sentence for sentence in turned.summary)
    (table,) = (table for table in turned.tables() if table.key == "answer_confidence")
    assert table.title.startswith("Confidence in FALSE or TRUE on labelled statements")
    with pytest.raises(PromptError, match="cannot be asked for"):
        confidence((knows, knows), made, plain_text=texts, answers=(" Perhaps so", " TRUE"))


def test_no_text_is_an_error(tiny_llama: LanguageModel) -> None:
    with pytest.raises(PromptError, match="two plain texts"):
        confidence((tiny_llama, tiny_llama), datasets.statements(), plain_text=["one text"])
