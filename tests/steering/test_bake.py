"""Baked weights against hooks, in every family; and what cannot be baked, with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tiny, tiny_tokenizer
from tolerances import close
from torch import Tensor

from steerlab.activations import capture
from steerlab.directions import Direction
from steerlab.errors import DirectionError, SteeringError
from steerlab.models import All, Edit, LanguageModel, Last, Site, load_model
from steerlab.steering import Ablate, Add, bake

PROMPTS = ["The capital of France is Paris.", "A cat"]
ADDED_AT = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post")
POST_NORM = ("gemma2", "gemma3", "olmo2")
NORMALISED = "normalised before it enters the stream"
NO_EXPERT_BIAS = "experts without biases"


@cache
def model_of(family: str) -> LanguageModel:
    return tiny(family, bos=family != "gpt2")


def direction(model: LanguageModel, site: Site, *, k: int = 1, seed: int = 0) -> Direction:
    rows = torch.randn(k, model.width(site), generator=torch.Generator().manual_seed(seed))
    return Direction({site: rows}, model.name, model.fingerprint)


def added(
    model: LanguageModel, name: str, layer: int | None = 1, strength: float = 2.0, seed: int = 0
) -> Add:
    return Add(direction(model, Site(name, layer), seed=seed), strength=strength)


def ablated(model: LanguageModel, *, k: int = 1, seed: int = 1) -> Ablate:
    return Ablate(direction(model, Site("resid_pre", 1), k=k, seed=seed))


def assert_same(model: LanguageModel, baked: LanguageModel, *edits: Edit, text: bool = False) -> None:
    """Logits within float32 rounding (and the same greedy text); and the edits do something."""
    plain = model.logits(PROMPTS)
    with model.steering(*edits):
        steered = model.logits(PROMPTS)
        written = model.generate(PROMPTS, max_new_tokens=8) if text else None
    close(baked.logits(PROMPTS), steered)
    assert (steered - plain).abs().max() > 5e-3
    if text:
        assert baked.generate(PROMPTS, max_new_tokens=8) == written


# ------------------------------------------------------------------------------------------------------ every family


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablation_is_orthogonalised_weights(family: str) -> None:
    model = model_of(family)
    edit = ablated(model, k=2)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    if family in POST_NORM:
        with pytest.raises(SteeringError, match=NORMALISED):
            bake(model, edit)
        return
    if family == "bloom":
        with pytest.raises(SteeringError, match="A norm follows the token embedding"):
            bake(model, edit)
        return
    baked = bake(model, edit)
    assert_same(model, baked, edit, text=True)
    assert baked.self_check().ok
    assert baked.fingerprint != model.fingerprint
    sites = [site for name in ("resid_pre", "resid_post", "ln_final_in") for site in baked.sites(name)]
    basis = torch.linalg.qr(edit.direction.vectors[Site("resid_pre", 1)].double().T).Q
    states = capture(baked, PROMPTS, sites, positions=All())
    for site in sites:
        assert (states[site].double() @ basis).abs().max() <= 5e-6 * states[site].norm(dim=1).max()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.state_dict().items())


@pytest.mark.parametrize("name", [*ADDED_AT, "resid_pre.0", "embed", "ln_final_in"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_addition_is_a_bias_of_its_writer(family: str, name: str) -> None:
    model = model_of(family)
    site = Site.parse(name if "." in name or name in ("embed", "ln_final_in") else f"{name}.1")
    if not model.anatomy.has(site):
        pytest.skip(f"{family} has no {site}")
    edit = Add(direction(model, site), strength=2.0)
    reason = _reason(family, name)
    if reason is None:
        assert_same(model, bake(model, edit), edit, text=name == "resid_post")
        return
    with pytest.raises(SteeringError, match=reason):
        bake(model, edit)


def _reason(family: str, name: str) -> str | None:
    if name in ("z", "mlp_post", "embed", "resid_pre.0"):
        return None
    if family in POST_NORM:
        return NORMALISED
    behind_mlp = name not in ("attn_out", "resid_mid")
    if family == "mixtral" and behind_mlp:
        return NO_EXPERT_BIAS
    # Layer 1 of the test's Qwen3-MoE is dense: only what block 0 or 2 would have to carry is refused.
    return NO_EXPERT_BIAS if family == "qwen3_moe" and name in ("resid_pre", "ln_final_in") else None


# ----------------------------------------------------------------------------------------------------- against numpy


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_weights_are_the_published_formulas(family: str) -> None:
    """W − r̂ r̂ᵀ W for every writer, biases and positions too; W_O δ for an addition at z (ITI)."""
    model = model_of(family)
    ablation = ablated(model)
    unit = ablation.direction[Site("resid_pre", 1)].double().numpy()
    unit /= np.linalg.norm(unit)
    keep = np.eye(model.d_model) - np.outer(unit, unit)
    old, new = model.model.state_dict(), bake(model, ablation).model.state_dict()
    written = {
        "llama": ("model.embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"),
        "gpt2": ("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias"),
    }[family]
    for key, tensor in old.items():
        before, after = tensor.double().numpy(), new[key].double().numpy()
        if key.endswith(written):
            outputs_first = family == "llama" and "embed" not in key
            expected = keep @ before if outputs_first else before @ keep
            close(after, expected)
            assert not np.allclose(after, before, atol=1e-3)
        else:
            np.testing.assert_array_equal(after, before)
    iti = added(model, "z", strength=3.0)
    shifted = bake(model, iti).model.state_dict()
    part = "model.layers.1.self_attn.o_proj" if family == "llama" else "transformer.h.1.attn.c_proj"
    matrix = old[f"{part}.weight"].double().numpy()
    delta = 3.0 * iti.direction[Site("z", 1)].double().numpy()
    expected = matrix @ delta if family == "llama" else delta @ matrix + old[f"{part}.bias"].double().numpy()
    close(shifted[f"{part}.bias"].double().numpy(), expected)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "opt"])
def test_it_is_exact_in_float64(family: str) -> None:
    """Families with LayerNorm; transformers computes RMSNorm in float32 whatever the model."""
    model = load_model(build(family).double(), tokenizer=tiny_tokenizer())
    for edit in (ablated(model, k=2), added(model, "resid_post"), added(model, "resid_pre", 0)):
        baked = bake(model, edit)
        tokens = model.tokenize(PROMPTS[:1]).input_ids
        with torch.no_grad(), model.steering(edit):
            steered = model.model(tokens).logits
        with torch.no_grad():
            torch.testing.assert_close(baked.model(tokens).logits, steered, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_half_precision_keeps_its_precision(family: str) -> None:
    """bfloat16 weights round each to 2⁻⁸: the logits are as near as rounding the plain model leaves them."""
    model = load_model(build(family).bfloat16(), tokenizer=tiny_tokenizer(), dtype="bfloat16")
    edit = ablated(model)
    with model.steering(edit):
        steered = model.logits(PROMPTS)
    error = (bake(model, edit).logits(PROMPTS) - steered).norm(dim=1) / steered.norm(dim=1)
    assert error.median() < 0.05


# -------------------------------------------------------------------------------------------------------- composition


def _pairs(model: LanguageModel) -> list[tuple[Edit, Edit]]:
    names = [name for name in ADDED_AT if model.anatomy.has(Site(name, 1))]
    additions = [added(model, name) for name in names]
    additions += [
        added(model, "resid_pre", 0),
        added(model, "embed", None),
        added(model, "ln_final_in", None),
    ]
    return [
        pair for addition in additions for pair in ((addition, ablated(model)), (ablated(model), addition))
    ]


@pytest.mark.parametrize("family", ["llama", "gptj", "gpt2", "granite"])
def test_an_addition_and_an_ablation_compose_in_either_order(family: str) -> None:
    model = model_of(family)
    refused = set()
    for pair in _pairs(model):
        try:
            baked = bake(model, *pair)
        except SteeringError as error:
            assert "read there and ablated further on" in str(error)  # noqa: PT017
            refused.add((type(pair[0]).__name__, str(next(e for e in pair if isinstance(e, Add)).sites[0])))
            continue
        assert_same(model, baked, *pair)
    parallel = {("Ablate", "resid_pre.1"), ("Ablate", "resid_pre.0")}
    sequential = parallel | {("Ablate", "attn_out.1"), ("Ablate", "resid_mid.1"), ("Add", "resid_mid.1")}
    assert refused == (parallel if family == "gptj" else sequential)


def test_edits_of_one_part_keep_their_order() -> None:
    model = model_of("llama")
    parts = ("z", "attn_out", "mlp_post", "mlp_out", "embed")
    for name, order in product(parts, ([0, 1], [1, 0])):
        site = Site(name) if name == "embed" else Site(name, 1)
        here = [
            Add(direction(model, site), strength=2.0),
            Ablate(direction(model, site, seed=1), sites=[site]),
        ]
        edits = [here[place] for place in order]
        assert_same(model, bake(model, *edits), *edits)


def test_ablations_of_the_whole_stream_must_not_undo_each_other() -> None:
    model = model_of("llama")
    first, second = ablated(model, seed=1), ablated(model, seed=2)
    with pytest.raises(SteeringError, match="ablate them as one subspace"):
        bake(model, first, second)
    site = Site("resid_pre", 1)
    with pytest.raises(SteeringError, match="ablate them as one subspace"):
        bake(model, first, Ablate(direction(model, site, seed=2), sites=[Site("mlp_out", 0)]))
    a, b = first.direction[site], second.direction[site]
    square = b - (b @ a) / (a @ a) * a
    orthogonal = Ablate(Direction({site: square}, model.name, model.fingerprint))
    assert_same(model, bake(model, first, orthogonal), first, orthogonal)


# ------------------------------------------------------------------------------------------------------------ details


def test_a_strength_of_zero_changes_no_weight() -> None:
    model = model_of("qwen2")
    baked = bake(model, added(model, "resid_post", strength=0.0), added(model, "embed", None, strength=0.0))
    for name, tensor in baked.model.state_dict().items():
        assert torch.equal(tensor, model.model.state_dict()[name])


def test_tied_embeddings_are_untied_only_when_the_embedding_changes() -> None:
    model = model_of("gemma")
    assert model.model.config.tie_word_embeddings
    ablation = bake(model, ablated(model))
    assert not ablation.model.config.tie_word_embeddings
    assert torch.equal(ablation.unembedding, model.unembedding)
    addition = bake(model, added(model, "attn_out"))
    assert addition.anatomy.head.weight is addition.anatomy.embed.weight
    assert model.anatomy.head.weight is model.anatomy.embed.weight
    learned = model_of("gpt2")  # a constant at the start goes to the positions
    assert bake(learned, added(learned, "resid_pre", 0)).model.config.tie_word_embeddings


def test_in_place_changes_the_model_given() -> None:
    model, twin = tiny("llama"), tiny("llama")
    edit = added(twin, "resid_post")
    before = model.fingerprint
    baked = bake(model, added(model, "resid_post"), in_place=True)
    assert baked.model is model.model
    assert model.fingerprint == baked.fingerprint != before
    with twin.steering(edit):
        close(model.logits(PROMPTS), twin.logits(PROMPTS))


def test_a_baked_model_is_steered_on_with_moved_directions() -> None:
    model = model_of("llama")
    first, second = added(model, "resid_post"), added(model, "resid_post", 0, seed=3)
    baked = bake(model, first)
    with pytest.raises(DirectionError, match="moved_to"):
        bake(baked, second)
    again = Add(second.direction.moved_to(baked), strength=2.0)
    assert_same(model, bake(baked, again), first, second)


@dataclass(frozen=True, eq=False)
class Fading(Add):
    """An edit with a field `bake` has never heard of."""

    fade: float | None = None


@dataclass(frozen=True)
class Doubled:
    """An edit of another kind."""

    sites: tuple[Site, ...] = (Site("resid_post", 1),)
    positions: All = field(default_factory=All)

    def apply(self, state: Tensor, site: Site) -> Tensor:
        return 2 * state

    def check(self, model: LanguageModel) -> None:
        pass


def test_what_depends_on_tokens_or_states_is_refused() -> None:
    model = model_of("llama")
    made = direction(model, Site("resid_post", 1))
    refusals: list[tuple[Edit, str]] = [
        (Add(made, positions=Last()), r"acts at Last\(\) only, and weights act on every token"),
        (Ablate(made, positions=Last()), r"acts at Last\(\) only"),
        (Fading(made, fade=0.5), r"Fading has fade=0\.5"),
        (Doubled(), "Doubled is not among the changes that become weights"),
        (Ablate(made, sites=[Site("resid_post", 1)]), r"An ablation at resid_post\.1 alone"),
    ]
    for edit, reason in refusals:
        with pytest.raises(SteeringError, match=reason):
            bake(model, edit)
    assert_same(model, bake(model, Fading(made)), Add(made))
    with pytest.raises(SteeringError, match="at least one intervention"):
        bake(model)
    with model.steering(Add(made)):
        model.logits(PROMPTS)
        with pytest.raises(SteeringError, match="leave the context first"):
            bake(model, Add(made))
    with pytest.raises(DirectionError, match="not in"):
        bake(model, added(model_of("mistral"), "resid_post"))


def test_a_change_that_does_not_do_what_the_hooks_do_is_not_handed_out(monkeypatch: Any) -> None:
    from steerlab.steering import _writers

    monkeypatch.setattr(_writers.Part, "project", lambda part, basis: None)
    model = model_of("llama")
    with pytest.raises(SteeringError, match="does not compute what the hooks do"):
        bake(model, ablated(model))
