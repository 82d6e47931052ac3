"""`steerlab doctor PATH`: of every kind of checkpoint, what it is, what works, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from families import build, tiny_tokenizer
from gguf_maker import write_gguf
from multimodal import build_wrapper
from test_cli import run

import steerlab as sl
from steerlab.cli.doctor import checkpoint_facts


def plain(place: Path, family: str = "llama") -> Path:
    build(family).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def tuned(network: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))


def adapter(place: Path) -> Path:
    base = transformers.AutoModelForCausalLM.from_pretrained(plain(place / "base"))
    tuned(base).save_pretrained(place / "adapter")
    return place / "adapter"


def adapter_of_nothing(place: Path) -> Path:
    found = adapter(place)
    shutil.rmtree(place / "base")
    return found


def multimodal(kind: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        build_wrapper(kind).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
        return place

    return make


def parts(place: Path) -> Path:
    write_gguf(place / "tiny.gguf", tensors_a_part=16)
    return place


def a_part_alone(place: Path) -> Path:
    parts(place)
    (place / "tiny-00002-of-00003.gguf").unlink()
    return place


def one_file(place: Path) -> Path:
    write_gguf(place / "tiny.gguf")
    return place / "tiny.gguf"


def int8(place: Path) -> Path:
    ao = pytest.importorskip("torchao.quantization")
    config = transformers.TorchAoConfig(ao.Int8WeightOnlyConfig())
    model = sl.load(plain(place / "plain"), quantization_config=config)
    model.model.save_pretrained(place / "int8")
    model.tokenizer.save_pretrained(place / "int8")
    return place / "int8"


def for_a_package_that_is_missing(place: Path) -> Path:
    config = json.loads((plain(place) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (place / "config.json").write_text(json.dumps(config))
    return place


LOADED: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "a folder": (plain, ["family LlamaForCausalLM", "stored as plain weights", "neurons yes", "baking yes"]),
    "a post-norm family": (
        lambda place: plain(place, "gemma2"),
        ["baking no: What the attention", "steer with hooks"],
    ),
    "mixers": (
        lambda place: plain(place, "mamba"),
        ["3 with a mixer besides attention", "neurons no: every layer's MLP is a mixture"],
    ),
    "an adapter": (adapter, ["stored as LORA, merged", "baking yes"]),
    "a GGUF file": (one_file, ["family Qwen2ForCausalLM", "stored as GGUF F32, dequantised", "baking yes"]),
    "a GGUF file in parts": (parts, ["stored as GGUF F32 in 3 parts, dequantised"]),
    "a multimodal model": (
        multimodal("llava"),
        ["the text part of a LlavaForConditionalGeneration", "no: it runs on text alone", "baking yes"],
    ),
    "its text part by itself": (
        multimodal("qwen3_5"),
        ["Qwen3_5ForCausalLM, the text part of a Qwen3_5ForConditionalGeneration"],
    ),
    "a quantised model": (
        int8,
        ["stored as torchao Int8WeightOnlyConfig", "neurons yes, as the numbers", "load it in bfloat16"],
    ),
}
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an adapter without its base": (adapter_of_nothing, "base"),
    "a part of a GGUF file": (a_part_alone, "tiny-00002-of-00003.gguf is not beside it"),
    "quantised, without what reads it": (for_a_package_that_is_missing, "pip install gptqmodel optimum"),
}


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("kind", LOADED)
def test_doctor_says_what_it_is_and_what_works(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    make, said = LOADED[kind]
    assert run("doctor", make(tmp_path), monkeypatch=monkeypatch) == 0
    shown = words(capfd.readouterr().out)
    assert [each for each in (*said, "reading, steering, ablation yes") if each not in shown] == []
    assert "FAILS" not in shown


@pytest.mark.parametrize("kind", REFUSED)
def test_doctor_says_what_to_do(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make, said = REFUSED[kind]
    assert run("doctor", make(tmp_path), monkeypatch=monkeypatch) == 2
    assert said in words(capfd.readouterr().err)


def test_an_adapter_is_put_on_the_base_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = adapter_of_nothing(tmp_path)
    base = plain(tmp_path / "elsewhere")
    assert run("doctor", place, "--base", base, monkeypatch=monkeypatch) == 0
    assert "LORA, merged" in capfd.readouterr().out


def test_a_live_model_has_the_same_facts(tmp_path: Path) -> None:
    live = checkpoint_facts(sl.load(tuned(build("llama")), tiny_tokenizer()))
    assert live["baking"].startswith("no: model.layers.0.self_attn.o_proj has an adapter on it")
    tokenizer = plain(tmp_path)
    bridged = checkpoint_facts(sl.load(build("llama"), tokenizer, backend="transformer_lens"))
    assert bridged["runs in"].startswith("transformer_lens, float32")
    assert "load the model with backend='transformers'" in bridged["baking"]
    assert checkpoint_facts(sl.load(build("llama"), tiny_tokenizer()))["baking"] == "yes"
