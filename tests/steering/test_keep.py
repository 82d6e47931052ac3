"""Ablation of one direction while others are kept, and strengths by layer: closed forms, weights, files, sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import close
from typer.testing import CliRunner

import steerlab as sl
from steerlab.cli import app
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Site
from steerlab.steering import edit_from_dict

SITE = Site("resid_post", 1)
PROMPTS = ["The cat", "What is a river, really?", "one"]
CLI = CliRunner()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


def made(model: LanguageModel, k: int = 1, seed: int = 0, sites: tuple[Site, ...] = (SITE,)) -> sl.Direction:
    generator = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(k, model.width(site), generator=generator) for site in sites}
    return sl.Direction(vectors, model.name, model.fingerprint)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 3), kept=st.integers(1, 3), shared=st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_removed_is_the_part_outside_the_kept_span(
    seed: int, k: int, kept: int, shared: bool
) -> None:
    """numpy in float64: x − Pₓ x with the projection on span(D, E) less that on span(E); e·x is the same to 1e-10."""
    generator = np.random.default_rng(seed)
    d, e = generator.normal(size=(k, 12)), generator.normal(size=(kept, 12))
    if shared and k > 1:  # one vector of d lies in what is kept
        d[0] = e.T @ generator.normal(size=kept)
    d, e = d.astype(np.float32), e.astype(np.float32)
    x = generator.normal(size=(5, 12))

    def projection(rows: np.ndarray) -> np.ndarray:
        left, sizes, _ = np.linalg.svd(rows.T.astype(np.float64), full_matrices=False)
        left = left[:, sizes > 1e-5 * sizes[0]]
        return np.asarray(left @ left.T)

    both = [torch.from_numpy(rows) for rows in (d, e)]
    directions = [sl.Direction({SITE: rows}, "m", "f") for rows in both]
    edit = sl.Ablate(directions[0], keep=[directions[1]], sites=[SITE])
    after = edit.apply(torch.from_numpy(x), SITE).numpy()
    if not (shared and k > 1):  # there the spans' dimension hangs on rounding to float32
        close(after, x - x @ (projection(np.concatenate([d, e])) - projection(e)), rtol=1e-6)
    assert np.abs((after - x) @ e.T).max() <= 1e-10 * np.abs(x).max() * np.abs(e).max()
    rest = d - d @ projection(e)
    assert np.abs(after @ rest.T).max() <= 1e-4 * np.abs(x).max() * np.abs(d).max()
    assert np.abs(after - x).max() > 1e-6


def test_toward_a_mean_and_a_number_act_along_what_is_left(model: LanguageModel) -> None:
    d, e = made(model), made(model, seed=1)
    unit = torch.nn.functional.normalize(e[SITE].double(), dim=0)
    left = torch.nn.functional.normalize(d[SITE].double() - (d[SITE].double() @ unit) * unit, dim=0)
    x = torch.randn(2, 3, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    state = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    for toward, value in ((1.5, 1.5), ({SITE: state}, float(state.double() @ left)), (0, 0.0)):
        after = sl.Ablate(d, toward=toward, keep=e, sites=[SITE]).apply(
            x, SITE
        )  # one direction needs no list
        close(after @ left, torch.full((2, 3), value, dtype=torch.float64), scale=float(x.abs().max()))
        close(after @ unit, x @ unit)
    learnt = sl.Direction(d.vectors, model.name, model.fingerprint, means={SITE: {"": state}})
    mean = sl.Ablate(learnt, toward="mean", keep=[e], sites=[SITE]).apply(x, SITE)
    close(mean @ left, (state.double() @ left).expand(2, 3), scale=float(x.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("k", [1, 2])
def test_weights_do_what_hooks_do(family: str, k: int) -> None:
    """Float32: the same logits to 2e-4 of the largest; and in the stream nothing is left of what is removed."""
    model = tiny(family)
    d, e = made(model, k), made(model, 2, seed=1)
    for edit in (sl.Ablate(d, keep=[e]), sl.Ablate(d, keep=[e], sites=["attn_out.1"], strength=0.5)):
        baked = sl.bake(model, edit).logits(PROMPTS)
        plain = model.logits(PROMPTS)
        with model.steering(edit):
            hooked = model.logits(PROMPTS)
        close(baked, hooked, rtol=2e-4)
        assert float((hooked - plain).abs().max()) > 1e-3
    with model.steering(sl.Ablate(d, keep=[e])):
        states = sl.capture(model, PROMPTS, "resid_post", positions=sl.All())
    basis = sl.Ablate(d, keep=[e], sites=[SITE]).basis(SITE).float()
    for site in states.sites:
        assert float((states[site] @ basis).norm() / states[site].norm()) < 1e-5
    with model.steering(sl.Ablate(d)):
        assert float((sl.capture(model, PROMPTS, SITE)[SITE] @ e.vectors[SITE].T).norm()) > 0


def test_it_is_stored_and_read_back_with_all_its_directions(model: LanguageModel, tmp_path: Path) -> None:
    several = (SITE, Site("resid_post", 0))
    d, e, f = made(model, 2), made(model, seed=1, sites=several), made(model, seed=2)
    for direction, name in ((d, "d"), (e, "e"), (f, "f")):
        direction.save(tmp_path / f"{name}.safetensors")
    stored = [sl.Direction.load(tmp_path / f"{name}.safetensors") for name in "def"]
    for options in ({}, {"sites": [SITE], "strength": 0.5}, {"layers": [0, 1], "strength": {0: 0.2, 1: 1.0}}):
        edit = sl.Ablate(d, keep=[e, f], **options)
        back = edit_from_dict(edit.to_dict(), stored)
        assert isinstance(back, sl.Ablate)
        assert len(back.keep) == 2
        assert back.to_dict() == edit.to_dict()
        with model.steering(edit):
            right = model.logits(PROMPTS)
        with model.steering(back):
            assert torch.equal(model.logits(PROMPTS), right)
    assert sl.Ablate(d, sites=[SITE]).to_dict().keys() == {
        "edit",
        "direction",
        "toward",
        "sites",
        "positions",
    }
    assert "keeping the component along given" in repr(sl.Ablate(d, keep=[e]))
    with pytest.raises(SteerlabError, match="not among those given"):
        edit_from_dict(sl.Ablate(d, keep=[f]).to_dict(), [d])


def _refused(model: LanguageModel) -> dict[str, tuple[Any, str]]:
    d, both = made(model), made(model, 2, seed=5)
    inside = sl.Direction(
        {SITE: 0.3 * both.vectors[SITE][0] - both.vectors[SITE][1]}, model.name, model.fingerprint
    )
    elsewhere = made(model, seed=6, sites=(Site("resid_post", 0), Site("resid_post", 2)))
    narrow = sl.Direction({SITE: torch.ones(5)}, model.name, model.fingerprint)
    foreign = sl.Direction({SITE: torch.ones(model.d_model)}, "another", "0" * 16)
    return {
        "inside": (lambda: sl.Ablate(inside, keep=[both]), "nothing of it is left to ablate"),
        "itself": (lambda: sl.Ablate(d, keep=[d], sites=[SITE]), "nothing of it is left to ablate"),
        "no vector": (lambda: sl.Ablate(d, keep=[elsewhere]), "has no vector at resid_post.1"),
        "no vector at a site": (
            lambda: sl.Ablate(d, keep=[elsewhere], sites=[SITE]),
            "has no vector at resid_post.1",
        ),
        "width": (lambda: sl.Ablate(d, keep=[narrow]), "has width 5 at resid_post.1"),
        "another model": (
            lambda: sl.Ablate(d, keep=[foreign], sites=[SITE]).check(model),
            "was made in another",
        ),
        "no direction": (lambda: sl.Ablate(d, keep=["truth"]), "What an ablation keeps are directions"),
        "lengths": (
            lambda: sl.Ablate(d, keep=[both], preserve="norm"),
            "along the directions to keep as well",
        ),
        "a share of lengths": (lambda: sl.Ablate(d, strength=0.5, preserve="norm"), "keeps no length"),
        "a share of everything in weights": (
            lambda: sl.bake(model, sl.Ablate(d, strength=0.5)),
            "removes what earlier layers wrote",
        ),
        "no strength there": (
            lambda: sl.Ablate(d, strength={0: 1.0}, sites=[SITE]),
            "no strength for resid_post.1",
        ),
        "no value there": (
            lambda: sl.Clamp(d, value={0: 1.0}, sites=[SITE]),
            "no value to clamp to for resid_post.1",
        ),
        "no factor there": (
            lambda: sl.Scale({0: 1.0}, sites=["mlp_post.1"]),
            "no factor for mlp_post.1",
        ),
    }


@pytest.mark.parametrize("case", _refused(tiny("llama")))
def test_what_cannot_be_is_refused_in_a_sentence(model: LanguageModel, case: str) -> None:
    make, said = _refused(model)[case]
    with pytest.raises(SteerlabError, match=said):
        make()


BY_LAYER: dict[str, Any] = {
    "add": lambda d, amounts: sl.Add(d, amounts),
    "rotate": lambda d, amounts: sl.Rotate(d, amounts),
    "affine": lambda d, amounts: sl.Affine(d, d, strength=amounts),
    "ablate": lambda d, amounts: sl.Ablate(d, strength=amounts),
    "clamp": lambda d, amounts: sl.Clamp(d, amounts),
}


@pytest.mark.parametrize("kind", BY_LAYER)
def test_every_layer_has_an_amount_of_its_own(model: LanguageModel, kind: str) -> None:
    """A mapping names the layers; at each it is the intervention with that one number, as data too."""
    sites = tuple(Site("resid_post", layer) for layer in range(3))
    d = made(model, sites=sites)
    amounts = {0: 0.5, 2: 1.5}
    edit = BY_LAYER[kind](d, amounts)
    assert edit.sites == (sites[0], sites[2])
    back = edit_from_dict(edit.to_dict(), [d])
    x = torch.randn(2, 3, model.d_model, generator=torch.Generator().manual_seed(0))
    for site, amount in zip(edit.sites, amounts.values(), strict=True):
        one = BY_LAYER[kind](d.at(site), amount)
        assert torch.equal(edit.apply(x, site), one.apply(x, site))
        assert torch.equal(back.apply(x, site), one.apply(x, site))
        assert float((edit.apply(x, site) - x).abs().max()) > 1e-3
    alone = [replace(BY_LAYER[kind](d, amounts), sites=[site]) for site in edit.sites]
    with model.steering(edit):
        steered = model.logits(PROMPTS)
    with model.steering(*alone):
        close(model.logits(PROMPTS), steered)


def test_neurons_have_factors_by_layer(model: LanguageModel) -> None:
    edit = sl.Scale({0: 0.5, 1: (2.0, 0.0)}, coordinates=(1, 3), sites=["mlp_post.0", "mlp_post.1"])
    back = edit_from_dict(edit.to_dict(), [])
    x = torch.randn(2, 3, model.width(Site("mlp_post", 0)))
    for site, factors in ((Site("mlp_post", 0), (0.5, 0.5)), (Site("mlp_post", 1), (2.0, 0.0))):
        expected = x.clone()
        expected[..., 1], expected[..., 3] = expected[..., 1] * factors[0], expected[..., 3] * factors[1]
        for one in (edit, back):
            one.check(model)
            close(one.apply(x, site), expected)


def test_a_share_removes_that_share(model: LanguageModel) -> None:
    d = made(model)
    unit = torch.nn.functional.normalize(d[SITE].double(), dim=0)
    x = torch.randn(2, 3, model.d_model, dtype=torch.float64)
    for share in (0.0, 0.25, 1.0, 2.0):
        after = sl.Ablate(d, sites=[SITE], strength=share, toward=3.0).apply(x, SITE)
        close(after @ unit, (1 - share) * (x @ unit) + share * 3.0, scale=float(x.abs().max()))


def test_the_command_line_keeps(tmp_path: Path) -> None:
    model = sl.load("zoo:small-post")
    refusal, other = tmp_path / "refusal.safetensors", tmp_path / "other.safetensors"
    made(model).save(refusal)
    made(model, seed=1, sites=(SITE, Site("resid_post", 2))).save(other)
    out = tmp_path / "baked"
    ran = CLI.invoke(
        app,
        [
            "bake",
            "zoo:small-post",
            "--ablate",
            str(refusal),
            "--keep",
            f"{other}@1",
            "--out",
            str(out),
            "--dtype",
            "float32",
        ],
    )
    assert ran.exit_code == 0, ran.output
    edit = sl.Ablate(made(model), keep=[sl.Direction.load(other)])
    with model.steering(edit):
        close(sl.load(out).logits(PROMPTS), model.logits(PROMPTS), rtol=2e-4)
    for arguments, said in (
        (["--keep", str(other)], "nothing is ablated"),
        (["--ablate", str(refusal), "--keep", f"{other}:2"], "means nothing"),
        (["--ablate", str(refusal), "--keep", f"{other}@3"], "has no vector at layer 3"),
        (["--ablate", str(refusal), "--keep", "gone.safetensors"], "gone.safetensors"),
    ):
        failed = CLI.invoke(app, ["generate", "zoo:small-post", "hello", *arguments])
        assert failed.exit_code != 0
        assert said in failed.output + str(failed.exception)
