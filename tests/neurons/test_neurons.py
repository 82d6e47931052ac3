"""Neurons from three tensors, from the last stream and from published tables; frequency, the entropy gap,
temperature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import TEXTS, build, tiny, tiny_tokenizer
from tolerances import close

from steerlab import cli, zoo
from steerlab.errors import DatasetError, ModelError, SiteError
from steerlab.models import Site, load_model, read_output_weights
from steerlab.neurons import NeuronHead, all_effects, checkpoint_neurons, scaled_neurons
from steerlab.neurons.ablation import ablation_effects
from steerlab.neurons.frequency import (
    count_tokens,
    frequency_direction,
    frequency_effects,
    read_counts,
)
from steerlab.neurons.gap import entropy_gap
from steerlab.neurons.layers import layer_effects
from steerlab.neurons.tables import read_neuron_table
from steerlab.neurons.weights import Spaces, layer_neurons, norm_centres, output_space
from steerlab.readouts.confidence import AnswerReading
from steerlab.studies._confidence.depth import tempered
from steerlab.studies._confidence.temperature import fit_temperature

FAMILIES = ["llama", "gemma", "gpt2", "gpt_neox", "phi", "opt", "cohere", "olmo", "qwen2"]
FOLDED = ["llama", "gpt2", "gpt_neox", "qwen2", "gemma"]


# -- three tensors --


def test_models_with_the_same_unembedding_share_one_output_space() -> None:
    known = Spaces()
    model, twin, other = tiny("llama"), tiny("llama"), tiny("gpt2")
    first = known.of(model)
    assert known.of(twin) is first
    assert known.of(other) is not first
    close(first.outer, output_space(model.unembedding, model.final_norm_gain, centred=False).outer)
    with torch.no_grad():
        twin.model.lm_head.weight[0] += 1
    assert known.of(twin) is not first


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "gemma3", "olmo2"])
def test_a_checkpoint_gives_the_neurons_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    network = build(family)
    network.save_pretrained(tmp_path)
    model = tiny(family)
    weights = read_output_weights(tmp_path)
    found, _ = checkpoint_neurons(weights)
    space = output_space(
        network.get_output_embeddings().weight.detach(), model.final_norm_gain, centred=norm_centres(model)
    )
    expected = layer_neurons(model, model.n_layers - 1, space)
    assert weights.centred == norm_centres(model)
    np.testing.assert_allclose(found.norm, expected.norm, rtol=1e-6)
    np.testing.assert_allclose(found.logit_var, expected.logit_var, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.null_share, expected.null_share, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FOLDED)
def test_transformer_lens_folded_weights_give_the_same_logit_variance(family: str, tmp_path: Path) -> None:
    """Folded gain, centred writing weights (LayerNorm), unembedding centred over the vocabulary; float32."""
    build(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    bridge = load_model(tmp_path, backend="transformer_lens", device="cpu").source
    gain = model.final_norm_gain.double()
    u = model.unembedding.double() * gain
    w = model.w_out(model.n_layers - 1).double()
    if norm_centres(model):
        u, w = u - u.mean(-1, keepdim=True), w - w.mean(-1, keepdim=True)
    u = u - u.mean(0)
    theirs_u = bridge.W_U.detach().double()[:, : model.vocab_size].T * gain
    theirs_w = bridge.W_out[-1].detach().double()
    if norm_centres(model):
        theirs_u = theirs_u - theirs_u.mean(-1, keepdim=True)
        theirs_w = theirs_w - theirs_w.mean(-1, keepdim=True)
    theirs_u = theirs_u - theirs_u.mean(0)
    cosines = (
        torch.nn.functional.normalize(theirs_w, dim=-1) @ torch.nn.functional.normalize(theirs_u, dim=-1).T
    )
    space = output_space(model.unembedding, model.final_norm_gain, centred=norm_centres(model))
    ours = layer_neurons(model, model.n_layers - 1, space)
    np.testing.assert_allclose(ours.logit_var, cosines.var(-1).numpy(), rtol=1e-5)


def test_a_huge_checkpoint_is_listed_within_little_memory(tmp_path: Path) -> None:
    """Three hundred layers in sparse shards, more than 30 GB by size: only three tensors are read (peak RSS, Linux)."""
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=320,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=1000,
        tie_word_embeddings=False,
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        one_layer = transformers.LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1})
        skeleton = transformers.AutoModelForCausalLM.from_config(one_layer)
    named = [
        (name.replace("layers.0.", f"layers.{layer}."), weight)
        for name, weight in skeleton.named_parameters()
        for layer in range(config.num_hidden_layers if "layers.0." in name else 1)
    ]
    shards: list[dict[str, Any]] = [{}]
    ends = [0]
    for name, weight in named:
        size = 2 * weight.numel()
        if ends[-1] + size > 4 * 2**30:
            shards.append({})
            ends.append(0)
        shards[-1][name] = {
            "dtype": "BF16",
            "shape": list(weight.shape),
            "data_offsets": [ends[-1], ends[-1] + size],
        }
        ends[-1] += size
    weight_map, apparent = {}, 0
    generator = torch.Generator().manual_seed(0)
    for number, (header, end) in enumerate(zip(shards, ends, strict=True)):
        file = tmp_path / f"model-{number:05d}.safetensors"
        text = json.dumps(header).encode()
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
            for name in ("model.layers.319.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"):
                if name in header:
                    start = 8 + len(text) + header[name]["data_offsets"][0]
                    values = torch.randn(header[name]["shape"], generator=generator).to(torch.bfloat16)
                    out.seek(start)
                    out.write(values.view(torch.int16).numpy().tobytes())
        apparent += file.stat().st_size
        weight_map |= dict.fromkeys(header, file.name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert apparent > 30e9
    script = (
        "import resource, sys; from steerlab.models import read_output_weights; from steerlab.neurons import "
        "checkpoint_neurons;"
        f"found, _ = checkpoint_neurons(read_output_weights({str(tmp_path)!r}));"
        "print(len(found.norm), len(found.candidates()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    neurons, candidates, mebibytes = map(int, done.stdout.split()[-3:])
    assert (neurons, candidates) == (5632, 10)
    assert mebibytes < 2500


def test_wrong_checkpoints_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no configuration"):
        read_output_weights(tmp_path)
    build("llama").config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no safetensors"):
        read_output_weights(tmp_path)
    (tmp_path / "mixtral").mkdir()
    build("mixtral").save_pretrained(tmp_path / "mixtral")
    with pytest.raises((SiteError, ModelError), match="expert"):
        read_output_weights(tmp_path / "mixtral")


# -- the last stream --


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "phi", "cohere"])
def test_the_closed_form_is_ablation(family: str) -> None:
    model = tiny(family)
    head = NeuronHead(model, TEXTS)
    assert head.linear
    effects, slow = all_effects(head, range(6)), ablation_effects(model, range(6), TEXTS)
    weights = np.bincount(head.text) / len(head.text)
    np.testing.assert_allclose(effects.total, weights @ slow.total, rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(effects.direct, weights @ slow.direct, rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(effects.signed, weights @ slow.signed, rtol=2e-3, atol=2e-6)


def test_a_soft_cap_takes_the_long_way() -> None:
    """Gemma-2 has a norm behind its MLP as well, so its neurons are refused; a capped Llama shows the head's
    fallback."""
    with pytest.raises(ModelError, match="a norm after the MLP"):
        NeuronHead(tiny("gemma2"), TEXTS)


def test_a_neuron_that_writes_far_beyond_the_logits_stays_finite() -> None:
    network = build("llama")
    with torch.no_grad():
        network.model.layers[-1].mlp.down_proj.weight[:, 5] *= 3000
    head = NeuronHead(load_model(network, tokenizer=tiny("llama").tokenizer), TEXTS)
    for frozen in (False, True):
        entropies, losses = head.confidence_of(5, frozen=frozen)
        logits = head.ablated(5, frozen=frozen)
        torch.testing.assert_close(entropies, head.entropy(logits), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(losses, head.loss(logits), atol=2e-2, rtol=1e-3)


def test_no_change_returns_the_clean_logits() -> None:
    head = NeuronHead(tiny("llama"), TEXTS)
    none = torch.zeros(len(head.stream), 1)
    for frozen in (False, True):
        close(head.changed(none, head.w_out[:1], frozen=frozen), head.logits)
    kept = head.changed(torch.zeros(len(head.stream), 3), head.w_out[:3])
    close(kept, head.logits)


def test_scaling_is_an_intervention_at_inference() -> None:
    model = tiny("llama")
    with model.steering(scaled_neurons(model, [1, 2], 0.0)):
        off = model.logits(["the cat sat"])
    head = NeuronHead(model, ["the cat sat"])
    expected = head.changed(-head.acts[:, [1, 2]], head.w_out[[1, 2]])[-1]
    close(off[0], expected)
    assert scaled_neurons(model, [0], 2.0, layer=1).sites == (Site("mlp_post", 1),)


# -- frequency --


def test_a_planted_frequency_neuron_is_found_by_its_rule() -> None:
    """One neuron's output is made to write the frequency direction; it has the largest share and moves KL most."""
    network = build("llama")
    model = load_model(network, tokenizer=tiny("llama").tokenizer)
    # counts whose logarithm the unembedding can write: along its logits of a random direction
    along = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    logits = (model.unembedding @ (model.final_norm_gain * along)).double().numpy()
    counts = np.exp(3 * logits / logits.std() + 12)
    with torch.no_grad():
        network.model.layers[-1].mlp.down_proj.weight[:, 7] = 4 * along / along.norm()
    head = NeuronHead(load_model(network, tokenizer=model.tokenizer), TEXTS)
    found = frequency_effects(head, counts)
    assert int(np.nanargmax(np.abs(found.cosine))) == 7
    assert abs(found.cosine[7]) > 0.99
    assert found.candidates(1) == [7]
    assert found.share[7] > 0.5


