"""Entropy neurons against direct computation, planted ones and ablated models."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from families import TEXTS, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab.models import LanguageModel
from steerlab.neurons.ablation import ablation_effects
from steerlab.neurons.weights import (
    Neurons,
    iou,
    layer_neurons,
    logit_variance,
    lowest,
    matched_neurons,
    norm_centres,
    null_share,
    output_space,
)

FAMILIES = [
    "llama",
    "gemma",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "phi",
    "falcon",
    "olmo2",
    "granite",
    "cohere",
    "opt",
]


LAYER_NORM = {"gpt2", "gpt_neox", "phi", "falcon", "cohere", "opt"}


def space_of(model: LanguageModel, **options):
    return output_space(model.unembedding, model.final_norm_gain, centred=norm_centres(model), **options)


def direct_variance(model: LanguageModel, layer: int) -> np.ndarray:
    """LogitVar from the full matrix of cosines, with weights folded and centred as TransformerLens does."""
    read = model.unembedding.double() * model.final_norm_gain.double()
    written = model.w_out(layer).double()
    if norm_centres(model):
        read = read - read.mean(-1, keepdim=True)
        written = written - written.mean(-1, keepdim=True)
    read = read - read.mean(0)
    cosines = torch.nn.functional.normalize(written, dim=-1) @ torch.nn.functional.normalize(read, dim=-1).T
    return cosines.var(dim=-1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_variance_equals_the_direct_computation(family: str) -> None:
    model = tiny(family)
    assert norm_centres(model) == (family in LAYER_NORM)
    for layer in (0, model.n_layers - 1):
        expected = direct_variance(model, layer)
        for blocks in (1, 5):
            found = logit_variance(model.w_out(layer), space_of(model, blocks=blocks))[0]
            assert found == pytest.approx(expected, rel=1e-6)


def test_gemma_gain_is_one_plus_weight() -> None:
    """Read with w instead of 1 + w the numbers would differ: the gain is taken from what the norm does."""
    model = tiny("gemma")
    norm = model.anatomy.ln_final
    assert norm is not None
    assert model.final_norm_gain == pytest.approx(1 + norm.weight.detach().float(), abs=1e-4)
    wrong = output_space(model.unembedding, norm.weight.detach().float(), centred=False)
    right = logit_variance(model.w_out(2), space_of(model))[0]
    assert np.abs(logit_variance(model.w_out(2), wrong)[0] / right - 1).max() > 0.01


def test_resampled_vocabulary_equals_a_repeated_one(tiny_llama: LanguageModel) -> None:
    space = space_of(tiny_llama, blocks=4)
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1]], dtype=float)
    whole, drawn = logit_variance(tiny_llama.w_out(1), space, weights)
    assert whole == pytest.approx(logit_variance(tiny_llama.w_out(1), space)[0])
    order = torch.randperm(tiny_llama.vocab_size, generator=torch.Generator().manual_seed(0))
    blocks = torch.tensor_split(order, 4)
    rows = torch.cat([blocks[0], blocks[0], blocks[2], blocks[3]])
    read = tiny_llama.unembedding.double() * tiny_llama.final_norm_gain.double()
    read = torch.nn.functional.normalize(read - read.mean(0), dim=-1)[rows]
    written = torch.nn.functional.normalize(tiny_llama.w_out(1).double(), dim=-1)
    assert drawn == pytest.approx((written @ read.T).var(dim=-1).numpy(), rel=1e-6)


@given(st.integers(2, 12), st.integers(13, 40), st.booleans(), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_invariants_of_the_output_space(width: int, vocab: int, centred: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    unembedding = torch.randn(vocab, width, generator=generator)
    w_out = torch.randn(6, width, generator=generator)
    space = output_space(unembedding, torch.ones(width), centred=centred, blocks=3)
    found, share = logit_variance(w_out, space)[0], null_share(w_out, space)
    assert (found >= 0).all()
    assert (share <= 1 + 1e-6).all()
    scaled = logit_variance(3.5 * w_out, space)[0]
    assert scaled == pytest.approx(found, rel=1e-5, abs=1e-9)
    shifted = output_space(unembedding + 2.0, torch.ones(width), centred=centred, blocks=3)
    assert logit_variance(w_out, shifted)[0] == pytest.approx(found, rel=1e-3, abs=1e-6)
    assert 1 <= space.null_size <= max(1, width // 4)
    assert null_share(w_out, space, width - int(centred)) == pytest.approx(1, abs=1e-6)


def plant(size: float = 3.0, null: int = 3, **options) -> tuple[LanguageModel, int]:
    """A Llama whose unembedding reads nothing of `null` directions, and a neuron that writes only there."""
    model = tiny("llama", **options)
    gain = model.final_norm_gain
    basis = torch.linalg.qr(torch.randn(model.d_model, null, generator=torch.Generator().manual_seed(1)))[0]
    read = model.unembedding * gain
    with torch.no_grad():
        model.anatomy.head.weight[: model.vocab_size] = (read - read @ basis @ basis.T) / gain
        down = model.anatomy.down_projection(model.n_layers - 1).weight
        down[:, 7] = size * basis[:, 0]
    return model, 7


def test_planted_entropy_neuron_is_found() -> None:
    model, neuron = plant()
    space = space_of(model)
    assert space.null_size == 3
    neurons = layer_neurons(model, model.n_layers - 1, space)
    assert neurons.candidates()[0] == neuron
    assert neurons.null_space_candidates()[0] == neuron
    assert neurons.null_share[neuron] == pytest.approx(1, abs=1e-3)
    assert neurons.logit_var[neuron] < 1e-6


def test_planted_entropy_neuron_acts_through_the_norm_alone() -> None:
    model, neuron = plant(size=30.0)
    others = matched_neurons(np.arange(48.0), [neuron], each=5, seed=0)
    effects = ablation_effects(model, [neuron, *others], TEXTS)
    assert effects.direct[:, 0] == pytest.approx(np.zeros(3), abs=1e-5)
    assert effects.total[:, 0].min() > 1e-3
    assert (effects.direct[:, 1:] > 1e-4).all()


def test_more_in_the_null_space_means_less_sure() -> None:
    """A larger constant part in the null space shrinks all that the unembedding reads: entropy rises monotonically."""
    model, _ = plant()
    stream = torch.randn(20, model.d_model, generator=torch.Generator().manual_seed(2))
    read = model.unembedding * model.final_norm_gain
    null = torch.linalg.svd(read.double())[2][-1].float()
    free = stream - (stream @ null)[:, None] * null
    entropies = []
    for size in (0.0, 2.0, 5.0, 12.0):
        law = model.unembed(free + size * null).log_softmax(-1)
        entropies.append(-(law.exp() * law).sum(-1))
    for lower, higher in pairwise(entropies):
        assert (higher > lower).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "granite", "cohere", "opt", "falcon"])
def test_ablation_equals_an_ablated_model(family: str) -> None:
    """Total effect: the same network with that neuron's activation replaced by its mean in the down projection."""
    model = tiny(family)
    neuron = 5
    down = model.anatomy.down_projection(model.n_layers - 1)
    batches = [model.tokenize([text]) for text in TEXTS]
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    clean = [model.run(tokens, logits="all")[0].double() for tokens in batches]
    handle.remove()
    mean = torch.cat(seen)[:, neuron].mean()

    def ablate(_: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        changed = args[0].clone()
        changed[..., neuron] = mean
        return (changed,)

    handle = down.register_forward_pre_hook(ablate)
    ablated = [model.run(tokens, logits="all")[0].double() for tokens in batches]
    handle.remove()

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        law = logits.log_softmax(-1)
        return -(law.exp() * law).sum(-1)

    expected = [float((entropy(b) - entropy(a)).mean()) for a, b in zip(clean, ablated, strict=True)]
    found = ablation_effects(model, [neuron], TEXTS)
    assert found.signed[:, 0] == pytest.approx(expected, abs=2e-5)
    assert (found.total[:, 0] >= np.abs(found.signed[:, 0]) - 1e-9).all()


def test_a_norm_after_the_mlp_is_refused() -> None:
    with pytest.raises(ValueError, match="a norm after the MLP"):
        ablation_effects(tiny("gemma2"), [0], TEXTS)


def test_published_rule_and_overlap() -> None:
    """Lists published for Llama-3.1-8B: eight of ten shared, overlap 8 / 12."""
    base = [12111, 993, 207, 2287, 8677, 10510, 1852, 11184, 12664, 8775]
    instruct = [12111, 993, 207, 2287, 8677, 5463, 1852, 10510, 9032, 11184]
    assert iou(base, instruct) == pytest.approx(8 / 12)
    assert iou(base, base[::-1]) == 1
    assert math.isnan(iou([], []))
    norm = np.arange(100.0)
    neurons = Neurons(0, norm, -norm, norm)
    assert neurons.eligible().sum() == 25
    assert neurons.candidates() == list(range(99, 89, -1))
    assert Neurons(0, norm, norm, norm).candidates() == list(range(75, 85))
    assert lowest(np.zeros(5), np.array([False, True, True, True, False]), 2) == [1, 2]


def test_matched_neurons_are_near_in_norm_and_never_candidates() -> None:
    norm = np.linspace(1, 2, 200)
    picked = matched_neurons(norm, [10, 190], each=4, seed=0)
    assert len(set(picked)) == 8
    assert not {10, 190} & set(picked)
    assert all(abs(number - 10) < 20 for number in picked[:4])
    assert all(abs(number - 190) < 20 for number in picked[4:])
