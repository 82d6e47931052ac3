"""Entropy neurons against direct computation and planted ones, calibration against closed forms, the study on pairs."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

sys.path.insert(0, str(Path(__file__).parent))

import planted_models
from families import TEXTS, tiny

from steerlab import datasets, zoo
from steerlab.errors import ModelError, PromptError
from steerlab.models import LanguageModel, load
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
from steerlab.readouts.confidence import calibration, fitting, read_answers, read_texts
from steerlab.readouts.questions import plan
from steerlab.results import result_from_dict
from steerlab.studies import confidence
from steerlab.studies._confidence.changes import _change
from steerlab.studies._confidence.result import ConfidenceResult

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


@pytest.fixture(scope="module")
def bundled_pair() -> tuple[LanguageModel, LanguageModel]:
    try:
        return load(zoo.path("small-base")), load(zoo.path("small-post"))
    except ModelError as error:
        pytest.skip(str(error))


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


# -- weights --


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


# -- confidence itself --


def test_texts_are_read_as_a_plain_forward_reads_them(tiny_gpt2: LanguageModel) -> None:
    reading = read_texts(tiny_gpt2, TEXTS, seed=0, description="")
    at = 0
    for number, text in enumerate(TEXTS):
        ids = tiny_gpt2.tokenize([text]).input_ids
        logits = tiny_gpt2.model(ids).logits[0, :-1, : tiny_gpt2.vocab_size].detach().double()
        law = logits.log_softmax(-1)
        here = slice(at, at + len(law))
        at += len(law)
        assert (reading.text[here] == number).all()
        assert reading.entropy[here] == pytest.approx(-(law.exp() * law).sum(-1).numpy(), abs=1e-4)
        assert reading.loss[here] == pytest.approx(-law[torch.arange(len(law)), ids[0, 1:]].numpy(), abs=1e-4)
        assert reading.p_max[here] == pytest.approx(law.max(-1).values.exp().numpy(), abs=1e-4)
    assert at == len(reading.text)
    assert reading.per_byte()[0] == pytest.approx(
        reading.entropy[reading.text == 0].sum() / len(TEXTS[0].encode())
    )


def test_calibration_closed_form() -> None:
    """One hundred answers at 0.9 with 70 right, one hundred at 0.6 with 60 right: 0.5 * 0.2 + 0.5 * 0."""
    sure = np.repeat([0.9, 0.6], 100)
    right = np.concatenate([np.arange(100) < 70, np.arange(100) < 60])
    found = calibration(sure, right, np.arange(200), seed=0)
    assert found.error.value == pytest.approx(0.1)
    assert found.adaptive.value == pytest.approx(0.1)
    assert found.floor.high < 0.1
    assert [(one.n, one.accuracy.value) for one in found.curve] == [(100, 0.6), (100, 0.7)]


def test_calibration_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 400)
    right = rng.random(400) < sure**2
    found = calibration(sure, right, np.arange(400), seed=0)
    share, mean = calibration_curve(right, sure, n_bins=10)
    assert [one.accuracy.value for one in found.curve] == pytest.approx(share.tolist())
    assert [one.confidence for one in found.curve] == pytest.approx(mean.tolist())
    counts = np.histogram(sure, bins=np.linspace(0, 1, 11))[0]
    assert found.error.value == pytest.approx((counts[counts > 0] / 400) @ np.abs(share - mean))
    assert found.error.value > found.floor.high


def test_change_and_its_control() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=80)
    moved = _change("x", "texts", base + 0.5 + 0.1 * rng.normal(size=80), base, None, 0)
    assert moved.identified
    same = _change("x", "texts", base + 0.1 * rng.normal(size=80), base, None, 0)
    assert not same.identified
    assert same.control.low < 0 < same.control.high
    clustered = _change("x", "answers", base, np.zeros(80), np.repeat(np.arange(2), 40), 0)
    assert len(np.unique([clustered.control.low, clustered.control.high])) == 2


def test_long_texts_are_cut_to_the_context(tiny_llama: LanguageModel) -> None:
    found = fitting([tiny_llama], ["word " * 200, "short text", " "])
    assert len(found) == 2
    assert tiny_llama.tokenize(found[:1]).lengths[0] <= 64


# -- the study --


def wellformed(result: ConfidenceResult) -> None:
    written = result.to_dict()
    assert result_from_dict(written).to_dict() == written
    assert {"text_confidence", "changes"} <= {table.key for table in result.tables()}
    figures = result.figures()
    assert {"text_confidence", "next_token_reliability"} <= set(figures)
    assert ("entropy_neurons" in figures) == bool(result.neurons.sets)
    assert all(sentence.endswith(".") for sentence in result.summary)
    assert result.plot() is not None


@pytest.mark.parametrize(("base", "post"), [("llama", "llama"), ("mixtral", "mixtral"), ("gpt2", "bloom")])
def test_random_pair_identifies_nothing(base: str, post: str) -> None:
    pair = tiny(base, seed=1), tiny(post, seed=2, chat=True)
    result = confidence(pair, datasets.statements(), plain_text=datasets.plain_text()[:12])
    wellformed(result)
    assert result.status == "not identified"
    assert not any(one.reads for one in result.texts)
    assert not result.neurons.specific
    notes = " ".join(result.neurons.notes)
    if base == "mixtral":
        assert "mixture of experts" in notes
        assert not result.neurons.sets
    if base == "gpt2":
        assert "d_mlp" in notes or "vocab" in notes
        assert not result.neurons.agreements


def test_stories_pair(shared: Path) -> None:
    base, post = (load(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local"))
    result = confidence((base, post), datasets.statements(), plain_text=datasets.plain_text()[:20])
    wellformed(result)
    assert result.status == "done"
    assert all(one.reads for one in result.texts)
    assert result.texts[0].loss.value < 4
    assert not result.answers  # " TRUE" is several tokens there
    assert "TRUE" in result.form
    overlap = {one.name: one.value for one in result.neurons.agreements}
    assert overlap["rank correlation of the norm, all neurons"].low > 0.9
    assert overlap["overlap of random neurons of like norm"].value < 0.4
    assert not result.neurons.specific


def test_a_model_against_itself_changes_nothing(shared: Path) -> None:
    model = load(shared / "models" / "stories260K")
    result = confidence((model, model), datasets.statements(), plain_text=datasets.plain_text()[:8])
    wellformed(result)
    assert result.status == "not identified"
    assert not any(one.identified for one in result.changes)
    assert result.neurons.agreements[0].value.value == 1


def test_answers_of_a_model_that_knows_and_of_one_that_does_not() -> None:
    made = planted_models.statements()
    texts = [one.text for one in made][:10]
    knows, guesses = planted_models.planted(), planted_models.planted(truth=False)
    result = confidence((knows, guesses), made, plain_text=texts)
    wellformed(result)
    base, post = result.answers
    assert base.above_chance
    assert base.accuracy.value > 0.95
    assert base.brier.value < 0.05
    assert not post.above_chance
    assert any("not identified for POST: accuracy at chance" in sentence for sentence in result.summary)
    table = next(table for table in result.tables() if table.key == "answer_confidence")
    assert table.rows[1][table.columns.index("calibration error")] == "not identified: at chance"
    assert not any("calibration" in one.what for one in result.changes if one.of == "answers")
    accuracy = next(one for one in result.changes if one.what == "accuracy on statements")
    assert accuracy.identified
    assert accuracy.value.high < 0


def test_answers_are_the_two_way_softmax() -> None:
    model, made = planted_models.planted(), planted_models.statements()
    chosen = plan(made, per_topic=10, held_out=2, seed=0)
    rows = np.arange(0, len(chosen.labels), 7)
    found = read_answers(model, chosen, rows, 0)
    for number, row in enumerate(rows):
        law = model.logits([chosen.statements[int(row)].text + " This statement is:"])[0].double().softmax(-1)
        true, false = (float(law[model.token_id(word)]) for word in (" TRUE", " FALSE"))
        assert found.p_true[number] == pytest.approx(true / (true + false), abs=1e-6)
        assert found.mass[number] == pytest.approx(true + false, abs=1e-6)
        assert found.confidence[number] == pytest.approx(max(true, false) / (true + false), abs=1e-6)


def test_bundled_pair(bundled_pair: tuple[LanguageModel, LanguageModel]) -> None:
    result = confidence(bundled_pair, zoo.statements(), plain_text=datasets.plain_text()[:20])
    wellformed(result)
    assert result.status == "done"
    assert all(one.above_chance for one in result.answers)
    assert len(result.neurons.sets) == 2
    assert result.neurons.agreements


def test_no_text_is_an_error(tiny_llama: LanguageModel) -> None:
    with pytest.raises(PromptError, match="two plain texts"):
        confidence((tiny_llama, tiny_llama), datasets.statements(), plain_text=["one text"])
