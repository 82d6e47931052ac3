"""Erasure while a model runs: nothing linear of the label is left at the site; files, shares, sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from tolerances import close

import steerlab as sl
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import edit_from_dict

SITE = Site("resid_post", 1)
COLD = [
    f"{a} {b}" for a in ("The cat", "A dog", "Rome", "one two") for b in ("sat", "is in Italy", "ran away")
]
HOT = [f"{text}, {end}" for text in COLD for end in ("really?", "the river", "green trees")]
LABELS = [0] * len(COLD) + [1] * len(HOT)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


def covariance(states: torch.Tensor, labels: list[int]) -> float:
    z = torch.tensor(labels, dtype=torch.float64)
    x = states.double()
    return float(((x - x.mean(0)).T @ (z - z.mean())).abs().max())


def test_the_steered_states_have_no_covariance_with_the_label(model: LanguageModel, tmp_path: Path) -> None:
    """To float32 rounding: 1e-5 of what was there. The file read back does the same to the bit."""
    prompts = [*COLD, *HOT]
    states = sl.capture(model, prompts, ["resid_post.0", SITE])
    direction = sl.fit_direction(states, LABELS, "leace")
    direction.save(tmp_path / "label.safetensors")
    stored = sl.Direction.load(tmp_path / "label.safetensors")
    edit = sl.Erase(direction, sites=[SITE])
    with model.steering(edit):
        erased = sl.capture(model, prompts, SITE)[SITE]
        logits = model.logits(prompts[:3])
    assert covariance(erased, LABELS) < 1e-5 * covariance(states[SITE], LABELS)
    with model.steering(edit_from_dict(edit.to_dict(), [stored])):
        assert torch.equal(model.logits(prompts[:3]), logits)
    at = direction.vectors[SITE][0].double()
    gap = direction.mean(SITE, "1").double() - direction.mean(SITE, "0").double()
    x = states[SITE].double()
    along = (x - direction.mean(SITE).double()) @ at
    close(erased.double(), x - torch.outer(along, gap / (at @ gap)), rtol=1e-4)


def test_many_classes_and_shares_by_layer(model: LanguageModel) -> None:
    prompts = [*COLD, *HOT]
    labels = [number % 3 for number in range(len(prompts))]
    states = sl.capture(model, prompts, "resid_post")
    direction = sl.directions.erasing(states, labels)
    assert len(direction.vectors[SITE]) == 2
    with model.steering(sl.Erase(direction, sites=[SITE])):
        erased = sl.capture(model, prompts, SITE)[SITE]
    for label in range(3):
        hot = [int(one == label) for one in labels]
        assert covariance(erased, hot) < 1e-4 * covariance(states[SITE], hot)
    edit = sl.Erase(direction, {0: 0.25, 1: 1.0})
    assert [str(site) for site in edit.sites] == ["resid_post.0", "resid_post.1"]
    x = torch.randn(4, model.d_model, dtype=torch.float64)
    whole = sl.Erase(direction, sites=[edit.sites[0]]).apply(x, edit.sites[0])
    close(edit.apply(x, edit.sites[0]), x + 0.25 * (whole - x))
    back = edit_from_dict(edit.to_dict(), [direction])
    close(back.apply(x, edit.sites[0]), x + 0.25 * (whole - x))
    assert (
        repr(edit)
        == "Erase: erases 0.25 to 1 of what Leace reads of its classes at resid_post.0 to 1, every token"
    )


def test_along_a_difference_in_means_it_is_the_projection_about_the_mean(model: LanguageModel) -> None:
    states = sl.capture(model, [*COLD, *HOT], SITE)
    direction = sl.fit_direction(states, LABELS)
    x = states[SITE].double()
    close(
        sl.Erase(direction).apply(x, SITE),
        sl.Ablate(direction, toward="mean", sites=[SITE]).apply(x, SITE),
        rtol=1e-5,
    )


def test_weights_cannot_do_it(model: LanguageModel) -> None:
    direction = sl.fit_direction(sl.capture(model, [*COLD, *HOT], SITE), LABELS, "leace")
    with pytest.raises(SteeringError, match="Erase is not among the changes that become weights"):
        sl.bake(model, sl.Erase(direction))


def test_it_moves_real_states_less_than_the_projection_does(model: LanguageModel) -> None:
    states = sl.capture(model, [*COLD, *HOT], SITE)
    x = states[SITE].double()
    changes = []
    for estimator in ("leace", "difference-in-means"):
        edit = sl.Erase(sl.fit_direction(states, LABELS, estimator))
        changes.append(float((edit.apply(x, SITE) - x).square().sum()))
    assert changes[0] <= changes[1] * (1 + 1e-6)
    assert np.isfinite(changes).all()


def test_its_control_is_the_same_erasure_turned(model: LanguageModel) -> None:
    states = sl.capture(model, [*COLD, *HOT], SITE)
    edit = sl.Erase(sl.fit_direction(states, LABELS, "leace"))
    control = edit.random_like(3)
    own, drawn = (one.operator(SITE) for one in (edit, control))
    assert own is not None
    assert drawn is not None
    size = torch.linalg.matrix_norm(own.reads @ own.writes)
    close(
        torch.linalg.matrix_norm(drawn.reads @ drawn.writes), size, rtol=1e-4
    )  # a random vector alone: many times
    close(drawn.writes @ drawn.reads, own.writes @ own.reads, rtol=1e-4)
    mean = edit.direction.mean(SITE).double()
    close(control.apply(mean, SITE), mean, rtol=1e-5)  # about the same mean
    assert control.direction.cosine(edit.direction)[SITE] < 0.9
    assert torch.equal(control.apply(mean + 1, SITE), edit.random_like(3).apply(mean + 1, SITE))
