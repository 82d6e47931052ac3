"""Exports read back with the libraries that will read them: transformers, gguf, the documented JSON forms."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from tolerances import close
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Edit, LanguageModel, Last, Site, load_model
from steerlab.steering import (
    Ablate,
    Add,
    export_easysteer,
    export_gguf,
    export_transformers,
    export_vllm_lens,
)

PROMPT = "The capital of France is Paris."
#: Families whose configuration has no flag for a bias on the down projection (Qwen2 and Mistral become Llamas).
NO_FLAG = ("qwen3", "gemma", "phi3", "olmo", "stablelm", "stablelm_parallel", "qwen3_moe")
NOT_BAKED = ("gemma2", "gemma3", "olmo2")


def direction(model: LanguageModel, *sites: Site, seed: int = 0) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    return Direction(
        {site: torch.randn(model.width(site), generator=generator) for site in sites},
        model.name,
        model.fingerprint,
    )


def reloaded_logits(folder: Path, model: LanguageModel, prompt: str = PROMPT) -> Any:
    """Logits after the prompt from plain transformers, nothing of ours loaded with it."""
    module, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
    assert ids.tolist() == model.tokenize([prompt]).input_ids.tolist()
    with torch.no_grad():
        return module(ids).logits[:, -1, : model.vocab_size]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_transformers_model_computes_the_steered_logits(family: str, tmp_path: Path) -> None:
    windows = {"sliding_window": None} if family == "mistral" else {}
    model = tiny(family, **windows)
    edits: dict[str, Edit] = {
        "ablated": Ablate(direction(model, Site("resid_pre", 1))),
        "added": Add(direction(model, Site("resid_post", 1)), strength=2.0),
        "start": Add(direction(model, Site("resid_pre", 0)), strength=2.0),
    }
    for name, edit in edits.items():
        folder = tmp_path / name
        if (reason := _reason(family, name)) is not None:
            with pytest.raises(SteeringError, match=reason):
                export_transformers(model, [edit], folder)
            assert list(tmp_path.glob(f"*{name}*")) == []
            continue
        export_transformers(model, [edit], folder)
        with model.steering(edit):
            steered = model.logits([PROMPT])
        close(reloaded_logits(folder, model), steered)
        assert (steered - model.logits([PROMPT])).abs().max() > 5e-3


def _reason(family: str, name: str) -> str | None:
    if name == "start":
        return None
    if family in NOT_BAKED:
        return "normalised before"
    if name == "ablated":
        return "A norm follows the token embedding" if family == "bloom" else None
    if family == "mixtral":
        return "experts without biases"
    return "cannot switch on .*would be lost on loading" if family in NO_FLAG else None


def test_a_folder_is_complete_and_says_what_was_baked(tmp_path: Path) -> None:
    model = tiny("gpt2", bos=False, chat=True)
    model.model.generation_config = GenerationConfig(eos_token_id=1, max_new_tokens=7)
    ablation = Ablate(direction(model, Site("resid_pre", 1)))
    addition = Add(direction(model, Site("resid_post", 1), seed=1), strength=-1.5)
    folder = export_transformers(model, [addition, ablation], tmp_path / "deep" / "folder")
    again = load_model(folder)
    assert again.has_chat_template
    assert again.model.generation_config.max_new_tokens == 7
    assert not again.model.config.tie_word_embeddings
    with model.steering(addition, ablation):
        expected = model.generate([PROMPT], max_new_tokens=12)
    assert again.generate([PROMPT], max_new_tokens=12) == expected
    record = json.loads((folder / "steering.json").read_text())
    assert record["model"] == {"name": model.name, "fingerprint": model.fingerprint}
    assert [edit["edit"] for edit in record["interventions"]] == ["add", "ablate"]
    card = (folder / "README.md").read_text()
    for said in (ablation.direction.hash, addition.direction.hash, "-1.5 raw", again.fingerprint, "ties it"):
        assert said in card


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    edit = Add(direction(model, Site("resid_post", 1)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(SteeringError, match="exists already"):
        export_transformers(model, [edit], tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SteeringError, match="cannot be written"):
        export_transformers(model, [edit], tmp_path / "file" / "below")

    def _full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", _full)
    with pytest.raises(SteeringError, match="No space left on device"):
        export_transformers(model, [edit], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    monkeypatch.undo()
    assert export_transformers(model, [edit], tmp_path / "empty") == tmp_path / "empty"


# ----------------------------------------------------------------------------------------------------- other engines


def test_a_control_vector_adds_to_the_output_of_its_block(tmp_path: Path) -> None:
    """llama.cpp adds `direction.N` behind block N (from 0): done here by hand on the plain model's blocks."""
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    model = tiny("llama")
    first, second = Site("resid_post", 1), Site("resid_post", 2)
    edits = [
        Add(direction(model, first, second), strength=2.0, layers="all"),
        Add(direction(model, Site("resid_pre", 2), seed=1)),  # the input of block 2 is the output of block 1
        Add(direction(model, Site("mlp_out", 2), seed=2)),
    ]
    path = export_gguf(model, edits, tmp_path / "steer.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    vectors = {tensor.name: tensor for tensor in reader.tensors}
    assert sorted(vectors) == ["direction.1", "direction.2"]
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)
    handles = [
        model.model.model.layers[layer].register_forward_hook(
            lambda module, args, output, layer=layer: (
                output + torch.from_numpy(vectors[f"direction.{layer}"].data.copy())
            )
        )
        for layer in (1, 2)
    ]
    by_hand = model.logits([PROMPT])
    for handle in handles:
        handle.remove()
    with model.steering(*edits):
        close(by_hand, model.logits([PROMPT]))