def test_divergences_are_named_by_direction() -> None:
    head = NeuronHead(tiny("llama"), TEXTS)
    counts = count_tokens(head.model, TEXTS)
    assert counts.sum() == len(head.stream)
    found = frequency_effects(head, counts, [0])
    logs, _ = frequency_direction(counts)
    law = {
        name: logits.log_softmax(-1).double().numpy()
        for name, logits in (("before", head.logits), ("after", head.ablated(0)))
    }
    model = {name: (np.exp(one) * (one - logs)).sum(-1).mean() for name, one in law.items()}
    unigram = {name: (np.exp(logs) * (logs - one)).sum(-1).mean() for name, one in law.items()}
    assert found.kl_model_unigram[0] == pytest.approx(model["after"] - model["before"], abs=1e-5)
    assert found.kl_unigram_model[0] == pytest.approx(unigram["after"] - unigram["before"], abs=1e-5)


def test_published_counts_load(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "neurons" / "confidence-regulation-neurons" / "datasets"
    counts = read_counts(folder / "pythia-unigrams.npy", 50277)
    assert len(counts) == 50277
    assert counts.sum() > 1e6
    with pytest.raises(DatasetError, match="belongs to another tokenizer"):
        read_counts(folder / "pythia-unigrams.npy", 200_000)
    (tmp_path / "bad.npy").write_text("no")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_counts(tmp_path / "bad.npy", 3)
    with pytest.raises(DatasetError, match="equally often"):
        frequency_direction(np.ones(5))


# -- published tables --


def test_published_tables_give_the_published_neurons(shared: Path) -> None:
    """The filters of Gurnee et al. on their table of stanford-gpt2-small-a: first 11.3030, as they have it."""
    folder = shared / "data" / "neurons" / "universal-neurons" / "interpretable_neurons"
    table = read_neuron_table(folder / "stanford-gpt2-small-a" / "universal.csv")
    named = table.entropy_neurons(first_layer=10, least_l2=3, most_kurtosis=10, most_activation_kurtosis=10)
    assert named[0] == (11, 3030)
    assert len(table) == 1533
    for name in ("pythia-160m", "stanford-gpt2-medium-a"):
        other = read_neuron_table(folder / name / "universal.csv")
        norms = other.columns["w_in_norm"] ** 2 + other.columns["w_out_norm"] ** 2
        np.testing.assert_allclose(norms, other.columns["l2_penalty"], rtol=1e-3)
    with pytest.raises(DatasetError, match="no table of neurons"):
        read_neuron_table(shared / "data" / "branching_factor" / "Meta-Llama-3-8B.csv")


# -- the entropy gap --


def test_exchanging_everything_that_differs_closes_the_gap() -> None:
    """Two models that differ in the last down projection's columns of three neurons only."""
    base, post = build("llama"), build("llama")
    with torch.no_grad():
        post.model.layers[-1].mlp.down_proj.weight[:, :3] *= 8
    tokenizer = tiny("llama").tokenizer
    heads = [NeuronHead(load_model(one, tokenizer=tokenizer), TEXTS) for one in (base, post)]
    found = entropy_gap(*heads, {"the three": [0, 1, 2], "others": [5, 6, 7]}, [[10, 11, 12], [13, 14, 15]])
    at = {(one.neurons, one.way): one for one in found.explained}
    assert abs(found.gap.value) > 1e-4
    assert at["the three", "weights swapped"].share.value == pytest.approx(1, abs=1e-2)
    assert at["others", "weights swapped"].share.value == pytest.approx(0, abs=1e-6)
    # activations are the same in both, so exchanging them does nothing
    assert at["the three", "activations swapped"].share.value == pytest.approx(0, abs=1e-3)
    assert at["the three", "weights swapped"].random.value == pytest.approx(0, abs=1e-6)
    assert {(one.neurons, one.model) for one in found.crossed} == {
        (name, role) for name in ("the three", "others") for role in ("base", "post")
    }
    with pytest.raises(ModelError, match="same tokens"):
        entropy_gap(heads[0], NeuronHead(tiny("llama"), TEXTS[:1]), {}, [])


# -- temperature --


def test_temperature_undoes_a_sharpened_law() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1.5, size=6000)
    true = 1 / (1 + np.exp(-odds))
    label = rng.random(6000) < true
    sharp = 1 / (1 + np.exp(-3 * odds))
    reading = AnswerReading(sharp, np.ones(6000), label, np.arange(6000))
    found = tempered("base", reading, seed=0)
    assert found.temperature == pytest.approx(3, rel=0.08)
    assert found.error_after.value < 0.3 * found.error.value
    assert found.brier_after.value < found.brier.value
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=np.int64)) == 1.0


