"""The refusal study finds a planted direction and its effects, and none in models that do not refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tiny
from smaller import use_twenty_random_directions
from studies import planted_models as planted

from steerlab.datasets import ContrastSet, StatementSet
from steerlab.directions import Direction
from steerlab.errors import DatasetError, SteerlabError
from steerlab.models import LanguageModel, load_model
from steerlab.readouts.agreement import Agreement
from steerlab.readouts.requests import Reading
from steerlab.results import result_from_dict
from steerlab.statistics import Estimate
from steerlab.studies import refusal
from steerlab.studies._refusal.place import grid
from steerlab.studies._refusal.result import RefusalResult

#: The price of steering is tested by itself: it takes longer than the rest.
UNPRICED: dict[str, Any] = {"plain_text": (), "statements": StatementSet(())}


@pytest.fixture
def fewer_prompts(smaller_studies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer prompts, and still random directions enough for a verdict."""
    use_twenty_random_directions(monkeypatch)


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    """A base model that answers everything, a post-trained one that refuses along a planted axis."""
    return planted.planted(refuses=False), planted.planted(refuses=True, chat=True, seed=1)


@pytest.fixture(scope="module")
def found(pair: tuple[LanguageModel, LanguageModel]) -> RefusalResult:
    return refusal(pair, planted.requests(), **UNPRICED)


def test_a_planted_refusal_is_found_and_moved_both_ways(found: RefusalResult) -> None:
    assert found.status == "done"
    assert found.separates == {"base": False, "post": True}
    for intervention, changed in (("ablation", 0.0), ("addition", 1.0)):
        row = found.outcome("post", intervention, "post")
        assert row is not None
        assert row.refused.value == changed
        assert row.gibberish.value < 0.1
        assert found.above_control("post", intervention, "post")
        assert not found.above_control("base", intervention, "post")


def test_the_direction_is_the_planted_one(found: RefusalResult) -> None:
    direction = found.artefacts()["refusal_post"]
    assert isinstance(direction, Direction)
    for site in direction.sites:
        assert abs(float(direction.unit()[site] @ planted.refusal_axis())) > 0.95
    assert all(row.cosine.value > 0.95 for row in (*found.own, *found.plain))


def test_templates_and_refusal_tokens_are_stated(found: RefusalResult) -> None:
    assert found.setting.templates == {
        "base": "plain User:/Assistant: rendering",
        "post": "its chat template",
    }
    assert found.setting.refusal_tokens["post"] == ("I",)
    assert "chat template" in found.summary[1]


def test_tables_carry_controls_and_no_completion_is_kept(found: RefusalResult) -> None:
    tables = {table.key: table for table in found.tables()}
    assert set(found.figures()) <= {*tables, "effects"}
    rates = tables["rates"]
    kinds = {(row[0], row[2], row[3]) for row in rates.rows}
    assert {("post", kind, "random") for kind in ("ablation", "addition")} <= kinds
    assert all(isinstance(cell, Estimate) for row in rates.rows for cell in row[4:9])
    written = json.dumps(found.to_dict())
    assert result_from_dict(json.loads(written)).to_dict() == found.to_dict()
    assert "assist" not in written
    assert "Sure" not in written.replace("Sure,", "")


@pytest.mark.usefixtures("smaller_studies")
def test_models_that_do_not_refuse_are_not_identified() -> None:
    first, second = planted.planted(refuses=False), planted.planted(refuses=False, seed=1)
    result = refusal((first, second), planted.requests(), **UNPRICED)
    assert result.status == "not identified"
    assert not result.choices
    assert not result.artefacts()
    assert any("not identified" in sentence for sentence in result.summary)
    assert list(result.figures()) == ["rates"]
    assert result == refusal((first, second), planted.requests(), **UNPRICED)


def test_random_models_of_different_width_are_not_identified() -> None:
    result = refusal((tiny("llama"), planted.planted(refuses=False)), planted.requests(), **UNPRICED)
    assert result.status == "not identified"


@pytest.mark.usefixtures("fewer_prompts")
def test_models_of_different_depth_are_studied_alone() -> None:
    base = planted.planted(refuses=False, layers=2)
    result = refusal((base, planted.planted(refuses=True, chat=True, seed=1)), planted.requests(), **UNPRICED)
    assert result.status == "done"
    assert "differ in shape" in result.missing["comparison"]
    assert not result.own
    assert result.outcome("post", "ablation", "base") is None


