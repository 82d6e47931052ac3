"""Every kind of intervention against its formula in NumPy, their algebra, and their way to data and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import close
from torch import Tensor

from steerlab.activations import Activations, Moments, capture
from steerlab.directions import DifferenceInMeans, Direction, fit_direction
from steerlab.errors import DirectionError, SiteError, SteeringError
from steerlab.models import All, Generated, Index, LanguageModel, Last, Site, WholePrompt, Window
from steerlab.steering import (
    Ablate,
    Add,
    Affine,
    Clamp,
    Condition,
    Constant,
    Decay,
    Intervention,
    Linear,
    LowRank,
    Patch,
    PerRow,
    PerStep,
    Project,
    Rotate,
    Scale,
    edit_from_dict,
    mean_state,
)

PROMPTS = ["The capital of France is Paris.", "A cat", "Two plus two is four; three plus four is seven.", "x"]
SITE = Site("resid_post", 1)
WIDTH = 32
FAMILIES = ("llama", "gemma2", "gpt2", "bloom", "granite", "mixtral")


def direction(model: LanguageModel, *sites: Site, seed: int = 0, k: int = 1) -> Direction:
    random = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(k, model.width(site), generator=random) for site in sites or (SITE,)}
    return Direction(vectors, model.name, model.fingerprint)


def fitted(model: LanguageModel) -> Direction:
    states = capture(model, PROMPTS, model.sites("resid_post"))
    return fit_direction(states, [0, 1, 0, 1], DifferenceInMeans(), model=model)


def unit(made: Direction, site: Site = SITE) -> np.ndarray:
    rows = made.vectors[site].double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def states(seed: int = 0) -> Tensor:
    return 3 * torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


LLAMA = tiny("llama")
V = direction(LLAMA)
PAIR = direction(LLAMA, k=2, seed=1)
POINT = direction(LLAMA, seed=2)
MAP = replace(direction(LLAMA, k=5, seed=6), estimator="low_rank")
FITTED = fitted(LLAMA).at(SITE)


def _matrix(made: Direction) -> np.ndarray:
    return made.vectors[SITE].double().numpy()


def projected(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return x @ np.linalg.pinv(rows) @ rows


def rotated(x: np.ndarray, alpha: float) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    new = x / np.where(norm == 0, 1, norm) + alpha * unit(V)[0]
    return norm * new / np.linalg.norm(new, axis=-1, keepdims=True)


def set_components(x: np.ndarray, rows: np.ndarray, values: list[float]) -> np.ndarray:
    # the nearest state whose components along the rows are these: least squares
    missing = np.array(values) - x @ rows.T
    return x + np.linalg.lstsq(rows, missing.reshape(-1, len(rows)).T, rcond=None)[0].T.reshape(x.shape)


_mean = FITTED.statistics[SITE].class_means
FORMULAS: dict[str, tuple[Intervention, Any]] = {
    "clamp to a number": (Clamp(V, 1.5), lambda x: set_components(x, unit(V), [1.5])),
    "clamp two": (Clamp(PAIR, [1.5, -2.0]), lambda x: set_components(x, unit(PAIR), [1.5, -2.0])),
    "clamp to a class": (
        Clamp(FITTED, "positive"),
        lambda x: set_components(x, unit(FITTED), [_mean["1"][0]]),
    ),
    "clamp to a named class": (
        Clamp(FITTED, "0"),
        lambda x: set_components(x, unit(FITTED), [_mean["0"][0]]),
    ),
    "floor": (
        Clamp(V, 0.5, "floor"),
        lambda x: x + np.maximum(0.5 - x @ unit(V)[0], 0)[..., None] * unit(V)[0],
    ),
    "ceiling": (
        Clamp(V, 0.5, "ceiling"),
        lambda x: x + np.minimum(0.5 - x @ unit(V)[0], 0)[..., None] * unit(V)[0],
    ),
    "project": (Project(PAIR), lambda x: projected(x, unit(PAIR))),
    "project about": (
        Project(PAIR, about=POINT),
        lambda x: POINT[SITE].double().numpy() + projected(x - POINT[SITE].double().numpy(), unit(PAIR)),
    ),
    "ablate": (Ablate(PAIR, sites=[SITE]), lambda x: x - projected(x, unit(PAIR))),
    "rotate": (Rotate(V, 0.3), lambda x: rotated(x, 0.3)),
    "rotate away": (Rotate(V, -0.3), lambda x: rotated(x, -0.3)),
    "affine": (
        Affine(PAIR, direction(LLAMA, k=2, seed=5), offset=[0.5, -1.0], strength=0.7),
        lambda x: (
            x
            + 0.7
            * (x @ PAIR.vectors[SITE].double().numpy().T + [0.5, -1.0])
            @ direction(LLAMA, k=2, seed=5).vectors[SITE].double().numpy()
        ),
    ),
    "low rank": (
        LowRank(MAP, 0.7),
        lambda x: x + 0.7 * (x @ _matrix(MAP)[:2].T @ _matrix(MAP)[2:4] + _matrix(MAP)[4]),
    ),
    "patch zero": (Patch(sites=[SITE]), lambda x: 0 * x),
    "patch a point": (Patch(POINT), lambda x: 0 * x + POINT[SITE].double().numpy()),
    "scale all": (Scale(-0.5, sites=[SITE]), lambda x: -0.5 * x),
    "scale some": (
        Scale([0.0, 2.0], coordinates=[3, 7], sites=[SITE]),
        lambda x: x * np.where(np.arange(WIDTH) == 3, 0, np.where(np.arange(WIDTH) == 7, 2, 1)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_state_changes_as_the_formula_says(name: str) -> None:
    edit, formula = FORMULAS[name]
    x = states()
    before = x.clone()
    got = edit.apply(x, SITE)
    close(got.double().numpy(), formula(x.double().numpy()), rtol=2e-5)
    assert torch.equal(x, before)
    assert got.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", FORMULAS)
def test_while_the_model_runs_it_acts_at_its_positions_only(name: str) -> None:
    edit, formula = FORMULAS[name]
    if edit.positions != All():
        return
    plain = capture(LLAMA, PROMPTS, [SITE], positions=All())
    with LLAMA.steering(_at_last(edit)):
        got = capture(LLAMA, PROMPTS, [SITE], positions=All())
    last = (
        plain.position == torch.tensor([LLAMA.tokenize([p]).lengths[0] - 1 for p in PROMPTS])[plain.example]
    )
    expected = plain[SITE].double().numpy().copy()
    expected[last] = formula(expected[last])
    close(got[SITE].double().numpy(), expected, rtol=2e-5)
    assert torch.equal(got[SITE][~last], plain[SITE][~last])


def _at_last(edit: Intervention) -> Intervention:
    data = {**edit.to_dict(), "positions": "Last()"}
    again = edit_from_dict(data, [V, PAIR, POINT, FITTED, MAP, direction(LLAMA, k=2, seed=5)])
    assert isinstance(again, Intervention)
    return again


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_act_in_every_family(family: str) -> None:
    model = tiny(family)
    made = direction(model, k=1)
    for edit in (Clamp(made, 2.0), Project(made), Rotate(made, 20, "angle"), Affine(made, made)):
        plain = capture(model, PROMPTS, [SITE], positions=All())[SITE]
        with model.steering(edit):
            got = capture(model, PROMPTS, [SITE], positions=All())[SITE]
        close(got, edit.apply(plain[None], SITE)[0], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- rotation


@given(degrees=st.floats(-170, 170), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_rotation_keeps_the_norm_and_turns_by_the_angle(degrees: float, seed: int) -> None:
    x = states(seed).double()
    turned = Rotate(V, degrees, "angle").apply(x, SITE)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    towards = torch.from_numpy(unit(V)[0])
    between = torch.acos(torch.cosine_similarity(x, towards, dim=-1).clamp(-1, 1))
    after = torch.acos(torch.cosine_similarity(turned, towards, dim=-1).clamp(-1, 1))
    wanted = between - math.radians(degrees)
    close(after, wanted.clamp(0, math.pi), rtol=1e-6, scale=math.pi)


@given(alpha=st.floats(0.01, 0.9), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=40)
def test_alpha_turns_by_the_published_angle(alpha: float, seed: int) -> None:
    """tan φ = α sin θ / (1 + α cos θ), at most asin α."""
    x = states(seed).double()
    turned = Rotate(V, alpha).apply(x, SITE)
    theta = torch.acos(torch.cosine_similarity(x, torch.from_numpy(unit(V)[0]), dim=-1))
    phi = torch.acos(torch.cosine_similarity(x, turned, dim=-1).clamp(-1, 1))
    close(torch.tan(phi), alpha * theta.sin() / (1 + alpha * theta.cos()), rtol=1e-5)
    assert float(phi.max()) <= math.asin(alpha) + 1e-9
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_a_state_that_is_zero_or_already_there_stays_finite() -> None:
    x = torch.stack([torch.zeros(WIDTH), V[SITE], -V[SITE]])[None]
    for edit in (Rotate(V, 0.3), Rotate(V, 30, "angle"), Rotate(V, -30, "angle")):
        turned = edit.apply(x, SITE)
        assert bool(turned.isfinite().all())
        close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
        torch.testing.assert_close(turned[0, 0], x[0, 0])


# ----------------------------------------------------------------------------------------------------------- algebra

numbers = st.floats(-5, 5)
seeds = st.integers(0, 1000)


def run(x: Tensor, *edits: Intervention) -> Tensor:
    """The edits as the runtime composes them, on a state of its own."""
    from steerlab.models.program import programs

    for edit in edits:
        edit.check(LLAMA)
    (program,) = programs(edits)[1].values()
    return program(x, None)


@given(strength=numbers, seed=seeds)
@settings(deadline=None)
def test_adding_then_subtracting_changes_no_bit(strength: float, seed: int) -> None:
    v, x = direction(LLAMA, seed=seed), states(seed)
    assert torch.equal(run(x, Add(v, strength), Add(v, -strength)), x)


@given(seed=seeds)
@settings(deadline=None)
def test_zero_changes_no_bit(seed: int) -> None:
    v, x = direction(LLAMA, seed=seed), states(seed)
    for edit in (
        Add(v, 0.0),
        Rotate(v, 0.0),
        Rotate(v, 0.0, "angle"),
        Affine(v, v, strength=0.0),
        LowRank(MAP, strength=0.0),
        Scale(1.0, sites=[SITE]),
    ):
        assert torch.equal(run(x, edit), x)


@given(seed=seeds, k=st.integers(1, 4))
@settings(deadline=None)
def test_ablating_twice_is_ablating_once(seed: int, k: int) -> None:
    v, x = direction(LLAMA, seed=seed, k=k), states(seed)
    once = run(x, Ablate(v, sites=[SITE]))
    close(run(x, Ablate(v, sites=[SITE]), Ablate(v, sites=[SITE])), once, rtol=1e-5)
    assert float((once @ v.vectors[SITE].T).abs().max()) < 1e-3
    together = run(x, Ablate(v, sites=[SITE])) + run(x, Project(v))
    close(together, x, rtol=1e-5)


@given(value=numbers, seed=seeds)
@settings(deadline=None)
def test_clamping_is_forgotten_by_ablation_and_forgets_addition(value: float, seed: int) -> None:
    v, x = direction(LLAMA, seed=seed), states(seed)
    ablated = run(x, Ablate(v, sites=[SITE]))
    close(run(x, Clamp(v, value), Ablate(v, sites=[SITE])), ablated, rtol=1e-5)
    close(run(x, Clamp(v, 0.0)), ablated, rtol=1e-5)
    clamped = run(x, Clamp(v, value))
    close(run(x, Add(v, 2.0), Clamp(v, value)), clamped)
    high = run(x, Clamp(v, value, "floor"))
    close(run(high, Clamp(v, value, "ceiling")), clamped, rtol=1e-5)


@given(strength=numbers, seed=seeds)
@settings(deadline=None)
def test_addition_and_ablation_are_affine_maps(strength: float, seed: int) -> None:
    v, x = direction(LLAMA, seed=seed), states(seed)
    nothing = Direction({SITE: 1e-15 * torch.ones(WIDTH)}, LLAMA.name, LLAMA.fingerprint)
    as_map = Affine(nothing, v, offset=strength)
    close(run(x, as_map), run(x, Add(v, strength)), rtol=1e-5)
    removal = Affine(v.unit(), v.unit(), strength=-1.0)
    close(run(x, removal), run(x, Ablate(v, sites=[SITE])), rtol=1e-5)


@given(order=st.permutations(list(FORMULAS)), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_edits_act_in_the_order_given(order: list[str], seed: int) -> None:
    """However they are composed: the same as one formula after the other, in float64."""
    chosen = order[:3]
    x = states(seed).double()
    expected = x.numpy()
    for name in chosen:
        expected = FORMULAS[name][1](expected)
    got = run(x, *(FORMULAS[name][0] for name in chosen))
    close(
        got.numpy(), expected, rtol=1e-5, scale=float(x.abs().max())
    )  # a projection can leave nothing but rounding


# ------------------------------------------------------------------------------------------------------ where, how much


def test_layers_and_strengths_by_layer(tiny_llama: LanguageModel) -> None:
    one = direction(tiny_llama)
    assert Add(one, layers=range(3)).sites == tuple(tiny_llama.sites("resid_post"))
    by_layer = Add(one, {0: 0.0, 2: -1.5})
    assert by_layer.sites == (Site("resid_post", 0), Site("resid_post", 2))
    x = states()
    assert torch.equal(by_layer.apply(x, Site("resid_post", 0)), x)
    torch.testing.assert_close(by_layer.apply(x, Site("resid_post", 2)), x - 1.5 * one[SITE])
    everywhere = fitted(tiny_llama)
    assert Rotate(everywhere, {1: 0.2}).sites == (SITE,)
    for wrong, sentence in [
        (lambda: Add(one, {0: 1.0}, sites=[SITE]), r"no strength for resid_post\.1"),
        (lambda: Add(one, layers=[-1]), "count from 0"),
        (lambda: Add(one, layers=[0], sites=[SITE]), "either sites or layers"),
        (lambda: Add(direction(tiny_llama, Site("embed")), layers=[0]), "name the sites"),
        (lambda: Patch(layers=[0]), "needs sites"),
        (lambda: Scale(0.0), "needs sites"),
        (lambda: Add(one, layers="1"), r"layers=\(10, 18\)"),
        (lambda: Add(one, layers=(2, 0)), "ascending"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            wrong()
    with pytest.raises(SiteError, match="did you mean 'resid_post'"):
        Add(one, sites="resid_past.1")


def test_sites_and_layers_as_they_are_typed(tiny_llama: LanguageModel) -> None:
    one, several = direction(tiny_llama), direction(tiny_llama, *tiny_llama.sites("resid_post"))
    every = tuple(tiny_llama.sites("resid_post"))
    assert Add(one, sites="resid_post.2").sites == Add(one, layers=2).sites == (every[2],)
    assert Add(one, sites="blocks.0.hook_resid_post").sites == (every[0],)
    assert Add(one, sites=["resid_post.2", Site("embed")]).sites == (every[2], Site("embed"))
    assert Add(several, layers=(1, 2)).sites == every[1:]
    assert Add(several, layers=[0, 2]).sites == every[::2]
    assert Add(several, sites="resid_post").sites == every
    family = Add(one, 2.0, sites="resid_post")
    assert family.to_dict()["sites"] == ["resid_post"]
    again = edit_from_dict(family.to_dict(), [one])
    written = tiny_llama.logits(["a cat"])
    for edit in (family, again, replace(family, strength=2.0)):
        with tiny_llama.steering(edit):  # type: ignore[arg-type]
            steered = tiny_llama.logits(["a cat"])
        with tiny_llama.steering(Add(one, 2.0, sites=every)):
            assert torch.equal(tiny_llama.logits(["a cat"]), steered)
        assert not torch.equal(steered, written)
    assert family.sites == every


@pytest.mark.parametrize(("family", "site"), [("gpt_neox", "resid_mid.1"), ("mixtral", "mlp_post.0")])
def test_a_site_the_model_has_not_is_refused(family: str, site: str) -> None:
    model = tiny(family)
    edit = Patch(sites=[Site.parse(site)])
    with pytest.raises(SiteError, match="does not exist"), model.steering(edit):
        pass


def test_neurons_and_heads_are_scaled() -> None:
    for family in ("llama", "gpt2", "gemma2"):
        model = tiny(family)
        neurons, heads = Site("mlp_post", 1), Site("z", 1)
        plain = capture(model, PROMPTS, [neurons, heads], positions=All())
        with model.steering(
            Scale(0.0, coordinates=[5, 47], sites=[neurons]), Scale([3.0, 0.0], heads=[0, 3], sites=[heads])
        ):
            got = capture(model, PROMPTS, [neurons, heads], positions=All())
        expected = plain[neurons].clone()
        expected[:, [5, 47]] = 0
        assert (got[heads].view(-1, 4, model.head_dim)[:, 3] == 0).all()
        z = plain[heads].view(-1, 4, model.head_dim) * torch.tensor([3.0, 1.0, 1.0, 0.0])[:, None]
        close(got[heads], z.flatten(1), rtol=1e-5)
        # neurons behind the changed heads have other values, but those switched off are off
        assert (got[neurons][:, [5, 47]] == 0).all()


def test_what_does_not_fit_is_refused_with_a_sentence(tiny_llama: LanguageModel) -> None:
    v, pair = direction(tiny_llama), direction(tiny_llama, k=2)
    for wrong, sentence in [
        (lambda: Clamp(v, bound="above"), "no bound 'above'"),
        (lambda: Clamp(v, "positive"), "mean of class 'positive'"),
        (lambda: Clamp(pair, [1.0]), "1 values came for the 2 vectors"),
        (lambda: Clamp(pair, 1.0, "floor"), "floor along 2 vectors"),
        (lambda: Clamp(v, math.nan), "finite"),
        (
            lambda: Clamp(Direction({SITE: torch.ones(2, WIDTH)}, "m", "f"), 1.0),
            "depend on each other",
        ),
        (lambda: Rotate(v, unit="radians"), "no unit 'radians'"),
        (lambda: Rotate(v, math.inf), "finite"),
        (lambda: Add(v, math.nan), "finite"),
        (lambda: Add(v, schedule=0.5), r"schedule of an intervention cannot be 0\.5"),
        (lambda: Add(v, condition=v), "condition of an intervention cannot be"),
        (lambda: Add(v, positions="last"), "positions of an intervention cannot be 'last'"),
        (lambda: Affine(v, pair), "1 vectors are read and 2 written"),
        (lambda: Affine(v, v, offset=[1.0, 2.0]), "2 offsets came for 1"),
        (lambda: Scale([1.0], coordinates=[1, 2], sites=[SITE]), "1 factors came for 2"),
        (lambda: Scale(1.0, coordinates=[1, 1], sites=[SITE]), "each once"),
        (lambda: Scale(1.0, heads=[1], sites=[SITE]), "Heads are found at z"),
        (lambda: Scale(1.0, heads=[1], coordinates=[1], sites=[Site("z", 0)]), "either coordinates or heads"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            wrong()
    with pytest.raises(DirectionError, match="subspace of 2"):
        Rotate(pair)
    for edit, sentence in [
        (Scale(0.0, coordinates=[99], sites=[SITE]), "no coordinate 99; it has 32"),
        (Scale(0.0, heads=[4], sites=[Site("z", 0)]), "no head 4; it has 4"),
    ]:
        with pytest.raises(SiteError, match=sentence), tiny_llama.steering(edit):
            pass


def test_parts_of_another_model_are_refused(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    v, other = direction(tiny_llama), direction(tiny_gpt2)
    foreign = capture(tiny_gpt2, PROMPTS, SITE)
    for edit in (
        Clamp(other, 1.0),
        Project(v, about=other),
        Project(other),
        Rotate(other),
        Affine(v, other),
        Patch(foreign, positions=Last()),
        Patch(mean_state(foreign)),
        Add(v, condition=Condition(other, 0.0)),
    ):
        with pytest.raises(DirectionError, match="gpt2"), tiny_llama.steering(edit):
            pass


# ---------------------------------------------------------------------------------------------------------- patching


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("positions", [Last(), WholePrompt(), Index(0), Window(-2) - Generated()], ids=str)
def test_states_of_another_run_are_put_in(family: str, positions: Any) -> None:
    """Patching the stream of one run into another at all its tokens makes the rest of it that run."""
    model = tiny(family)
    texts = [PROMPTS[0], PROMPTS[2]]
    site = Site("resid_post", 1)
    other = Add(direction(model, Site("resid_post", 0)), 5.0)
    with model.steering(other):
        donor = capture(model, texts, [site], positions=positions)
        donated = model.logits(texts)
    with model.steering(Patch(donor, positions=positions)):
        got = capture(model, texts, [site], positions=positions)
        logits = model.logits(texts)
        model.generate(texts, max_new_tokens=2)
    assert torch.equal(got[site], donor[site])
    if positions == WholePrompt():
        close(logits, donated)


def test_one_prompts_states_fit_every_prompt_and_others_must_match(tiny_llama: LanguageModel) -> None:
    one = capture(tiny_llama, PROMPTS[:1], [SITE])
    with tiny_llama.steering(Patch(one, positions=Last())):
        got = capture(tiny_llama, PROMPTS, [SITE])
    assert torch.equal(got[SITE], one[SITE].expand(4, -1))
    with (
        pytest.raises(SteeringError, match="those of 2 prompts"),
        tiny_llama.steering(Patch(capture(tiny_llama, PROMPTS[:2], [SITE]), positions=Last())),
    ):
        tiny_llama.logits(PROMPTS)
    with (
        pytest.raises(SteeringError, match="picks 1 tokens of prompt 2, but the states hold 26"),
        tiny_llama.steering(
            Patch(capture(tiny_llama, PROMPTS, [SITE], positions=WholePrompt()), positions=Last())
        ),
    ):
        tiny_llama.logits(PROMPTS)
    with pytest.raises(SteeringError, match="picks others too"):
        Patch(one)


def test_a_schedule_puts_a_share_of_the_state_in(tiny_llama: LanguageModel) -> None:
    plain = capture(tiny_llama, PROMPTS, [SITE])[SITE]
    with tiny_llama.steering(Add(direction(tiny_llama, Site("resid_post", 0)), 4.0)):
        donor = capture(tiny_llama, PROMPTS, [SITE])
    for states in (donor, mean_state(donor)):
        with tiny_llama.steering(Patch(states, positions=Last(), schedule=Constant(0.25))):
            got = capture(tiny_llama, PROMPTS, [SITE])[SITE]
        put = states[SITE] if states is donor else states[SITE].expand(4, -1)
        close(got, 0.75 * plain + 0.25 * put, rtol=1e-5)


def test_the_mean_state_of_rows_and_of_moments(tiny_llama: LanguageModel) -> None:
    rows = capture(tiny_llama, PROMPTS, tiny_llama.sites("resid_post"), positions=All())
    streamed = capture(
        tiny_llama, PROMPTS, rows.sites, positions=All(), into=Moments("mean"), labels=[0, 1, 1, 0]
    )
    for made in (mean_state(rows), mean_state(streamed)):
        for site in rows.sites:
            close(made[site].numpy(), rows[site].numpy().mean(axis=0), rtol=1e-5)
    with tiny_llama.steering(Patch(mean_state(rows))):
        patched = capture(tiny_llama, PROMPTS, [SITE], positions=All())
    torch.testing.assert_close(patched[SITE], mean_state(rows)[SITE].expand(len(rows), -1))


# -------------------------------------------------------------------------------------------------------------- data

_gate = Condition(FITTED, positions=Last() | Index(0), above=False)
_rows: Activations = capture(LLAMA, PROMPTS, [SITE])
WRITTEN: list[Any] = [
    *(edit for edit, _ in FORMULAS.values()),
    Add(V, {0: 1.0, 1: -2.0}, "raw", positions=Window(-3, None) - Index(0)),
    Add(V, schedule=Linear(1.0, 0.0, 5)),
    Rotate(V, schedule=Decay(0.5, start=2.0, floor=0.1), positions=Generated()),
    Ablate(V, schedule=Constant(0.5)),
    Clamp(FITTED, "negative", schedule=PerStep([1.0, 0.5]), condition=_gate),
    Add(V, condition=Condition(V, 0.3, positions=None)),
    Patch(_rows, positions=Last()),
    Scale(0.0, heads=[1], sites=[Site("z", 0)]),
    PerRow([Add(V), Rotate(V)], (), [Clamp(V, 1.0, condition=_gate)]),
]


@pytest.mark.parametrize("number", range(len(WRITTEN)))
def test_what_is_written_is_read_back(number: int) -> None:
    edit = WRITTEN[number]
    data = json.loads(json.dumps(edit.to_dict()))
    known = [V, PAIR, POINT, FITTED, MAP, direction(LLAMA, k=2, seed=5)]
    again = edit_from_dict(data, known, [_rows])
    assert type(again) is type(edit)
    assert again.to_dict() == data
    if isinstance(edit, Intervention) and SITE in edit.sites and not isinstance(edit, Patch):
        x = states()
        assert torch.equal(again.apply(x, SITE), edit.apply(x, SITE))
        assert again.positions == edit.positions
        assert again.schedule == edit.schedule


def test_data_that_means_nothing_is_refused() -> None:
    data = Add(V, schedule=Constant(0.5), condition=Condition(V, 1.0)).to_dict()
    for change, sentence in [
        ({"edit": "multiply"}, "no edit 'multiply'"),
        ({"strong": 1}, "has no strong"),
        ({"direction": "beef"}, "direction beef, which is not among"),
        ({"schedule": {"kind": "sine"}}, "not a schedule"),
        ({"schedule": {"kind": "linear", "start": 1.0}}, "not a schedule"),
        ({"condition": {**data["condition"], "direction": "beef"}}, "direction beef"),
        ({"unit": "metres"}, "no unit 'metres'"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            edit_from_dict({**data, **change}, [V])
    with pytest.raises(SteeringError, match="lacks"):
        edit_from_dict({"edit": "add", "direction": V.hash}, [V])
    with pytest.raises(SteeringError, match="function and cannot be written down"):
        Add(V, schedule=lambda step: 1.0).to_dict()
    with pytest.raises(SteeringError, match=r"states \w+, which are not among"):
        edit_from_dict(Patch(_rows, positions=Last()).to_dict(), [V])
