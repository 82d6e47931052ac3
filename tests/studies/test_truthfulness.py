"""The truthfulness study finds a planted direction, tells two planted ones apart, and none where none is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import tiny
from studies import planted_models as planted

from steerlab import zoo
from steerlab.directions import DifferenceInMeans, Direction
from steerlab.models import Site, load_model
from steerlab.readouts.questions import plan
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


@pytest.mark.usefixtures("smaller_studies")
def test_one_model_without_truth_leaves_the_other_ones_numbers() -> None:
    result = truthfulness((planted.planted(truth=False), planted.planted(seed=1)), planted.statements())
    assert result.status == "done"
    assert list(result.artefacts()) == ["truthfulness_post"]
    assert not result.agreement
    assert {(cell.direction, cell.model) for cell in result.steering} == {("post", "post")}
    assert "base" in result.missing["steering base"]


@pytest.mark.usefixtures("smaller_studies")
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


@pytest.mark.usefixtures("smaller_studies")
def test_a_pair_that_never_learned_truth(shared: Path) -> None:
    base, post = (load_model(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local"))
    result = truthfulness((base, post), zoo.known_statements())
    assert result.status == "not identified"
    assert {one.scored for one in result.labels} == {"sequences"}
    assert not result.steering


# -- the plan --


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


def test_directions_carry_their_scale_for_steering(same: TruthfulnessResult) -> None:
    direction = same.artefacts()["truthfulness_post"]
    assert isinstance(direction, Direction)
    site = Site("resid_post", 0)
    assert direction.class_gap[site] == pytest.approx(float(direction[site].norm()), rel=1e-3)
