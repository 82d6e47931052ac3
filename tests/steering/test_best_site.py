"""Where an intervention acts when nobody says it: the only site, the best one, or a sentence that asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steerlab as sl
from steerlab.directions import DifferenceInMeans
from steerlab.directions._header import SiteStatistics
from steerlab.directions.held_out import best_site, held_out_accuracy
from steerlab.models import LanguageModel
from steerlab.statistics import Estimate

HAPPY = [f"What a {word} day this is" for word in ("sunny", "lovely", "merry", "bright", "joyful", "golden")]
SAD = [f"What a {word} day this was" for word in ("gloomy", "awful", "bitter", "dark", "mournful", "grey")]
MIDDLE, LAST = sl.Site("resid_post", 1), sl.Site("resid_post", 2)


def given(model: LanguageModel, best: sl.Site | None) -> sl.Direction:
    vectors = {site: torch.randn(model.d_model) for site in model.sites("resid_post")}
    return sl.Direction(vectors, model.name, model.fingerprint, best=best)


@pytest.mark.parametrize(
    "make",
    [
        lambda v, **how: sl.Add(v, 2.0, **how),
        lambda v, **how: sl.Rotate(v, 0.2, **how),
        lambda v, **how: sl.Clamp(v, 1.0, **how),
        lambda v, **how: sl.Project(v, **how),
    ],
)
def test_an_intervention_acts_at_the_best_site_unless_others_are_named(
    tiny_llama: LanguageModel, make: object
) -> None:
    assert callable(make)
    known, unknown = given(tiny_llama, MIDDLE), given(tiny_llama, None)
    assert make(known).sites == (MIDDLE,)
    assert make(known, layers=2).sites == (LAST,)
    assert make(known, sites="resid_post.2").sites == (LAST,)
    assert make(known, layers="all").sites == make(unknown, layers="all").sites == known.sites
    assert make(unknown.at(2)).sites == (LAST,)
    with pytest.raises(
        sl.errors.SteeringError, match=r"3 sites and does not know .*layers=1, or layers='all'"
    ):
        make(unknown)


def test_an_addition_at_the_best_site_is_that_addition_alone(tiny_llama: LanguageModel) -> None:
    known = given(tiny_llama, MIDDLE)
    tokens = tiny_llama.tokenize(["Owls are"])
    with tiny_llama.steering(sl.Add(known, 3.0)):
        found = tiny_llama.logits(tokens)
    with tiny_llama.steering(sl.Add(known.at(MIDDLE), 3.0)):
        torch.testing.assert_close(found, tiny_llama.logits(tokens), rtol=0, atol=0)


def test_what_is_ablated_everywhere_is_the_vector_of_the_best_site(tiny_llama: LanguageModel) -> None:
    known = given(tiny_llama, MIDDLE)
    edit = sl.Ablate(known)
    assert edit.everywhere
    assert edit.direction.sites == (MIDDLE,)
    tokens = tiny_llama.tokenize(["Owls are"])
    with tiny_llama.steering(edit):
        found = tiny_llama.logits(tokens)
    with tiny_llama.steering(sl.Ablate(known.at(MIDDLE))):
        torch.testing.assert_close(found, tiny_llama.logits(tokens), rtol=0, atol=0)


def test_a_fitted_direction_knows_its_best_site_and_a_file_keeps_it(
    tiny_llama: LanguageModel, tmp_path: object
) -> None:
    states = sl.capture(tiny_llama, HAPPY + SAD, "resid_post")
    labels = [1] * len(HAPPY) + [0] * len(SAD)
    made = sl.fit_direction(states, labels)
    assert set(made.accuracy) == set(states.sites)
    for site in states.sites:
        alone = held_out_accuracy(DifferenceInMeans(), states[site].numpy(), np.array(labels))
        assert made.accuracy[site].value == alone.value
    assert made.best == best_site(made.accuracy, made.statistics)
    shown = made._repr_html_()
    assert "Held-out accuracy" in shown
    assert f"best at {made.best}" in shown
    made.save(f"{tmp_path}/d.safetensors")
    assert sl.Add(sl.Direction.load(f"{tmp_path}/d.safetensors")).sites == (made.best,)
    assert sl.fit_direction(states, labels, hold_out=False).best is None
    few = sl.fit_direction(sl.capture(tiny_llama, [*HAPPY[:4], *SAD], "resid_post"), labels[2:])
    assert (few.best, dict(few.accuracy)) == (None, {})


def test_rows_of_one_prompt_and_members_of_one_pair_are_held_out_together(tiny_llama: LanguageModel) -> None:
    labels = [1] * len(HAPPY) + [0] * len(SAD)
    tokens = sl.capture(tiny_llama, HAPPY + SAD, "resid_post.1", positions=sl.All())
    made = sl.fit_direction(tokens, labels)
    whole = held_out_accuracy(
        DifferenceInMeans(),
        tokens[MIDDLE].numpy(),
        np.array(labels)[tokens.example.numpy()],
        tokens.example.tolist(),
    )
    assert made.accuracy[MIDDLE].value == whole.value
    assert made.accuracy[MIDDLE].n == len(labels)
    pairs = [*range(len(HAPPY)), *range(len(SAD))]
    states = sl.capture(tiny_llama, HAPPY + SAD, "resid_post.1")
    paired = sl.fit_direction(states, labels, pairs=pairs)
    assert paired.accuracy[MIDDLE].n == len(HAPPY)


def test_the_best_site_is_the_widest_among_the_nearly_best() -> None:
    def near(value: float) -> Estimate:
        return Estimate(value=value, low=0.0, high=1.0, n=40)

    def apart(gap: float) -> SiteStatistics:
        return SiteStatistics(
            class_means={"1": (gap,), "0": (0.0,)}, positive="1", negative="0", sigma=(1.0,)
        )

    sites = [sl.Site("resid_post", layer) for layer in range(4)]
    accuracy = dict(zip(sites, map(near, (0.70, 0.95, 0.92, 0.91)), strict=True))
    statistics = dict(zip(sites, map(apart, (99.0, 2.0, 5.0, 3.0)), strict=True))
    assert best_site(accuracy, statistics) == sites[2]
    assert best_site({}, {}) is None
    assert best_site({sites[0]: near(float("nan"))}, statistics) is None