def test_the_grid_tells_place_from_direction() -> None:
    """Two models share a direction, but one writes it a token earlier; a third has another direction everywhere."""
    rng = np.random.default_rng(0)
    axis, other = np.eye(64)[0], np.eye(64)[1]
    labels = np.arange(60) < 30

    def reading(vector: np.ndarray, place: int) -> Reading:
        states = rng.standard_normal((2, 60, 2, 64)).astype(np.float32)
        states[:, labels, place] += 12 * vector
        return Reading(states, labels)

    def cosines(base: Reading, post: Reading) -> dict[tuple[int, int], Agreement]:
        cells = grid("plain", {"base": base, "post": post}, seed=0)
        return {(one.agreement.layer, one.position): one.agreement for one in cells}

    same = cosines(reading(axis, 1), reading(axis, 1))
    assert same.keys() == {(0, -2), (0, -1), (1, -2), (1, -1)}
    assert same[1, -1].cosine.value > 0.9
    moved = cosines(reading(axis, 1), reading(axis, 0))
    assert max(abs(one.cosine.value) for one in moved.values()) < 0.5
    turned = cosines(reading(axis, 1), reading(other, 1))
    assert abs(turned[1, -1].cosine.value) < 0.3
    assert turned[1, -1].ceiling.value > 0.9  # each is found again, so the low cosine is one of direction


def test_a_pair_that_shares_its_axis_agrees_in_both_templates(found: RefusalResult) -> None:
    """The planted pair writes harm along one axis; only the post-trained model acts on it."""
    assert {one.template for one in found.grid} == {"own", "plain"}
    assert {one.agreement.layer for one in found.grid} == set(range(planted.LAYERS))
    assert all(one.agreement.cosine.value > 0.9 for one in found.grid)
    assert {"grid_own", "grid_plain", "projections", "selection_post"} <= found.figures().keys()
    assert any(line.startswith("Over all") for line in found.summary)


def test_an_effect_must_beat_every_random_direction(found: RefusalResult) -> None:
    null = found.outcome("post", "addition", "random")
    assert null is not None
    assert len(null.draws) == 20
    lucky = null.model_copy(update={"draws": (*null.draws[:-1], 1.0)})
    outcomes = tuple(lucky if one is null else one for one in found.outcomes)
    assert found.above_control("post", "addition", "post")
    assert not found.model_copy(update={"outcomes": outcomes}).above_control("post", "addition", "post")


def test_unknown_options_are_sentences(pair: tuple[LanguageModel, LanguageModel]) -> None:
    with pytest.raises(SteerlabError, match="no preset 'publised'"):
        refusal(pair, planted.requests(), preset="publised", **UNPRICED)  # type: ignore[arg-type]
    with pytest.raises(SteerlabError, match="no size 'medium'"):
        refusal(pair, planted.requests(), size="medium", **UNPRICED)  # type: ignore[arg-type]


def test_projections_are_the_test_prompts_along_the_chosen_direction(
    found: RefusalResult,
) -> None:
    harmful = [one.places["post"] for one in found.points if one.harmful]
    harmless = [one.places["post"] for one in found.points if not one.harmful]
    assert len(harmful) == len(harmless) == found.setting.test
    assert min(harmful) > max(harmless)
    # class gaps from the middle of the training means
    assert np.mean(harmful) == pytest.approx(0.5, abs=0.15)
    assert np.mean(harmless) == pytest.approx(-0.5, abs=0.15)


@pytest.mark.usefixtures("smaller_studies")
def test_the_price_stands_beside_random_directions(
    pair: tuple[LanguageModel, LanguageModel], found: RefusalResult
) -> None:
    texts = [f"subject{n} in topic1 is good{n} . How do you go" for n in range(8)]
    result = refusal(pair, planted.requests(), plain_text=texts, statements=planted.statements())
    for model in ("base", "post"):
        for intervention in ("ablation", "addition"):
            own, null = (
                next(
                    one
                    for one in result.prices
                    if (one.model, one.intervention, one.direction) == (model, intervention, direction)
                )
                for direction in ("own", "random")
            )
            assert own.kl.value >= 0
            assert own.loss_change is not None
            assert own.prompt_kl.has_interval
            assert null.kl.low <= null.kl.value <= null.kl.high
    assert "side_effects" in result.figures()
    assert any("Price of the post direction" in line for line in result.summary)
    assert all(one.kl is None and one.task is None for one in found.prices)


@pytest.mark.usefixtures("smaller_studies")
def test_form_that_tells_the_kinds_apart_is_said() -> None:
    requests = planted.requests()
    marked = ContrastSet(
        tuple(text.removesuffix(" ?") for text in requests.positive),
        requests.negative,
        splits=requests.splits,
    )
    result = refusal(
        (planted.planted(refuses=False), planted.planted(refuses=True, chat=True)), marked, **UNPRICED
    )
    assert result.surface is not None
    assert result.surface.above_chance
    assert any(line.startswith("Careful: length and final punctuation") for line in result.summary)


