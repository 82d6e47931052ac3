"""The strength that reaches a target: against the exact answer of a model whose logits are linear in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import (
    Add,
    Calibration,
    Clamp,
    Rotate,
    calibrate_strength,
    side_effects,
    token_log_odds,
)

PROMPTS = ["the cat sat on", "a dog", "Rome is"]
TEXTS = ["the cat sat on the mat", "one two three four", "the dog ran to the cat"]
LAST = Site("resid_post", 2)


def linear_model() -> LanguageModel:
    """A tiny GPT-2 whose final norm is the identity, so that logits are linear in the last residual."""
    model = tiny("gpt2", bos=False)
    model.anatomy.ln_final.forward = lambda x: x
    return model


def towards(model: LanguageModel, token: int, away: int) -> Direction:
    vector = model.unembedding[token] - model.unembedding[away]
    return Direction({LAST: vector}, model.name, model.fingerprint)


def test_the_chosen_strength_is_the_exact_one() -> None:
    model = linear_model()
    v = towards(model, 5, 9)
    gap = float(v[LAST] @ v[LAST])
    plain = model.logits(PROMPTS).double()
    before = float((plain[:, 5] - plain[:, 9]).mean())
    target = before + 1.7 * gap
    fit = calibrate_strength(
        model, Add(v), PROMPTS, TEXTS, effect=token_log_odds([5], [9]), target=target, refinements=10
    )
    assert fit.unsteered.value == pytest.approx(before, abs=1e-5)
    assert 1.7 <= fit.strength <= 1.7 + 2 / 2**10 + 1e-5
    with model.steering(*fit.interventions):
        after = token_log_odds([5], [9])(model, PROMPTS)
    assert np.mean(after) == pytest.approx(fit.chosen.effect.value, abs=1e-6)
    for trial in fit.trials:
        assert trial.effect.value == pytest.approx(before + trial.strength * gap, abs=1e-4)
        (priced,) = side_effects(model, TEXTS, {"s": [Add(v, trial.strength)]}).values()
        assert trial.kl.value == pytest.approx(priced.kl.value, abs=1e-9)
    assert [trial.strength for trial in fit.trials] == sorted(trial.strength for trial in fit.trials)


def test_prompts_of_one_group_are_drawn_together() -> None:
    """Each prompt twice: without groups the interval would be too narrow."""
    model = linear_model()
    given = {"effect": token_log_odds([5], [9]), "target": 1.0, "refinements": 0}
    twice = [prompt for prompt in PROMPTS for _ in range(2)]
    pairs = [number for number in range(len(PROMPTS)) for _ in range(2)]
    once = calibrate_strength(model, Add(towards(model, 5, 9)), PROMPTS, TEXTS, **given)  # type: ignore[arg-type]
    grouped = calibrate_strength(model, Add(towards(model, 5, 9)), twice, TEXTS, groups=pairs, **given)  # type: ignore[arg-type]
    assert grouped.unsteered.n == once.unsteered.n == len(PROMPTS)
    assert grouped.unsteered.low == pytest.approx(once.unsteered.low)
    with pytest.raises(SteeringError, match="came with 1 groups"):
        calibrate_strength(model, Add(towards(model, 5, 9)), PROMPTS, TEXTS, groups=[1], **given)  # type: ignore[arg-type]


def test_a_raw_tensor_is_calibrated_as_its_direction_is() -> None:
    model = linear_model()
    v = towards(model, 5, 9)
    given = {"effect": token_log_odds([5], [9]), "target": 1.0, "refinements": 2}
    raw = calibrate_strength(model, Add(v[LAST], sites=LAST), PROMPTS, TEXTS, **given)  # type: ignore[arg-type]
    assert raw.strength == calibrate_strength(model, Add(v, unit="raw"), PROMPTS, TEXTS, **given).strength  # type: ignore[arg-type]


def test_a_target_below_is_reached_with_negative_strengths() -> None:
    model = linear_model()
    v = towards(model, 5, 9)
    before = float(np.mean(token_log_odds([5], [9])(model, PROMPTS)))
    fit = calibrate_strength(
        model,
        lambda s: [Add(v, s)],
        PROMPTS,
        TEXTS,
        effect=token_log_odds([5], [9]),
        target=before - float(v[LAST] @ v[LAST]),
        strengths=[-0.5, -2.0],
        refinements=12,
    )
    assert fit.strength == pytest.approx(-1.0, abs=1e-3)


def test_of_several_candidates_the_cheapest_is_chosen() -> None:
    model = linear_model()
    v = towards(model, 5, 9)
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))
    clumsy = Direction({LAST: v[LAST] + 3 * noise}, model.name, model.fingerprint)
    fit = calibrate_strength(
        model,
        {"clumsy": Add(clumsy), "straight": Add(v), "turning": Rotate(v, 0.2)},
        PROMPTS,
        TEXTS,
        effect=token_log_odds([5], [9]),
        target=float(np.mean(token_log_odds([5], [9])(model, PROMPTS))) + float(v[LAST] @ v[LAST]),
        strengths=[1.0, 2.0],
    )
    reached = [trial for trial in fit.trials if trial.effect.value >= fit.target]
    assert {trial.candidate for trial in reached} >= {"clumsy", "straight"}
    assert fit.chosen.kl.value == min(trial.kl.value for trial in reached)
    figure = fit.plot()
    assert {trace.name for trace in figure.data if trace.name} >= {"clumsy", "straight", "turning"}
    again = Calibration.model_validate(fit.to_dict())
    assert again.to_dict() == fit.to_dict()
    with pytest.raises(SteeringError, match="holds no interventions"):
        _ = again.interventions


def test_a_target_out_of_reach_is_said_and_not_made_up() -> None:
    model = linear_model()
    fit = calibrate_strength(
        model,
        Add(towards(model, 5, 9)),
        PROMPTS,
        TEXTS,
        effect=lambda model, prompts: float(model.logits(prompts)[:, 5].mean()),
        target=1e6,
        strengths=[1.0],
    )
    assert fit.chosen is None
    assert not fit.unsteered.has_interval
    with pytest.raises(
        SteeringError, match=r"No strength reached the effect 1e\+06: the nearest was .* at strength 1"
    ):
        _ = fit.strength
    with pytest.raises(SteeringError, match="No strength reached"):
        _ = fit.interventions


def test_strengths_by_layer_are_scaled_together(tiny_llama: LanguageModel) -> None:
    v = Direction({LAST: torch.ones(32)}, tiny_llama.name, tiny_llama.fingerprint)
    fit = calibrate_strength(
        tiny_llama,
        Add(v, {0: 0.1, 1: 0.2}),
        PROMPTS,
        TEXTS,
        effect=lambda model, prompts: model.logits(prompts).norm(dim=1),
        target=0.0,
        strengths=[1.0, 3.0],
    )
    assert [trial.strength for trial in fit.trials] == [1.0, 3.0]


def test_what_cannot_be_calibrated_is_refused(tiny_llama: LanguageModel) -> None:
    v = Direction({LAST: torch.ones(32)}, tiny_llama.name, tiny_llama.fingerprint)
    good = {"effect": token_log_odds([5]), "target": 1.0}
    for candidates, options, sentence in [
        (Clamp(v), good, "Clamp, which has no strength"),
        ({}, good, "needs a candidate"),
        (Add(v), {**good, "strengths": [0.0]}, "other than zero"),
        (Add(v), {**good, "effect": lambda model, prompts: float("nan")}, "finite number a prompt"),
        (Add(v), {**good, "effect": lambda model, prompts: np.ones((2, 2))}, "finite number a prompt"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            calibrate_strength(tiny_llama, candidates, PROMPTS, TEXTS, **options)


def test_log_odds_of_tokens_are_those_of_the_probabilities(tiny_llama: LanguageModel) -> None:
    laws = tiny_llama.logits(PROMPTS).double().softmax(dim=1).numpy()
    found = token_log_odds([3, 4], [7])(tiny_llama, PROMPTS)
    np.testing.assert_allclose(found, np.log(laws[:, [3, 4]].sum(1) / laws[:, 7]), atol=1e-9)
    rest = token_log_odds(3)(tiny_llama, PROMPTS)
    np.testing.assert_allclose(rest, np.log(laws[:, 3] / (1 - laws[:, 3])), atol=1e-9)
