"""Weights read for neuron work, site names, and the progress bar."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st
from tolerances import close

from steerlab import progress
from steerlab.models import LanguageModel, Site, SiteError
from steerlab.models.sites import LAYER_SITES, MODEL_SITES


def test_the_gain_of_a_norm_of_odd_width() -> None:
    from steerlab.models.weights import norm_gain

    norm = torch.nn.LayerNorm(7)
    norm.weight.data = torch.linspace(0.5, 2, 7)
    norm.bias.data = torch.randn(7)
    found = norm_gain(norm, 7, torch.device("cpu"), torch.float32)
    close(found, norm.weight.detach())


def test_output_weights_have_one_row_a_neuron(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    for model in (tiny_llama, tiny_gpt2):
        neurons: list[torch.Tensor] = []
        output: list[torch.Tensor] = []
        tokens = model.tokenize(["The capital of France"])
        model.run(tokens, read={Site("mlp_post", 1): neurons.append, Site("mlp_out", 1): output.append})
        down = model.anatomy.down_projection(1)
        bias = down.bias if getattr(down, "bias", None) is not None else 0
        assert model.w_out(1).shape == (model.d_mlp, model.d_model)
        close(neurons[0] @ model.w_out(1) + bias, output[0])


def test_mixtures_have_no_output_weights() -> None:
    model = tiny("mixtral")
    assert model.d_mlp == 48
    with pytest.raises(SiteError, match="mixture of experts"):
        model.w_out(0)
    with pytest.raises(SiteError, match="mixture of experts"):
        model.sites("mlp_post")
    mixed = tiny("qwen3_moe")
    assert mixed.sites("mlp_post") == [Site("mlp_post", 1)]
    assert mixed.w_out(1).shape == (48, 32)


def test_padded_rows_of_the_vocabulary_are_dropped(tiny_llama: LanguageModel) -> None:
    assert tiny_llama.model.lm_head.weight.shape[0] == 320
    assert tiny_llama.unembedding.shape == (300, 32)
    assert tiny_llama.unembed(torch.zeros(2, 5, 32)).shape == (2, 5, 300)
    assert tiny_llama.logits(["Rome"]).shape == (1, 300)


sites = st.one_of(
    st.builds(Site, st.sampled_from(LAYER_SITES), st.integers(0, 99)),
    st.builds(Site, st.sampled_from(MODEL_SITES)),
)


@given(site=sites)
def test_sites_are_written_and_read_back(site: Site) -> None:
    assert Site.parse(str(site)) == site


@given(one=sites, other=sites)
def test_sites_sort_in_the_order_of_the_forward_pass(one: Site, other: Site) -> None:
    assert (one < other) + (other < one) + (one == other) == 1
    assert Site("embed") <= one <= Site("ln_final_in")


@pytest.mark.parametrize(
    "text", ["resid", "resid_post", "resid_post.x", "resid_post.-1", "embed.0", "resid_post.1.2", ""]
)
def test_wrong_sites_are_sentences(text: str) -> None:
    with pytest.raises(SiteError):
        Site.parse(text)


def test_asking_for_sites(tiny_llama: LanguageModel) -> None:
    assert tiny_llama.sites("attn_out", [0, -1]) == [Site("attn_out", 0), Site("attn_out", 2)]
    assert tiny_llama.sites("embed") == [Site("embed")]
    with pytest.raises(SiteError, match="layers 0 to 2"):
        tiny_llama.sites("z", [3])
    with pytest.raises(SiteError, match="not a Site"):
        tiny_llama.require("resid_post.1")  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="parallel"):
        tiny("gptj").sites("resid_mid")


def test_progress_is_silent_unless_watched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEERLAB_PROGRESS", raising=False)
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("STEERLAB_PROGRESS", "1")
    assert list(progress.track(iter(range(3)), "counting", total=3)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting" in shown.err
