"""Ablation toward a mean, a class or a value: the closed form, every way of running, files, weights, sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import close

import steerlab as sl
from steerlab.errors import DirectionError, SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import edit_from_dict

HOT = ["The cat sat on the mat", "Rome is in Italy", "one two three", "bread and butter"]
COLD = ["A dog", "Where is the river?", "green trees grow", "it rains"]
PROMPTS = ["The cat", "What is a river, really?", "one"]


def direction(model: LanguageModel, sites: str | list[str] = "resid_post") -> sl.Direction:
    states = sl.capture(model, [*HOT, *COLD], sites, positions=sl.All())
    return sl.fit_direction(states, ["hot"] * 4 + ["cold"] * 4, positive="hot", hold_out=False)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


@pytest.mark.parametrize("toward", ["mean", "cold", "hot", "positive", "negative"])
def test_the_component_becomes_that_of_the_mean(model: LanguageModel, toward: str) -> None:
    found = direction(model)
    label = {"positive": "hot", "negative": "cold"}.get(toward, toward)
    states = sl.capture(model, [*HOT, *COLD], "resid_post", positions=sl.All())
    rows = {"hot": states.example < 4, "cold": states.example >= 4, "mean": states.example >= 0}[label]
    for site in found.sites:
        edit = sl.Ablate(found, toward=toward, sites=site)
        unit = torch.nn.functional.normalize(found[site].double(), dim=0)
        expected = states[site][rows].double().mean(dim=0) @ unit
        x = torch.randn(3, 2, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        after = edit.apply(x, site)
        close(after @ unit, expected.expand(3, 2), scale=float(x.abs().max()))
        close(after, x - ((x @ unit) - expected)[..., None] * unit)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), value=st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_ablating_twice_is_ablating_once(seed: int, k: int, value: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    site, other = Site("resid_post", 1), Site("resid_post", 0)
    rows = torch.randn(k, 9, generator=generator)
    mean = torch.randn(9, generator=generator)
    made = sl.Direction({site: rows}, "m", "f", means={site: {"": mean}, other: {"": 2 * mean}})
    x = torch.randn(5, 9, dtype=torch.float64, generator=generator)
    for toward in ("mean", {str(site): mean}, {site: [value] * k}):
        edit = sl.Ablate(made, toward=toward, sites=site)
        once = edit.apply(x, site)
        close(edit.apply(once, site), once)
        if toward == "mean":
            close(once, sl.Ablate(made, toward={site: mean}, sites=site).apply(x, site))
            about = sl.Ablate(made, sites=site).apply(x - mean, site) + mean
            close(once, about)
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    close(
        once @ unit.T, torch.full((5, k), value, dtype=torch.float64), scale=float(x.abs().max()) + abs(value)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_running_gives_the_same(family: str) -> None:
    """Batches, padding, caches, streams and a table, against hooks on the plain module."""
    model = tiny(family)
    found = direction(model).at("resid_post.1")
    edits = [
        sl.Ablate(found, toward="cold", layers=[0, 1], positions=sl.All() - sl.Index(0)),
        sl.Ablate(found, toward="mean"),
        sl.Ablate(found, toward=0.3),
    ]
    for edit in edits:
        with model.steering(edit):
            together = model.logits(PROMPTS)
            alone = torch.cat([model.logits([prompt]) for prompt in PROMPTS])
            written = model.generate(PROMPTS, max_new_tokens=5)
            streamed = [
                "".join(part for part in model.stream(prompt, max_new_tokens=5)) for prompt in PROMPTS
            ]
        close(together, alone)
        assert [answer.text for answer in written] == streamed
        with model.steering(sl.PerRow([edit], [], [edit])):
            rows = model.logits(PROMPTS)
        close(rows[[0, 2]], together[[0, 2]])
        close(rows[1], model.logits(PROMPTS)[1])


def test_the_runtime_is_a_hook_on_the_block(model: LanguageModel) -> None:
    found = direction(model).at("resid_post.1")
    unit = torch.nn.functional.normalize(found["resid_post.1"], dim=0)

    def hook(layer: int):  # type: ignore[no-untyped-def]
        kept = found.mean(f"resid_post.{layer}", "cold") @ unit

        def changed(module, args, output):  # type: ignore[no-untyped-def]
            state = output[0] if isinstance(output, tuple) else output
            new = state - ((state @ unit) - kept)[..., None] * unit
            new[:, 0] = state[:, 0]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return changed

    handles = [model.anatomy.blocks[layer].register_forward_hook(hook(layer)) for layer in (0, 1)]
    try:
        with torch.no_grad():
            expected = model.model(model.tokenize([PROMPTS[1]]).input_ids).logits[:, -1, : model.vocab_size]
    finally:
        for handle in handles:
            handle.remove()
    with model.steering(sl.Ablate(found, toward="cold", layers=(0, 1), positions=sl.All() - sl.Index(0))):
        close(model.logits([PROMPTS[1]]), expected)


def test_the_file_holds_the_means(model: LanguageModel, tmp_path: Path) -> None:
    found = direction(model)
    found.save(tmp_path / "d.safetensors")
    loaded = sl.Direction.load(tmp_path / "d.safetensors")
    for site in found.sites:
        for of in ("mean", "hot", "cold", "positive", "negative"):
            assert torch.equal(loaded.mean(site, of), found.mean(site, of))
    assert torch.equal(found.mean("resid_pre.2", "hot"), found.mean("resid_post.1", "hot"))
    assert torch.equal(found.at("resid_post.1").mean("resid_post.0"), found.mean("resid_post.0"))
    assert torch.equal((2 * found).mean("resid_post.0"), found.mean("resid_post.0"))
    # the negated direction points the other way, so its positive class is the other one
    assert torch.equal((-found).mean("resid_post.0", "positive"), found.mean("resid_post.0", "cold"))
    streamed = sl.Moments()
    sl.capture(
        model,
        [*HOT, *COLD],
        "resid_post",
        positions=sl.All(),
        into=streamed,
        labels=["hot"] * 4 + ["cold"] * 4,
    )
    moments = sl.fit_direction(streamed, positive="hot")
    for of in ("mean", "hot"):
        close(moments.mean("resid_post.1", of), found.mean("resid_post.1", of))


def test_it_is_data_and_back(model: LanguageModel) -> None:
    found = direction(model).at("resid_post.1")
    x = torch.randn(1, 2, model.d_model, generator=torch.Generator().manual_seed(0))
    for edit in (
        sl.Ablate(found, toward="cold", layers=[0, 1]),
        sl.Ablate(found, toward={"resid_post.1": 2.0}),
        sl.Ablate(found, toward={"resid_post.0": found.mean("resid_post.0")}),
        sl.Ablate(found, toward=1.5),
        sl.Ablate(found),
    ):
        edit.check(model)
        again = edit_from_dict(edit.to_dict(), [found])
        again.check(model)
        assert again.sites == edit.sites
        site = edit.sites[0]
        assert torch.equal(again.apply(x, site), edit.apply(x, site))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mixtral"])
def test_one_number_everywhere_is_weights(family: str) -> None:
    model = tiny(family, bos=family != "gpt2")
    found = direction(model).at("resid_post.1")
    edits = [sl.Ablate(found, toward=0.7)]
    baked = sl.bake(model, *edits)
    with model.steering(*edits):
        steered = model.logits(PROMPTS)
    close(baked.logits(PROMPTS), steered)
    unit = torch.nn.functional.normalize(found["resid_post.1"], dim=0)
    states = sl.capture(baked, PROMPTS, "resid_post", positions=sl.All())
    for site in states.sites:
        close(
            states[site] @ unit, torch.full((len(states[site]),), 0.7), scale=float(states[site].abs().max())
        )
    assert (steered - model.logits(PROMPTS)).abs().max() > 1e-3


def test_one_site_toward_a_number_is_weights(model: LanguageModel) -> None:
    for name in ("attn_out.1", "mlp_out.0", "z.1", "mlp_post.1"):
        site = Site.parse(name)
        vector = torch.randn(model.width(site), generator=torch.Generator().manual_seed(0))
        edit = sl.Ablate(sl.Direction({site: vector}, model.name, model.fingerprint), toward=0.4, sites=site)
        with model.steering(edit):
            steered = model.logits(PROMPTS)
        close(sl.bake(model, edit).logits(PROMPTS), steered)


def test_weights_cannot_go_toward_a_mean(model: LanguageModel) -> None:
    found = direction(model).at("resid_post.1")
    for edit in (
        sl.Ablate(found, toward="mean"),
        sl.Ablate(found, toward="cold", layers=[1]),
        sl.Ablate(found, toward={"resid_post.1": 1.0}),
    ):
        with pytest.raises(SteeringError, match="another component at each block"):
            sl.bake(model, edit)


def test_what_is_no_value_gets_a_sentence(model: LanguageModel) -> None:
    found = direction(model).at("resid_post.1")
    with pytest.raises(
        DirectionError, match=r"knows no mean of 'warm' at resid_post\.1; it knows 'mean', 'cold', 'hot'"
    ):
        sl.Ablate(found, toward="warm", layers=[1])
    with pytest.raises(
        DirectionError, match=r"no mean states at resid_pre\.0 \(known: resid_post\.0, resid_post\.1"
    ):
        sl.Ablate(found, toward="mean", sites="resid_pre.0")
    bare = replace(found, means={})
    with pytest.raises(DirectionError, match="fit it from labelled states"):
        sl.Ablate(bare, toward="mean", layers=[1])
    for toward, sentence in (
        (True, "not toward True"),
        (None, "not toward None"),
        (float("nan"), "is nan"),
        ({"resid_post.1": [1.0, 2.0]}, "2 numbers came for the 1 vectors"),
        ({"resid_post.1": "much"}, "give numbers"),
    ):
        with pytest.raises(SteeringError, match=sentence):
            sl.Ablate(found, toward=toward, sites="resid_post.1")
    with pytest.raises(SteeringError, match=r"no value to ablate toward at resid_post\.0"):
        sl.Ablate(found, toward={"resid_post.1": 1.0}, sites=["resid_post.0"])
    named = replace(
        found,
        means={Site("resid_post", 1): {"": torch.ones(model.d_model), "mean": torch.ones(model.d_model)}},
    )
    with pytest.raises(DirectionError, match="A class is called 'mean'"):
        sl.Ablate(named, toward="mean", layers=[1])


def test_an_ablation_says_what_it_does(model: LanguageModel) -> None:
    found = direction(model).at("resid_post.1")
    assert "removes DifferenceInMeans toward the cold mean at resid_post.0 to 1" in repr(
        sl.Ablate(found, toward="cold", layers=(0, 1))
    )
    assert "toward the mean at every resid_post" in repr(sl.Ablate(found, toward="mean"))
    beside = sl.Ablate(found, toward="cold", layers=[1], positions=sl.All() - sl.Index(0))
    assert repr(beside).endswith("resid_post.1, every token but the first")
    assert "toward 0.5 everywhere" in repr(sl.Ablate(found, toward=0.5))
