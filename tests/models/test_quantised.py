"""Quantised models: what they compute is transformers' own, and their weights are read as the numbers they act as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import build, tiny_tokenizer
from torch import Tensor

import steerlab as sl
from steerlab.errors import ModelError, SteeringError

TEXTS = ["The capital of France is", "Is a cat an animal?"]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose sizes every packing takes."""
    place = tmp_path_factory.mktemp("plain")
    build("llama", **SIZES).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def torchao(kind: str) -> Any:
    package = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(getattr(package, kind)())


def bitsandbytes(bits: int) -> Any:
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})


def by_torchao(weight: Any) -> Tensor:
    dequantised: Tensor = weight.dequantize()
    return dequantised


def by_rows(weight: Any) -> Tensor:
    """LLM.int8(): a row's numbers in 127ths of its largest."""
    closed_form: Tensor = weight.data.float() * weight.SCB[:, None] / 127
    return closed_form


def by_bitsandbytes(weight: Any) -> Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    dequantised: Tensor = dequantize_bnb_weight(weight)
    return dequantised


WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor], str, float]] = {
    "int8": (lambda: torchao("Int8WeightOnlyConfig"), by_torchao, "torchao Int8WeightOnlyConfig", 0.0),
    "int8, states too": (
        lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
        by_torchao,
        "torchao Int8DynamicActivationInt8WeightConfig",
        0.0,
    ),
    "bnb 8": (lambda: bitsandbytes(8), by_rows, "bitsandbytes 8-bit", 2e-3),  # computed in float16
    "bnb 4": (lambda: bitsandbytes(4), by_bitsandbytes, "bitsandbytes 4-bit", 8e-3),  # in bfloat16
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_model_is_transformers_own(way: str, folder: Path) -> None:
    config, dequantised, named, tolerance = WAYS[way]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config())
    rows = [dequantised(theirs.model.layers[1].mlp.down_proj.weight).T]
    model = sl.load(folder, quantization_config=config())
    assert model.stored_as == named
    tokens = model.tokenize(TEXTS)
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    with torch.no_grad():
        right = theirs(**given, position_ids=tokens.position_ids, output_hidden_states=True, use_cache=False)
    real = tokens.attention_mask.bool()
    logits = model.run(tokens, logits="all")
    assert logits is not None
    torch.testing.assert_close(logits[real], right.logits[real][:, :300], rtol=1e-4, atol=1e-4)
    states: list[Tensor] = []
    model.run(tokens, read={sl.Site("resid_pre", 2): lambda state: states.append(state.clone())})
    torch.testing.assert_close(states[0][real], right.hidden_states[2][real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.w_out(1), rows[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(model.unembedding, theirs.lm_head.weight[:300])
    assert (model.d_mlp, model.width("mlp_post.1"), model.vocab_size) == (128, 128, 300)
    written = theirs.generate(
        **given, max_new_tokens=4, do_sample=False, pad_token_id=1, suppress_tokens=list(range(300, 320))
    )
    for mine, own in zip(model.generate(TEXTS, max_new_tokens=4), written.tolist(), strict=True):
        assert list(mine.token_ids) == own[tokens.width :][: len(mine.token_ids)]
    _ablates_and_refuses_to_bake(model, named)


def _ablates_and_refuses_to_bake(model: sl.LanguageModel, named: str) -> None:
    vectors = {sl.Site("resid_post", 1): torch.linspace(-1, 1, 64)}
    edit = sl.Ablate(sl.Direction(vectors, model.name, model.fingerprint))
    unit = torch.nn.functional.normalize(vectors[sl.Site("resid_post", 1)], dim=0)
    with model.steering(edit):
        found = sl.capture(model, TEXTS, "resid_post.2")["resid_post.2"]
    assert float((found @ unit).abs().max()) < 1e-4 * float(found.abs().max())
    with pytest.raises(SteeringError, match=rf"is quantised \({named}\).*load it in bfloat16"):
        sl.steering.bake(model, edit)


def test_a_live_model_with_all_of_it_quantised() -> None:
    ao = pytest.importorskip("torchao.quantization")
    network = build("llama")
    ao.quantize_(network, ao.Int8WeightOnlyConfig())
    model = sl.load(network, tiny_tokenizer())
    assert model.stored_as == "torchao Int8Tensor"
    assert torch.equal(model.unembedding, network.lm_head.weight.dequantize()[:300])
    assert torch.equal(model.w_out(2), network.model.layers[2].mlp.down_proj.weight.dequantize().T)
    ids = model.tokenize(TEXTS[0]).input_ids
    with torch.no_grad():
        right = network(ids, use_cache=False).logits[0, -1, :300]
    torch.testing.assert_close(model.logits(TEXTS[0])[0], right, rtol=1e-4, atol=1e-4)
    assert model.fingerprint != sl.load(build("llama"), tiny_tokenizer()).fingerprint
    assert "is quantised" in sl.steering.why_not_baked(model)


def test_a_saved_quantised_model_is_the_one_that_was_saved(folder: Path, tmp_path: Path) -> None:
    model = sl.load(folder, quantization_config=torchao("Int8WeightOnlyConfig"))
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = sl.load(tmp_path)
    assert again.stored_as == model.stored_as
    torch.testing.assert_close(again.logits(TEXTS), model.logits(TEXTS))
    assert again.fingerprint == model.fingerprint


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptqmodel optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_a_package_that_is_missing_is_named(
    settings: dict[str, Any],
    package: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    from transformers.quantizers import quantizer_awq, quantizer_bnb_4bit, quantizer_compressed_tensors

    for module, name in (
        (quantizer_awq, "is_gptqmodel_available"),
        (quantizer_bnb_4bit, "is_bitsandbytes_available"),
        (quantizer_compressed_tensors, "is_compressed_tensors_available"),
    ):
        monkeypatch.setattr(module, name, lambda *_: False)
    place = tmp_path / "packed"
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(ModelError, match=f"quantised with {settings['quant_method']}.*pip install {package}"):
        sl.load(place)
