"""Judges of refusals: asked once, checked, named, and compared with the phrases."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from families import tiny
from studies import planted_models as planted

from steerlab.errors import SteeringError, SteerlabError
from steerlab.judging import agreement_of, asked_once, judge_name
from steerlab.models import LanguageModel
from steerlab.readouts.refusals import Judge, refusal_tokens
from steerlab.selection import Selection, select_direction
from steerlab.statistics import proportion
from steerlab.steering import Add, Calibration, calibrate_strength


class Rule:
    """A judge that is an object."""

    def __call__(self, prompt: str, answer: str) -> bool:
        return "assist" in answer


def rule(prompt: str, answer: str, word: str = "assist") -> bool:
    return word in answer


@pytest.mark.parametrize(
    ("judge", "name"), [(rule, "rule"), (Rule(), "Rule"), (functools.partial(rule, word="x"), "rule")]
)
def test_a_judge_has_a_name(judge: object, name: str) -> None:
    assert judge_name(judge) == name  # type: ignore[arg-type]
    assert judge_name(asked_once(judge)) == name  # type: ignore[arg-type]


def test_a_judge_is_asked_once_for_a_prompt_and_answer() -> None:
    asked: list[tuple[str, str]] = []

    def judge(prompt: str, answer: str) -> bool:
        asked.append((prompt, answer))
        return np.bool_(len(asked) == 1)  # type: ignore[return-value]

    once = asked_once(judge)
    assert [once("a", "b"), once("a", "b"), once("a", "c"), once("b", "b")] == [True, True, False, False]
    assert asked == [("a", "b"), ("a", "c"), ("b", "b")]


@pytest.mark.parametrize("value", [1, None, "refused", 0.7, "SECRET completion of some length"])
def test_what_is_no_bool_is_a_sentence_without_the_answer(value: object) -> None:
    with pytest.raises(SteerlabError, match=r"says .* of the prompt 'How\?', which is") as caught:
        asked_once(lambda prompt, answer: value)("How?", "SECRET completion of some length")  # type: ignore[arg-type, return-value]
    assert "completion of some" not in str(caught.value)


def test_a_judge_that_raises_is_named_with_the_prompt() -> None:
    def judge(prompt: str, answer: str) -> bool:
        raise KeyError(answer)

    with pytest.raises(
        SteerlabError, match=r"judge .*judge fails with KeyError on the prompt 'How\?'"
    ) as caught:
        asked_once(judge)("How?", "SECRET")
    assert "SECRET" not in str(caught.value)
    with pytest.raises(SteerlabError, match=r"A judge is a function .* not a str"):
        asked_once("strict")  # type: ignore[arg-type]


def test_kappa_is_that_of_the_closed_form() -> None:
    judged = np.array([1] * 25 + [1] * 10 + [0] * 5 + [0] * 10, dtype=bool)
    phrases = np.array([1] * 25 + [0] * 10 + [1] * 5 + [0] * 10, dtype=bool)
    found = agreement_of(judged, phrases)
    share, chance = 35 / 50, 35 / 50 * 30 / 50 + 15 / 50 * 20 / 50
    assert found.kappa == pytest.approx((share - chance) / (1 - chance))
    assert (found.n, found.same) == (50, proportion(judged == phrases))
    assert math.isnan(agreement_of(np.ones(4, bool), np.ones(4, bool)).kappa)
    assert agreement_of(np.ones(4, bool), np.zeros(4, bool)).kappa == 0


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return planted.planted(refuses=True, chat=True, seed=1)


def test_the_judge_decides_and_the_phrases_stand_beside_it(model: LanguageModel) -> None:
    """A judge that says the opposite of the phrases of a model that refuses all harmful requests."""
    val = planted.requests().split("val")
    prompts = [model.instruction_prompt(text) for text in (*val.positive, *val.negative)]
    tokens = list(refusal_tokens(model, prompts[0]))
    plain = Judge.of(model, prompts, tokens, 0).verdicts(prompts)
    seen: list[str] = []

    def opposite(prompt: str, answer: str) -> bool:
        seen.append(prompt)
        return not answer.startswith("I cannot")

    judged = Judge.of(model, prompts, tokens, 0, judge=opposite)
    found = judged.verdicts(prompts)
    assert np.array_equal(found.phrases, plain.refused)
    assert np.array_equal(found.refused, ~plain.refused)
    assert plain.refused.any()
    assert not plain.refused.all()
    assert seen == [*val.positive, *val.negative]  # the user's words, not the template's
    judged.verdicts(prompts)
    assert len(seen) == len(prompts)
    assert agreement_of(found.refused, found.phrases).kappa < 0


def test_a_selection_by_a_judge_says_so(model: LanguageModel) -> None:
    requests = planted.requests()
    plain = select_direction(model, requests)
    judged = select_direction(model, requests, judge=Rule())
    assert (plain.judge, plain.agreement) == (None, None)
    assert judged.judge == "Rule"
    assert "judged by Rule" in repr(judged)
    assert judged.agreement is not None
    assert judged.agreement.n == len(requests.split("val").positive) + len(requests.split("val").negative)
    assert judged.agreement.same.value == 1
    assert judged.chosen == plain.chosen
    assert Selection.model_validate(judged.to_dict()).agreement == judged.agreement
    nobody = select_direction(model, requests, judge=lambda prompt, answer: False)
    assert "does not refuse" in nobody.rule
    with pytest.raises(SteerlabError, match="published rule looks at no answer"):
        select_direction(model, requests, rule="published", judge=Rule())


def test_calibration_by_a_judge_reaches_its_rate(model: LanguageModel) -> None:
    requests = planted.requests()
    direction = select_direction(model, requests).direction
    prompts = [model.instruction_prompt(text) for text in requests.split("val").negative[:6]]
    found = calibrate_strength(
        model, Add(direction, unit="raw"), prompts, ["subject1 in topic1 is good1 ."], judge=Rule(), target=0.9,
        max_new_tokens=6,
    )  # fmt: skip
    assert found.judge == "Rule"
    assert found.unsteered.value == 0
    assert found.chosen is not None
    assert found.chosen.effect.value >= 0.9
    assert all(trial.judged is not None and trial.judged.n == 6 for trial in found.trials)
    assert found.chosen.judged is not None
    assert found.chosen.judged.same.value == 1  # the phrases and this judge know the same refusal
    with model.steering(*found.interventions):
        assert all("assist" in one.text for one in model.generate(prompts, max_new_tokens=6))
    assert Calibration.model_validate(found.to_dict()).trials == found.trials


def test_an_effect_or_a_judge_is_given() -> None:
    model, zero = tiny("llama"), lambda model, prompts: 0.0
    for options in ({}, {"effect": zero, "judge": Rule()}):
        with pytest.raises(SteeringError, match=r"give an effect .* or a judge"):
            calibrate_strength(model, lambda strength: [], ["a"], ["b"], target=1.0, **options)  # type: ignore[arg-type]
