"""The truthfulness study finds a planted direction, tells two planted ones apart, and none where none is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import planted_models as planted

from steerlab import datasets, zoo
from steerlab.datasets import Statement, StatementSet
from steerlab.directions import DifferenceInMeans, Direction
from steerlab.errors import DatasetError, ModelError
from steerlab.models import Site, Span, load
from steerlab.readouts.agreement import agreement_by_layer, contrast_weights
from steerlab.readouts.questions import ANSWER_SITE, plan, question, subject
from steerlab.results import result_from_dict
from steerlab.statistics import Estimate
from steerlab.studies import truthfulness
from steerlab.studies._truthfulness.probes import choose_layer, choose_layers, fitter
from steerlab.studies._truthfulness.result import TruthfulnessResult
from steerlab.studies._truthfulness.study import PLACES


@pytest.fixture(scope="module")
def same() -> TruthfulnessResult:
    """Both models write truth along the same axis."""
    return truthfulness((planted.planted(), planted.planted(seed=1)), planted.statements())


@pytest.fixture(scope="module")
def turned() -> TruthfulnessResult:
    """The post-trained model writes truth along an axis of its own."""
    return truthfulness((planted.planted(), planted.planted(turned=True, seed=1)), planted.statements())


def test_a_planted_direction_is_found_in_both_models(same: TruthfulnessResult) -> None:
    assert same.status == "done"
    for name in ("base", "post"):
        assert same.own(name).above_chance
        direction = same.artefacts()[f"truthfulness_{name}"]
        assert isinstance(direction, Direction)
        for site in direction.sites:
            unit = direction.unit()[site]
            assert abs(float(unit @ planted.truth_axis())) > 0.95
    assert all(row.cosine.value > 0.95 for row in same.agreement)


def test_a_shared_direction_carries_over_and_steers_both_models(same: TruthfulnessResult) -> None:
    assert same.cell("base", "post").accuracy.low > 0.9
    cells = [cell for cell in same.steering if cell.normalisation == "to certainty"]
    assert len(cells) == 8
    assert {(cell.direction, cell.model, cell.place) for cell in cells} == {
        (a, b, place) for a in ("base", "post") for b in ("base", "post") for place in PLACES
    }
    for cell in cells:
        assert cell.above_control
        assert cell.control.n == 20
        assert cell.mean.low > (0.8 if cell.place == "object and full stop" else 0.5)


def test_different_directions_neither_agree_nor_carry_over(turned: TruthfulnessResult) -> None:
    assert turned.own("base").above_chance
    assert turned.own("post").above_chance
    assert all(abs(row.cosine.value) < row.random and row.ceiling.value > 0.9 for row in turned.agreement)
    assert not turned.cell("base", "post").above_chance
    for cell in turned.steering:
        assert cell.above_control == (cell.direction == cell.model)


def test_without_truth_nothing_is_identified_and_no_direction_is_given() -> None:
    blank = planted.planted(truth=False)
    other = planted.planted(truth=False, seed=1)
    result = truthfulness((blank, other), planted.statements())
    assert result == truthfulness((blank, other), planted.statements())
    assert result.status == "not identified"
    assert not result.agreement
    assert not result.steering
    assert not result.points
    assert not result.artefacts()
    assert sum("not identified: accuracy at chance" in sentence for sentence in result.summary) >= 2
    assert list(result.figures()) == ["accuracy"]


def test_one_model_without_truth_leaves_the_other_ones_numbers() -> None:
    result = truthfulness((planted.planted(truth=False), planted.planted(seed=1)), planted.statements())
    assert result.status == "done"
    assert list(result.artefacts()) == ["truthfulness_post"]
    assert not result.agreement
    assert {(cell.direction, cell.model) for cell in result.steering} == {("post", "post")}
    assert "base" in result.missing["steering base"]


@pytest.mark.parametrize("other", ["shallow", "narrow"])
def test_models_of_different_shape_are_studied_alone(other: str) -> None:
    base = planted.planted(layers=2) if other == "shallow" else tiny("llama")
    result = truthfulness((base, planted.planted(seed=1)), planted.statements())
    assert result.own("post").above_chance
    assert "differ in shape" in result.missing["comparison"]
    assert all(cell.probe == cell.states for cell in result.transfer)
    if other == "narrow":
        assert {one.scored for one in result.labels if one.model == "base"} == {"sequences"}
        assert {one.scored for one in result.labels if one.model == "post"} == {"single tokens"}


def test_every_number_has_an_interval_and_every_effect_its_control(same: TruthfulnessResult) -> None:
    tables = {table.key: table for table in same.tables()}
    assert set(same.figures()) <= set(tables)
    assert set(same.figures()) == {
        "accuracy",
        "cosine",
        "transfer",
        "topics",
        "projections",
        "steering",
        "price",
    }
    for key, control in (
        ("accuracy", "shuffled labels"),
        ("steering", "random directions"),
        ("transfer", "shuffled labels"),
        ("topics", "shuffled labels"),
        ("price", "KL, random"),
        ("price", "loss change, random"),
    ):
        at = tables[key].columns.index(control)
        assert all(isinstance(row[at], Estimate) for row in tables[key].rows)
    assert all(figure.data for figure in same.figures().values())
    assert result_from_dict(json.loads(json.dumps(same.to_dict()))).to_dict() == same.to_dict()


def test_a_pair_that_never_learned_truth(shared: Path) -> None:
    base, post = (load(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local"))
    result = truthfulness((base, post), zoo.statements())
    assert result.status == "not identified"
    assert {one.scored for one in result.labels} == {"sequences"}
    assert not result.steering


def test_the_bundled_pair_knows_truth() -> None:
    try:
        base, post = (load(zoo.path(f"small-{kind}")) for kind in ("base", "post"))
    except ModelError as error:
        pytest.skip(str(error))
    result = truthfulness((base, post), zoo.statements())
    assert result.status == "done"
    assert result.own("base").above_chance
    assert result.own("post").above_chance
    at = {row.layer: row for row in result.agreement}[result.layer("post")]
    assert at.cosine.value > at.random
    assert {one.model for one in result.labels if one.statements == "all" and one.above_chance} == {
        "base",
        "post",
    }


# -- the plan --


def test_held_out_topics_are_never_trained_on_and_examples_never_asked() -> None:
    used = plan(datasets.statements(), per_topic=40, seed=0)
    assert len(used.folds) == len(datasets.statements().topics_present) >= 6
    for fold in used.folds:
        assert len(fold.test) == 1
        assert not set(fold.train) & set(fold.test)
        assert {*fold.train, *fold.test} == set(datasets.statements().topics_present)
    asked = {item.text for item in used.statements}
    for name, examples in used.examples.items():
        assert [item.label for item in examples] == [True, False, True, False]
        subjects = {(item.topic, subject(item)) for item in used.statements if item.topic == name}
        assert not {(name, subject(item)) for item in examples} & subjects
        assert not {item.text for item in examples} & asked


def test_the_layer_is_chosen_without_the_test_topics() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3, len(used.statements), 8))
    states[1, :, 0] += 3.0 * used.labels
    chosen = choose_layer(states, used, used.folds[0])
    assert choose_layers(states, used)[0] == chosen
    spoiled = states.copy()
    spoiled[:, used.rows(used.folds[0].test)] = rng.standard_normal(
        (3, len(used.rows(used.folds[0].test)), 8)
    )
    assert chosen == choose_layer(spoiled, used, used.folds[0]) == 1


def test_statements_without_topics_are_held_out_at_random() -> None:
    items = [Statement(f"Fact {n} holds.", label=n % 2 == 0) for n in range(160)]
    used = plan(StatementSet(items), per_topic=64, seed=0)
    assert not used.by_topic
    assert [fold.test for fold in used.folds] == [(f"part {number}",) for number in range(1, 7)]
    with pytest.raises(DatasetError, match="too few"):
        plan(StatementSet(items[:40]), per_topic=64, seed=0)


def test_the_question_marks_the_last_word_and_the_full_stop() -> None:
    model = planted.planted()
    statement = Statement("subject1 in topic1 is good3 .", label=True, topic="topic1")
    example = Statement("subject2 in topic1 is bad3 .", label=False, topic="topic1")
    prompt = question(statement, [example], (" TRUE", " FALSE"))
    assert prompt.text.startswith("subject2 in topic1 is bad3 . This statement is: FALSE\n")
    tokens = model.tokenize([prompt])
    marked = [
        model.tokenizer.decode([int(tokens.input_ids[0, at])]) for at in Span(ANSWER_SITE).resolve(tokens, 0)
    ]
    assert marked == ["good3", "."]


# -- directions as weighted rows --


def test_a_probe_is_the_difference_in_means_of_centred_topics() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    states = np.random.default_rng(0).standard_normal((len(used.statements), 8)) + used.labels[:, None]
    rows = used.rows(used.folds[0].train)
    probe = fitter(states, used)(used.folds[0].train)
    centred = np.concatenate(
        [
            states[rows][used.groups[rows] == g] - states[rows][used.groups[rows] == g].mean(0)
            for g in np.unique(used.groups[rows])
        ]
    )
    labels = np.concatenate([used.labels[rows][used.groups[rows] == g] for g in np.unique(used.groups[rows])])
    expected = DifferenceInMeans().fit(centred, labels)
    np.testing.assert_allclose(probe.directions[0], expected.direction_, rtol=1e-10)
    np.testing.assert_allclose(probe.thresholds[0], -expected.bias_, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(0, 1000))
def test_contrast_weights_give_the_difference_of_weighted_means(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.array([True, False] * n)
    counts = rng.integers(1, 4, size=(2, 2 * n)).astype(float)
    x = rng.standard_normal((2 * n, 3))
    for weights, count in zip(contrast_weights(labels, counts), counts, strict=True):
        repeated, y = np.repeat(x, count.astype(int), axis=0), np.repeat(labels, count.astype(int))
        np.testing.assert_allclose(weights @ x, repeated[y].mean(0) - repeated[~y].mean(0), atol=1e-12)


def test_agreement_reaches_its_ceiling_only_where_the_directions_are_the_same() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2 == 0
    noise = rng.standard_normal((2, 3, 200, 16))
    axes = np.eye(16)
    gap = 2.0 * labels[:, None] - 1.0
    base = noise[0] + np.stack([gap * axes[0], gap * axes[0], 0 * gap * axes[0]])
    post = noise[1] + np.stack([gap * axes[0], gap * axes[1], 0 * gap * axes[0]])
    rows = agreement_by_layer(
        base, post, labels, clusters=np.arange(200), strata=np.zeros(200), layers=[0, 1, 2], seed=0
    )
    equal, apart, nothing = rows
    assert abs(equal.crossed.value - equal.ceiling.value) < 0.1 < equal.ceiling.value
    assert equal.cosine.low > equal.random
    assert abs(apart.cosine.value) < 0.3 < apart.ceiling.value
    assert nothing.ceiling.value < 0.4
    assert all(abs(row.shuffled.value) < 0.2 for row in rows)
    for row in rows:
        assert row.cosine.low <= row.cosine.value <= row.cosine.high


def test_directions_carry_their_scale_for_steering(same: TruthfulnessResult) -> None:
    direction = same.artefacts()["truthfulness_post"]
    assert isinstance(direction, Direction)
    site = Site("resid_post", 0)
    assert direction.class_gap[site] == pytest.approx(float(direction[site].norm()), rel=1e-3)
