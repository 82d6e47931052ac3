"""The text part of multimodal models: read, steered and baked as the whole model computes it on text alone."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, tiny_tokenizer
from multimodal import WRAPPERS, build_wrapper
from torch import Tensor

import steerlab as sl
from steerlab.errors import ModelError
from steerlab.models.output_weights import read_output_weights
from steerlab.steering import export_transformers

TEXTS = ["The capital of France is Paris.", "Is a cat an animal?", "TRUE"]


@cache
def built(kind: str) -> Any:
    return build_wrapper(kind)


def saved(kind: str, folder: Path, **options: Any) -> Path:
    built(kind).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def own(kind: str, model: sl.LanguageModel) -> tuple[Any, Tensor]:
    """What the multimodal model's own forward pass gives on padded texts, and which tokens are real."""
    tokens = model.tokenize(TEXTS)
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    if not kind.startswith("qwen"):  # those count positions in three parts by themselves
        given["position_ids"] = tokens.position_ids
    with torch.no_grad():
        output = built(kind)(**given, output_hidden_states=True, use_cache=False)
    return output, tokens.attention_mask.bool()


def close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_states_logits_and_texts_are_the_whole_models(kind: str) -> None:
    model = sl.load(built(kind), tiny_tokenizer())
    output, real = own(kind, model)
    tokens = model.tokenize(TEXTS)
    logits = model.run(tokens, logits="all")
    assert logits is not None
    close(logits[real], output.logits[real][:, :300])
    states: dict[int, Tensor] = {}
    read = {
        site: lambda state, layer=site.layer: states.update({layer: state.clone()})
        for site in model.sites("resid_pre")
    }
    model.run(tokens, read=read)
    for layer, state in states.items():
        close(state[real], output.hidden_states[layer][real])
    written = built(kind).generate(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=1,
        suppress_tokens=list(range(300, 320)),
    )
    for mine, right in zip(model.generate(TEXTS, max_new_tokens=5), written.tolist(), strict=True):
        assert list(mine.token_ids) == right[tokens.width :][: len(mine.token_ids)]
    assert model.family == f"the text part of a {type(built(kind)).__name__}"


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_folder_is_the_live_model_with_a_tokenizer_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    model = sl.load(saved(kind, tmp_path, max_shard_size="20KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    output, real = own(kind, model)
    logits = model.run(model.tokenize(TEXTS), logits="all")
    assert logits is not None
    close(logits[real], output.logits[real][:, : model.vocab_size])
    assert model.part_of == type(built(kind)).__name__
    assert model.family.endswith(f"the text part of a {model.part_of}")
    assert model.family in model._repr_html_()
    if model.architecture == model.part_of:  # Qwen3.5's text part is a model of its own in transformers
        assert model.fingerprint == sl.load(built(kind), tiny_tokenizer()).fingerprint


@pytest.mark.parametrize("kind", [kind for kind in WRAPPERS if kind != "gemma3"])
def test_what_is_baked_loads_again_and_leaves_the_rest(kind: str, tmp_path: Path) -> None:
    model = sl.load(built(kind), tiny_tokenizer())
    vectors = {sl.Site("resid_post", 1): torch.linspace(-1, 1, model.d_model)}
    edit = sl.Ablate(sl.Direction(vectors, model.name, model.fingerprint))
    with model.steering(edit):
        right = model.logits(TEXTS)
    export_transformers(model, [edit], tmp_path / "baked")
    again = sl.load(tmp_path / "baked", tokenizer=tiny_tokenizer())
    close(again.logits(TEXTS), right)
    if again.architecture == model.architecture:
        eyes = {name: weight for name, weight in again.model.named_parameters() if "vision" in name}
        before = dict(model.model.named_parameters())
        assert eyes.keys() == {name for name in before if "vision" in name}
        assert all(torch.equal(weight, before[name]) for name, weight in eyes.items())


def test_a_norm_behind_the_mixer_is_the_reason_not_to_bake() -> None:
    assert "a post-norm family" in sl.steering.why_not_baked(sl.load(built("gemma3"), tiny_tokenizer()))


def test_a_missing_or_a_surplus_weight_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = saved("llava", tmp_path) / "model.safetensors"
    stored = load_file(file)
    eye = next(key for key in stored if "vision" in key)
    save_file({key: stored[key] for key in stored if key != eye}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks the weights of 1 parts of a LlavaForConditionalGeneration"):
        sl.load(tmp_path)
    save_file({**stored, "more.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds 1 weights .*more\.weight"):
        sl.load(tmp_path)


def test_the_last_neurons_are_read_from_the_folder(tmp_path: Path) -> None:
    found = read_output_weights(saved("qwen2_5_vl", tmp_path))
    model = sl.load(built("qwen2_5_vl"), tiny_tokenizer())
    close(found.w_out, model.w_out(2))
    close(found.unembedding[0:300], model.unembedding)
    close(found.gain, model.final_norm_gain)


#: As Llava's: text is read from a list of parts, and a plain text is dropped without a word.
PARTS = """\
{%- for message in messages %}{{ message['role'].upper() }}: \
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}{{ '\\n' }}
{%- endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def test_a_template_of_parts_in_the_processors_file_is_used(tmp_path: Path) -> None:
    saved("llava", tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    model = sl.load(tmp_path)
    assert model.instruction_prompt("Hi there").text == "USER: Hi there\nASSISTANT:"
    turns = [("user", "One"), ("assistant", "Two"), ("user", "Three")]
    assert model.conversation_prompt(turns).text == "USER: One\nASSISTANT: Two\nUSER: Three\nASSISTANT:"


def test_a_plain_model_is_no_part_of_another() -> None:
    model = sl.load(build("llama"), tiny_tokenizer())
    assert (model.part_of, model.family) == ("", "LlamaForCausalLM")


@pytest.mark.parametrize(
    ("kind", "works"), [("llava", True), ("gemma3", True), ("qwen3_5", True), ("qwen2_vl", False)]
)
def test_a_bridge_is_built_without_installing_anything(
    kind: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens would call pip for torchvision, whose newest wheel brings another torch with it."""
    called: list[Any] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *arguments, **_: called.append(arguments))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    folder = saved(kind, tmp_path)
    plain = sl.load(folder)
    if works:
        bridged = sl.load(folder, backend="transformer_lens")
        close(bridged.logits(TEXTS), plain.logits(TEXTS))
        assert bridged.family == plain.family
    else:
        with pytest.raises(ModelError, match="use backend='transformers'"):
            sl.load(folder, backend="transformer_lens")
    assert called == []