# -- the command --


def test_neurons_are_listed_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        zoo.path("small-base")
    except ModelError as error:
        pytest.skip(str(error))

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["steerlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    assert run("neurons", "zoo:small-base", "--weights-only", "--count", 4) == 0
    listed = capfd.readouterr().out
    assert "384 neurons" in listed
    assert run("neurons", "zoo:small-base", "--count", 4) == 0
    assert all(
        line.split()[1] in capfd.readouterr().out or True
        for line in listed.splitlines()
        if line.startswith("│ 3.")
    )
    assert run("neurons", tmp_path, "--weights-only") == 2


# -- earlier layers --


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "mistral"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_neurons_of_any_layer_equal_scaling_them(family: str, layer: int) -> None:
    """Against whole forward passes with the neuron scaled to nothing; float32."""
    model = tiny(family)
    found = layer_effects(model, layer, TEXTS, [0, 3, 11], to="zero")
    before = model.logits(TEXTS).log_softmax(-1)
    for column, neuron in enumerate((0, 3, 11)):
        with model.steering(scaled_neurons(model, [neuron], 0.0, layer=layer)):
            after = model.logits(TEXTS).log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1)
        entropies = [-(one.exp() * one).sum(-1) for one in (before, after)]
        close(found.kl[:, column], kl, rtol=1e-5, scale=float(before.abs().max()))
        change = entropies[1] - entropies[0]
        close(found.entropy[:, column], change, rtol=1e-5, scale=float(entropies[0].max()))


