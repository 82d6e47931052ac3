"""Where no truth direction is identified the study says why: the model, the statements or the estimator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from studies import planted_models as planted

from steerlab.datasets import Statement, StatementSet
from steerlab.readouts.questions import Plan, plan
from steerlab.results import result_from_dict
from steerlab.studies import truthfulness
from steerlab.studies._truthfulness.reasons import reason, reasons_of

WIDTH = 10


def half_negated() -> Plan:
    """Six topics of 60 subjects, one true and one false statement of each; every second subject's are negations."""
    made = [
        Statement(
            f"s{n} of {topic}, {label}", label, topic, -1 if n % 2 else 1, {"subject": (0, len(f"s{n}"))}
        )
        for topic in planted.TOPICS
        for n in range(60)
        for label in (True, False)
    ]
    return plan(StatementSet(made), per_topic=200, seed=0)


def states(used: Plan, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    topic = {name: rng.standard_normal(WIDTH) for name in sorted(set(used.groups.tolist()))}
    return rng.standard_normal((2, len(used.statements), WIDTH)) + np.stack(
        [topic[name] for name in used.groups]
    )


def signs(used: Plan) -> np.ndarray:
    return np.where(used.labels, 1.0, -1.0)


def test_a_model_that_does_not_know() -> None:
    used = half_negated()
    tried = reasons_of("base", states(used), used, seed=0)
    assert reason(tried).startswith("the model does not know these topics (within a topic ")
    assert {row.topic for row in tried if row.what == "within a topic"} == {"all", *planted.TOPICS}
    assert [row.coordinates for row in tried if row.what != "within a topic"] == ["plain", "standardised"] * 2
    assert all(row.accuracy.has_interval and row.control.has_interval for row in tried)


def test_one_loud_coordinate_is_the_estimator() -> None:
    used = half_negated()
    x = states(used)
    x[:, :, 0] += 2.5 * signs(used)
    x[:, :, 1] *= 300.0
    said = reason(reasons_of("base", x, used, seed=0))
    assert said.startswith("the estimator: in standardised coordinates ")
    assert "within a topic 8" in said
    assert "shuffled labels" in said


def test_a_direction_that_turns_round_is_the_statements() -> None:
    used = half_negated()
    x = states(used)
    x[:, :, 0] += 2.5 * signs(used) * used.polarity
    tried = reasons_of("base", x, used, seed=0)
    said = reason(tried)
    assert said.startswith("the statements mix affirmations and negations: affirmed alone, ")
    alone = max(row.accuracy.value for row in tried if row.what == "affirmed statements alone")
    assert alone > 0.8


def test_a_direction_of_each_topic_is_none_of_all() -> None:
    used = half_negated()
    x = states(used)
    for number, name in enumerate(planted.TOPICS):
        rows = used.groups == name
        x[:, rows, number] += 2.5 * signs(used)[rows]
    said = reason(reasons_of("base", x, used, seed=0))
    assert said.startswith(
        "what it knows of one topic is no direction shared with others (it knows topic0, topic1, "
    )


@pytest.mark.usefixtures("smaller_studies")
def test_the_study_names_the_reason_and_its_numbers() -> None:
    blank = planted.planted(truth=False, layers=2), planted.planted(layers=2, seed=1)
    result = truthfulness(blank, planted.statements(), plain_text=[])
    assert "Reason: the model does not know these topics" in result.summary[0]
    assert "Reason" not in result.summary[1]
    assert {row.probe for row in result.reasons} == {"base"}
    table = next(table for table in result.tables() if table.key == "reasons")
    assert len(table.rows) == len(result.reasons)
    assert result.coordinates.keys() == {"base", "post"}
    assert result_from_dict(json.loads(json.dumps(result.to_dict()))).to_dict() == result.to_dict()


@pytest.mark.usefixtures("smaller_studies")
def test_coordinates_can_be_named() -> None:
    pair = planted.planted(layers=2), planted.planted(layers=2, seed=1)
    result = truthfulness(pair, planted.statements(), coordinates="standardised", plain_text=[])
    assert result.coordinates == {"base": ("standardised",) * 2, "post": ("standardised",) * 2}
    assert result.own("base").accuracy.low > 0.9
    assert "Coordinates of one scale at layers (base: 0, 1; post: 0, 1)." in result.tables()[0].note
    plain = truthfulness(pair, planted.statements(), coordinates="plain", plain_text=[])
    assert plain.artefacts()["truthfulness_base"].hash == result.artefacts()["truthfulness_base"].hash  # type: ignore[attr-defined]