def test_vllm_lens_reads_base64_float32(tmp_path: Path) -> None:
    model = tiny("llama")
    made = direction(model, Site("resid_post", 0), Site("resid_post", 2))
    path = export_vllm_lens(model, [Add(made, strength=0.5, layers="all")], tmp_path / "vectors.json")
    (vector,) = json.loads(path.read_text())
    assert set(vector) == {"activations", "layer_indices", "scale", "norm_match", "position_indices"}
    assert vector["layer_indices"] == [0, 2]
    assert (vector["scale"], vector["norm_match"], vector["position_indices"]) == (1.0, False, None)
    sent = vector["activations"]
    rows = np.frombuffer(base64.b64decode(sent["data"]), dtype=sent["dtype"]).reshape(sent["shape"])
    expected = np.stack([0.5 * made[Site("resid_post", layer)].numpy() for layer in (0, 2)])
    np.testing.assert_array_equal(rows, expected)


def test_easysteer_gets_a_specification_and_its_vectors(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    model = tiny("gptj")
    made = direction(model, Site("resid_post", 0), Site("ln_final_in"))
    folder = export_easysteer(model, [Add(made, strength=-3.0, layers="all")], tmp_path / "spec")
    (vector,) = json.loads((folder / "steering.json").read_text())["vectors"]
    assert vector["apply"] == {"prompt": "all", "generation": "all"}
    assert (vector["algorithm"], vector["scale"], vector["layers"]) == ("direct", 1.0, [0, 2])
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(folder / vector["source"]).tensors}
    for layer, site in ((0, Site("resid_post", 0)), (2, Site("ln_final_in"))):
        np.testing.assert_array_equal(found[f"direction.{layer}"], -3.0 * made[site].numpy())


def test_what_a_vector_of_another_engine_cannot_say_is_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    post = direction(model, Site("resid_post", 1))
    refusals: list[tuple[list[Edit], str]] = [
        ([Ablate(post)], "an Ablate cannot be written"),
        ([Add(post, positions=Last())], "acts at"),
        ([Add(direction(model, Site("attn_out", 1)))], "attn_out.1 is read before"),
        ([Add(direction(model, Site("resid_pre", 0)))], "resid_pre.0 is read before"),
        ([Add(post, strength=0.0)], "nothing to export"),
        ([], "nothing to export"),
    ]
    for edits, reason in refusals:
        with pytest.raises(SteeringError, match=reason):
            export_vllm_lens(model, edits, tmp_path / "vectors.json")
    with pytest.raises(SteeringError, match="no control vector for the output of block 0"):
        export_gguf(model, [Add(direction(model, Site("resid_post", 0)))], tmp_path / "vectors.gguf")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SteeringError, match="cannot be written"):
        export_vllm_lens(model, [Add(post)], tmp_path / "file" / "vectors.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
