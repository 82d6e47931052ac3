"""Where every token shares a large mean, removing a direction breaks the model; removing it about a mean does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from studies import planted_models as planted

import steerlab as sl
from steerlab.models import LanguageModel
from steerlab.models.laws import divergence
from steerlab.selection import Selection, select_direction

LAYER = "resid_post.1"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return planted.with_large_mean(planted.planted(refuses=True, chat=True))


@pytest.fixture(scope="module")
def direction(model: LanguageModel) -> sl.Direction:
    train = planted.requests().split("train")
    states = sl.capture(
        model, asked(model, [*train.positive, *train.negative]), "resid_post", positions=sl.Last()
    )
    labels = ["harmful"] * len(train.positive) + ["harmless"] * len(train.negative)
    return sl.fit_direction(states, labels, positive="harmful", hold_out=False).at(LAYER)


def asked(model: LanguageModel, texts: list[str] | tuple[str, ...]) -> list[sl.Prompt]:
    return [model.instruction_prompt(text) for text in texts]


def random_like(direction: sl.Direction, seed: int) -> sl.Direction:
    vector = torch.randn(direction[LAYER].shape, generator=torch.Generator().manual_seed(seed))
    return sl.Direction(
        {LAYER: vector}, direction.model_name, direction.fingerprint,
        statistics=direction.statistics, means=direction.means,
    )  # fmt: skip


def effect(model: LanguageModel, edit: sl.Ablate) -> tuple[float, float, float]:
    """Share of harmful requests refused, of answers that are none of the model's, KL on harmless requests."""
    test = planted.requests().split("test")
    harmless = asked(model, test.negative)
    plain = model.logits(harmless)
    with model.steering(edit):
        answers = [answer.text for answer in model.generate(asked(model, test.positive), max_new_tokens=3)]
        after = model.logits(harmless)
    refused = np.mean([answer.startswith("I cannot") for answer in answers])
    broken = np.mean([not answer.startswith(("I cannot assist", "Sure here you")) for answer in answers])
    return float(refused), float(broken), float(divergence(plain, after).mean())


def test_the_mean_is_nearly_all_of_every_token(model: LanguageModel) -> None:
    states = sl.capture(
        model, asked(model, planted.requests().split("val").positive), LAYER, positions=sl.All()
    )[LAYER]
    assert states.mean(dim=0).norm() > 0.99 * states.norm(dim=1).mean()
    coordinates = states.abs().mean(dim=0)
    assert coordinates[0] > 1000 * coordinates[1:].median()


def test_removal_to_zero_breaks_what_removal_to_a_class_mean_does_not(
    model: LanguageModel, direction: sl.Direction
) -> None:
    test = planted.requests().split("test")
    answers = [answer.text for answer in model.generate(asked(model, test.positive), max_new_tokens=3)]
    assert set(answers) == {"I cannot assist"}
    for broken_by in (direction, random_like(direction, 0), random_like(direction, 1)):
        _, broken, divergence = effect(model, sl.Ablate(broken_by))
        assert broken == 1 or divergence > 1
    refused, broken, divergence = effect(model, sl.Ablate(direction, toward="harmless", layers=[1]))
    assert (refused, broken) == (0, 0)
    assert divergence < 0.1
    for seed in range(5):
        control = sl.Ablate(random_like(direction, seed), toward="harmless", layers=[1])
        refused, broken, divergence = effect(model, control)
        assert (refused, broken) == (1, 0)
        assert divergence < 0.1


def test_selection_goes_about_the_mean_by_itself(model: LanguageModel) -> None:
    requests = planted.requests()
    found = select_direction(model, requests.split("train"), requests.split("val"))
    assert found.chosen.toward == "negative"
    assert "harmless mean" in found.ablated()
    refused, broken, divergence = effect(model, found.ablation())
    assert (refused, broken) == (0, 0)
    assert divergence < 0.1
    refused, broken, _ = effect(
        model, found.ablation(random_like(found.direction.at(found.direction.sites[0]), 3))
    )
    assert (refused, broken) == (1, 0)
    again = Selection.model_validate(found.to_dict())
    assert again.to_dict() == found.to_dict()
    assert again.ablated() == found.ablated()
    published = select_direction(planted.planted(refuses=True, chat=True), requests, rule="published")
    assert published.chosen.as_published
    assert not published.tried
