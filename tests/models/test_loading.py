"""Loading: what works, and one sentence for everything that cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import build, tiny_tokenizer

from steerlab.models import LanguageModel, ModelError, Site, load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model folder of a tiny Llama."""
    build("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer(chat=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(words: str, source: Any, **options: Any) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(source, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_folder_loads_and_equals_the_live_model(folder: Path) -> None:
    saved, live = load_model(folder), load_model(build("llama"), tokenizer=tiny_tokenizer())
    assert saved.fingerprint == live.fingerprint
    assert torch.equal(saved.logits(["Rome is"]), live.logits(["Rome is"]))
    assert (saved.n_layers, saved.d_model, saved.n_heads, saved.head_dim, saved.d_mlp) == (3, 32, 4, 8, 48)
    assert saved.vocab_size == 300
    assert saved.context == 64
    assert saved.architecture == "LlamaForCausalLM"
    assert saved.has_chat_template
    assert not live.has_chat_template
    assert saved.name == str(folder)
    assert load_model(saved) is saved
    assert "LlamaForCausalLM" in repr(saved)
    assert not saved.model.training


def test_half_precision_is_up_cast_on_the_cpu_unless_asked_for(folder: Path) -> None:
    build("llama").to(torch.bfloat16).save_pretrained(folder)
    up_cast, stored = load_model(folder), load_model(folder, dtype="bfloat16")
    assert up_cast.dtype == torch.float32
    assert stored.dtype == torch.bfloat16
    assert up_cast.fingerprint == stored.fingerprint
    assert up_cast.fingerprint != load_model(build("llama"), tokenizer=tiny_tokenizer()).fingerprint
    assert stored.self_check().ok
    assert load_model(folder, dtype=torch.float64).unembed(torch.ones(32)).dtype == torch.float32


def test_unknown_places(tmp_path: Path) -> None:
    refused("no folder", tmp_path / "nowhere")
    refused("no folder", "./nowhere")
    refused("neither a folder here nor a model that can be fetched", "nobody/nothing-of-this-name")
    (tmp_path / "file").write_text("x")
    refused("is a file", tmp_path / "file")
    refused("cannot be loaded from an int", 3)


def test_incomplete_folders(folder: Path) -> None:
    weights = folder / "model.safetensors"
    stored = weights.read_bytes()
    weights.unlink()
    refused("no weights", folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused("pickle", folder)
    weights.write_bytes(stored[: len(stored) // 2])
    refused("cannot be read", folder)
    weights.write_bytes(b"not safetensors at all")
    refused("cannot be read", folder)
    weights.write_bytes(stored)
    (folder / "config.json").rename(folder / "elsewhere")
    refused("no config.json", folder)
    (folder / "config.json").write_text("{")
    refused("config.json of", folder)


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused("lacks the weights of 1 parts", folder)


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    refused("no usable tokenizer", folder)
    assert load_model(folder, tokenizer=tiny_tokenizer()).vocab_size == 300
    refused("needs its tokenizer", build("llama"))


def test_other_kinds_of_models(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=300, **small))
    bert.save_pretrained(tmp_path / "bert")
    refused("encoder model", tmp_path / "bert")
    refused("encoder model", bert, tokenizer=tiny_tokenizer())
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    t5.save_pretrained(tmp_path / "t5")
    refused("encoder-decoder", tmp_path / "t5")
    refused("encoder-decoder", t5, tokenizer=tiny_tokenizer())


def test_a_family_the_adapters_do_not_know(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["PersimmonForCausalLM"], "model_type": "persimmon"}
    (folder / "config.json").write_text(json.dumps(config))
    refused("PersimmonForCausalLM.*not one the architecture adapters know", folder)


def test_a_model_that_does_not_compute_what_the_map_says_is_refused() -> None:
    model = build("llama")
    block = model.model.layers[1]
    original = block.forward
    block.forward = lambda state, *args, **kwargs: original(state, *args, **kwargs) * 1.5
    refused(r"resid_post = resid_pre \+ attn_out \+ mlp_out \(layer 1\)", model, tokenizer=tiny_tokenizer())
    model = build("llama")
    head = model.lm_head.forward
    model.lm_head.forward = head
    scaled = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = scaled(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = forward
    refused("unembed", model, tokenizer=tiny_tokenizer())


def test_opt_that_norms_the_stream_itself_is_refused() -> None:
    """OPT-350m has no final norm and projects the stream before the unembedding."""
    odd = build("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    refused("unembedding.*takes 16 numbers", odd, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "vllm"}, "no backend"),
        ({"dtype": "float7"}, "no dtype"),
        ({"device": "toaster"}, "no device"),
        ({"device": "meta"}, "nothing is computed"),
    ],
)
def test_wrong_options(folder: Path, options: dict[str, Any], words: str) -> None:
    refused(words, folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "nonsense"},
        {"attn_implementation": "nonsense"},
        {"device_map": "nonsense", "backend": "transformer_lens"},
    ],
)
def test_options_that_cannot_be_are_not_the_checkpoints_fault(folder: Path, options: dict[str, Any]) -> None:
    named = next(iter(options))
    refused(f"cannot be read with {named} as given .*correct it, or leave it out", folder, **options)


def test_a_damaged_file_is_at_fault_whatever_the_options(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    refused("save the checkpoint again", folder, device_map={"": "cpu"})


def test_a_bridge_needs_a_tokenizer_with_a_folder(folder: Path) -> None:
    for source in (folder, build("llama")):
        refused(
            "this one was made in memory; save it with save_pretrained",
            source,
            tokenizer=tiny_tokenizer(),
            backend="transformer_lens",
        )
    assert load_model(build("llama"), folder, backend="transformer_lens").backend == "transformer_lens"


def test_importing_models_does_not_import_transformer_lens() -> None:
    code = "import sys, steerlab.models; sys.exit('transformer_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_self_check_names_what_it_proved(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    check = tiny_llama.self_check()
    assert check.ok
    assert [row.part for row in check.rows] == [
        "resid_mid = resid_pre + attn_out",
        "resid_post = resid_pre + attn_out + mlp_out",
        "resid_pre of the next layer = resid_post",
        "ln_final_in = resid_post of the last layer",
        "unembed(ln_final_in) = logits",
    ]
    assert tiny_gpt2.sites("resid_post", [-1]) == [Site("resid_post", 2)]