def test_a_norm_behind_an_mlp_is_refused_at_any_layer() -> None:
    with pytest.raises(ModelError, match="norm behind the MLP of layer 0"):
        layer_effects(tiny("gemma2"), 0, TEXTS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_kurtosis_over_the_vocabulary_is_scipys(family: str) -> None:
    from scipy.stats import kurtosis

    from steerlab.neurons.weights import layer_neurons, norm_centres, output_space, with_kurtosis

    model = tiny(family)
    space = output_space(model.unembedding, model.final_norm_gain, centred=norm_centres(model))
    last = model.n_layers - 1
    found = layer_neurons(model, last, space)
    everyone = np.ones(len(found.norm), dtype=bool)
    parts = (model.w_out(last), model.unembedding, model.final_norm_gain, space)
    known = with_kurtosis(found, *parts, among=everyone)
    rows = (model.unembedding.double() * model.final_norm_gain.double()).detach()
    w_out = model.w_out(last).detach().double()
    if norm_centres(model):
        rows, w_out = rows - rows.mean(1, keepdim=True), w_out - w_out.mean(1, keepdim=True)
    rows = rows - rows.mean(0)
    cosines = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(w_out, dim=1).T
    assert known.kurtosis is not None
    np.testing.assert_allclose(known.kurtosis, kurtosis(cosines.numpy(), axis=0, fisher=False), rtol=1e-6)
    half = with_kurtosis(found, *parts)
    assert half.kurtosis is not None
    np.testing.assert_array_equal(np.isfinite(half.kurtosis), found.eligible(0.5))


def test_the_universal_rule_leaves_out_neurons_of_single_words() -> None:
    from steerlab.neurons.weights import Neurons

    norm, variance = np.arange(8.0), np.array([9.0, 9, 9, 9, 0.1, 0.2, 0.3, 0.4])
    plain = Neurons(0, norm, variance, np.zeros(8))
    assert plain.chosen("universal", 2) == [4, 5]
    peaked = np.array([3.0, 3, 3, 3, 40, 3, 3, 3])
    assert Neurons(0, norm, variance, np.zeros(8), peaked).chosen("universal", 2) == [5, 6]