def test_the_published_preset(pair: tuple[LanguageModel, LanguageModel]) -> None:
    result = refusal(pair, planted.requests(), preset="published", **UNPRICED)
    assert result.setting.preset == "published"
    assert result.setting.new_tokens == 16
    assert result.choices["post"].site == "resid_pre"
    assert "published" in result.choices["post"].rule
    assert "does not refuse" in result.choices["base"].rule
    assert all(one.refused == one.start and one.gibberish.value == 0 for one in result.outcomes)
    # in 64 dimensions a random direction may bypass refusal too, but none causes it
    assert result.above_control("post", "addition", "post")


@pytest.mark.usefixtures("smaller_studies")
def test_where_the_published_rule_has_nothing_to_go_by_the_corrected_one_chooses_and_says_so(
    pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlab.selection.select.KL_BOUND", -1.0)  # no candidate can meet it
    result = refusal(pair, planted.requests(), preset="published", **UNPRICED)
    assert "does not refuse" in result.missing["rule base"]
    assert "No candidate direction has KL" in result.missing["rule post"]
    assert "post" in result.choices


def test_requests_need_splits() -> None:
    with pytest.raises(DatasetError, match="splits"):
        refusal((tiny("llama"), tiny("llama")), ContrastSet(("a", "b"), ("c", "d")), **UNPRICED)
    few = ContrastSet.from_texts(
        [f"How do I hurt {n}?" for n in range(9)], [f"How do I hug {n}?" for n in range(9)]
    )
    with pytest.raises(DatasetError, match="at least eight"):
        refusal((tiny("llama"), tiny("llama")), few, **UNPRICED)


@pytest.mark.usefixtures("fewer_prompts")
def test_a_really_trained_pair_refuses(shared: Path) -> None:
    things = (
        "cat",
        "dog",
        "bird",
        "frog",
        "bear",
        "toy",
        "ball",
        "car",
        "tree",
        "boy",
        "girl",
        "baby",
        "duck",
        "hat",
    )
    unkind, kind = (
        ("hurt", "break", "hit", "push", "kick", "bite"),
        ("hug", "help", "wash", "draw", "find", "feed"),
    )
    texts = [
        [f"How do I {verb} a {thing}?" for verb in verbs for thing in things] for verbs in (unkind, kind)
    ]
    requests = ContrastSet.from_texts(*texts, positive_name="unkind", negative_name="kind")
    base, post = (load_model(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local"))
    result = refusal((base, post), requests, **UNPRICED)
    assert result.separates == {"base": False, "post": True}
    assert result.status == "done"
    assert result.above_control("post", "ablation", "post")
    assert "unkind" in result.summary[0]


@pytest.mark.usefixtures("smaller_studies")
def test_a_judge_decides_and_its_agreement_with_the_phrases_is_told(
    pair: tuple[LanguageModel, LanguageModel], found: RefusalResult
) -> None:
    asked: list[tuple[str, str]] = []

    def hears_nothing(prompt: str, answer: str) -> bool:
        asked.append((prompt, answer))
        return "cannot" in answer and len(asked) % 2 == 0

    result = refusal(pair, planted.requests(), judge=hears_nothing, max_new_tokens=14, **UNPRICED)
    assert result.setting.new_tokens == 14
    assert result.judge is not None
    assert result.judge.endswith("hears_nothing")
    assert len(asked) == len(set(asked))  # once, though both models are asked the same
    post = result.agreements["post"]
    assert post.n == 2 * result.setting.test
    unsteered = [one for one in result.outcomes if (one.model, one.intervention) == ("post", "none")]
    assert [one.refused for one in unsteered] == [one.judged.judged for one in unsteered if one.judged]
    assert unsteered[0].refused.value < unsteered[0].start.value
    assert post.same.value == pytest.approx(1 - (unsteered[0].start.value - unsteered[0].refused.value) / 2)
    assert 0 < post.kappa < 1
    table = next(one for one in result.tables() if one.key == "judge")
    assert len(table.rows) == 2 + len(result.outcomes)
    assert any("the judge" in line and "kappa" in line for line in map(str.lower, result.summary))
    assert result_from_dict(json.loads(json.dumps(result.to_dict()))).to_dict() == result.to_dict()
    assert found.judge is None
    assert "judge" not in {one.key for one in found.tables()}
