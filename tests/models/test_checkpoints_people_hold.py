"""What people hold is loaded as it is meant, or refused in a sentence: adapters, surplus weights, modes, pads, GGUF."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, tiny, tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import steerlab as sl
from steerlab.errors import ModelError, PromptError, SteerlabError
from steerlab.models.finite import first_not_finite, largest, require_scores
from steerlab.studies import Pair

TEXT = "The capital of France is"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama saved as transformers saves it."""
    build("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


# ---------------------------------------------------------------------------------------------- weights too many


@pytest.mark.parametrize(
    "extra",
    ["model.layers.1.self_attn.o_proj.bias", "model.layers.3.mlp.up_proj.weight", "model.extra_norm.weight"],
)
def test_weights_that_nothing_uses_are_named(folder: Path, extra: str) -> None:
    plain = sl.load(folder).logits(TEXT)
    file = folder / "model.safetensors"
    save_file({**load_file(file), extra: torch.ones(32)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 weights that a LlamaForCausalLM has no part for \({extra}\)"):
        sl.load(folder)
    torch.testing.assert_close(sl.load(folder, ignore_unused=True).logits(TEXT), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "key"),
    [("gpt2", "transformer.h.0.attn.masked_bias"), ("gptj", "transformer.h.0.attn.bias"),
     ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"), ("gemma", "lm_head.weight")],
)  # fmt: skip
def test_what_old_checkpoints_hold_beside_weights_is_no_weight(family: str, key: str, tmp_path: Path) -> None:
    """Masks, rotary frequencies, and a second copy of a tied unembedding."""
    build(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    extra = stored["model.embed_tokens.weight"].clone() if key == "lm_head.weight" else torch.ones(1, 1, 4, 4)
    save_file({**stored, key: extra}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert sl.load(tmp_path).self_check().ok


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"] = torch.ones(31)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights of another shape .*model\.norm\.weight, \[31\] in place of \[32\]"
    ):
        sl.load(folder)
    with pytest.raises(
        ModelError, match="of another shape"
    ):  # what may be left aside are weights that are too many
        sl.load(folder, ignore_unused=True)


# ------------------------------------------------------------------------------------------------------ adapters


def tuned(module: Any, **changes: Any) -> Any:
    """A PEFT model whose adapter does something."""
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj", "lm_head"], **changes}
    torch.manual_seed(0)
    return peft.get_peft_model(module, peft.LoraConfig(init_lora_weights=False, **settings)).eval()


def test_an_adapter_is_merged_or_kept_apart_with_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    import transformers

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder))
    right = live(sl.load(folder).tokenize(TEXT).input_ids).logits[0, -1, :300].detach()
    live.save_pretrained(tmp_path / "adapter")
    merged = sl.load(tmp_path / "adapter", base=folder)
    apart = sl.load(tmp_path / "adapter", base=folder, merge=False)
    assert (merged.stored_as, apart.stored_as) == ("LORA, merged", "LORA, kept apart")
    for model in (merged, apart, sl.load(live, tiny_tokenizer())):
        torch.testing.assert_close(model.logits(TEXT)[0], right, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.w_out(1), merged.w_out(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.unembedding, merged.unembedding, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(merged.w_out(1), sl.load(folder).w_out(1))
    assert merged.fingerprint != sl.load(folder).fingerprint
    named = sl.load(tmp_path / "adapter")  # it names the folder its base came from
    assert torch.equal(named.logits(TEXT), merged.logits(TEXT))


def test_an_adapter_beside_its_base_counts(folder: Path) -> None:
    import transformers

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder))
    right = live(sl.load(folder).tokenize(TEXT).input_ids).logits[0, -1, :300].detach()
    live.save_pretrained(folder)
    torch.testing.assert_close(sl.load(folder).logits(TEXT)[0], right, rtol=1e-4, atol=1e-4)


def test_an_adapter_folder_may_hold_the_configuration_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    """As several trainers save it: the adapter, config.json and the tokenizer, without weights."""
    import shutil

    import transformers

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder))
    live.save_pretrained(tmp_path / "adapter")
    right = sl.load(tmp_path / "adapter").logits(TEXT)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, tmp_path / "adapter" / file)
    torch.testing.assert_close(sl.load(tmp_path / "adapter").logits(TEXT), right)


@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"trainable_token_indices": {"embed_tokens": [3, 5]}, "target_modules": ["q_proj"]},
        {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    ],
    ids=["modules_to_save", "tokens", "dora"],
)
def test_merged_models_are_plain_ones(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    import transformers

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder), **changes)
    for name, parameter in live.named_parameters():
        if "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data += 0.5
    right = live(sl.load(folder).tokenize(TEXT).input_ids).logits[0, -1, :300].detach()
    live.save_pretrained(tmp_path / "adapter")
    merged = sl.load(tmp_path / "adapter")
    torch.testing.assert_close(merged.logits(TEXT)[0], right, rtol=1e-4, atol=1e-4)
    assert type(merged.model) is transformers.LlamaForCausalLM
    merged.model.save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(sl.load(tmp_path / "plain").logits(TEXT)[0], right, rtol=1e-4, atol=1e-4)
    if "use_dora" in changes:
        with pytest.raises(ModelError, match=r"no matrix that is added to the weight \(DoRA"):
            sl.load(tmp_path / "adapter", merge=False).w_out(1)


def test_an_adapter_that_names_itself_or_an_adapter_as_base_ends(folder: Path, tmp_path: Path) -> None:
    import json

    import transformers

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder))
    live.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="names itself as its base"):
        sl.load(tmp_path / "adapter")


def test_an_adapter_without_peft_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"peft is not installed; run pip install 'steerlab\[peft\]'"):
        sl.load(folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"peft_type": "LORA"}', "names no base model")],
)
def test_adapters_that_are_none_are_refused(settings: str, sentence: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(ModelError, match=sentence):
        sl.load(tmp_path)


# ---------------------------------------------------------------------------------------- modes, pads, dtypes


def test_passes_run_in_evaluation_mode_and_give_the_mode_back() -> None:
    module = build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    module.train()
    model = sl.load(module, tiny_tokenizer())
    assert module.training  # loading leaves the caller's model as it is
    module.eval()
    right = model.logits(TEXT)
    module.transformer.h[1].train()
    modes = [part.training for part in module.modules()]
    assert torch.equal(model.logits(TEXT), right)
    assert (
        model.generate(TEXT, max_new_tokens=3).token_ids == model.generate(TEXT, max_new_tokens=3).token_ids
    )
    "".join(model.stream(TEXT, max_new_tokens=3))
    sl.capture(model, TEXT, "resid_post")
    assert [part.training for part in module.modules()] == modes


def test_a_pad_token_without_a_row_of_its_own_is_masked() -> None:
    module, tokenizer = build("llama", vocab_size=300), tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 300
    model = sl.load(module, tokenizer)
    two = [TEXT, "Is a cat"]
    alone = torch.cat([model.logits(text) for text in two])
    torch.testing.assert_close(model.logits(two), alone, rtol=1e-5, atol=1e-5)
    written = [model.generate(text, max_new_tokens=4).token_ids for text in two]
    assert [text.token_ids for text in model.generate(two, max_new_tokens=4)] == written


def test_weights_are_read_in_the_dtype_that_is_computed_in(tmp_path: Path) -> None:
    """Gemma's embedding scale is a buffer: rounded to bfloat16 and then up-cast it would be another model's."""
    build("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    auto, asked = sl.load(tmp_path), sl.load(tmp_path, dtype="float32")
    assert auto.dtype == torch.float32
    assert auto.fingerprint == asked.fingerprint
    assert torch.equal(auto.logits(TEXT), asked.logits(TEXT))
    rounded = sl.load(sl.load(tmp_path, dtype="bfloat16").model.float(), tiny_tokenizer())
    assert rounded.fingerprint != asked.fingerprint


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_copies_and_pickles_of_a_model_are_refused(copied: Callable[[object], object]) -> None:
    with pytest.raises(ModelError, match="is not copied or pickled as an object"):
        copied(tiny("llama"))


def test_options_of_a_chat_template_are_read_or_refused() -> None:
    model = tiny("llama", chat=True)
    plain = model.instruction_prompt("Hi").text
    with pytest.raises(PromptError, match="reads no enable_thinking"):
        model.instruction_prompt("Hi", enable_thinking=False)
    model.tokenizer.chat_template += "{% if not enable_thinking is false %}<think>{% endif %}"
    assert model.instruction_prompt("Hi").text == plain + "<think>"
    assert model.instruction_prompt("Hi", enable_thinking=False).text == plain
    model.chat_options["enable_thinking"] = False
    assert model.instruction_prompt("Hi").text == plain
    assert model.conversation_prompt([("user", "Hi")]).text == plain


def test_offloaded_layers_give_the_numbers_of_the_plain_model(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    places = {f"model.layers.{layer}": "disk" if layer else "cpu" for layer in range(3)}
    places |= dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu")
    plain, away = (
        sl.load(folder),
        sl.load(folder, device_map=places, offload_folder=tmp_path / "away", dtype="float32"),
    )
    assert away.fingerprint == plain.fingerprint
    assert away.device.type == "cpu"
    edit = sl.Add(torch.ones(32), 2.0, sites="resid_post.2")
    for model_of in (plain, away):
        assert model_of.self_check().ok
    torch.testing.assert_close(away.logits(TEXT), plain.logits(TEXT))
    torch.testing.assert_close(away.w_out(2), plain.w_out(2))
    site = "resid_post.1"
    torch.testing.assert_close(sl.capture(away, TEXT, site)[site], sl.capture(plain, TEXT, site)[site])
    with away.steering(edit), plain.steering(edit):
        torch.testing.assert_close(away.logits(TEXT), plain.logits(TEXT))
        assert away.generate(TEXT, max_new_tokens=4) == plain.generate(TEXT, max_new_tokens=4)
    assert "are offloaded" in sl.steering.why_not_baked(away)


# -------------------------------------------------------------------------------------------------- not finite


def test_numbers_that_are_not_finite_are_named_where_they_arise() -> None:
    model = tiny("llama")
    huge = sl.Add(torch.full((32,), 3e38), 10.0, sites="resid_post.1")
    with model.steering(huge):
        for run in (
            lambda: model.logits(["a cat", TEXT]),
            lambda: sl.capture(model, ["a cat", TEXT], "resid_post"),
            lambda: sl.capture(model, TEXT, "resid_post", into=sl.Moments()),
        ):
            with pytest.raises(SteerlabError, match=r"not finite from resid_post\.1 on, first in prompt \d"):
                run()
        for write in (
            lambda: model.generate(TEXT, max_new_tokens=3),
            lambda: list(model.stream(TEXT, max_new_tokens=3)),
        ):
            with pytest.raises(SteerlabError, match="not finite at new token 0"):
                write()


class _Asked(TorchDispatchMode):
    """Counts what gives a tensor's number to Python, for which a GPU has to finish what came before."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.name() in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero")
        return function(*args, **(kwargs or {}))


def test_whether_states_are_finite_is_asked_once_a_pass_not_once_a_layer() -> None:
    counts = []
    for layers in (2, 6):
        model = tiny("llama", num_hidden_layers=layers)
        tokens = model.tokenize(TEXT)
        at = (torch.tensor([0]), torch.tensor([tokens.width - 1]))
        seen: list[Tensor] = []
        with _Asked() as asked:
            model.run(tokens, read=dict.fromkeys(model.sites("resid_post"), seen.append), at=at)
        assert len(seen) == layers
        counts.append(asked.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_first_site_that_is_not_finite_is_found(bad: float, dtype: torch.dtype) -> None:
    fine = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    broken = fine.clone()
    broken[1, 2] = bad
    one, two, three = (sl.Site("resid_post", layer) for layer in range(3))
    found = {one: largest(fine), two: largest(broken), three: largest(broken[:0])}
    assert first_not_finite(found) == two
    assert first_not_finite({one: found[one], three: found[three]}) is None
    assert first_not_finite({}) is None


def test_scores_may_leave_words_out_but_not_be_undefined() -> None:
    require_scores("m", torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]), 0)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(SteerlabError, match="not finite at new token 3"):
            require_scores("m", torch.tensor([[0.0, 1.0], [bad, -torch.inf]]), 3)


# --------------------------------------------------------------------------------- a norm behind the MLP


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "llama", "gpt2"])
def test_neurons_move_the_stream_along_their_rows(family: str) -> None:
    """Raising a neuron moves the block's output along its row, but for what a norm takes off along its input."""
    model = tiny(family)
    last = model.n_layers - 1
    down, norm = model.anatomy.down_projection(last), model.anatomy.mlp_post_norm(last)
    site = f"resid_post.{last}"

    def raised(amount: float, neuron: int) -> Tensor:
        def hook(part: Any, args: Any) -> Any:
            changed = args[0].clone()
            changed[..., neuron] += amount
            return (changed,)

        handle = down.register_forward_pre_hook(hook)
        found = sl.capture(model, TEXT, site)[site][0].double()
        handle.remove()
        return found

    plain = []
    handle = down.register_forward_hook(lambda part, args, output: plain.append(output[0, -1].double()))
    model.logits(TEXT)
    handle.remove()
    along = torch.nn.functional.normalize(plain[0], dim=0)
    gain = torch.ones(1) if norm is None else norm.weight.detach() + (1 if family.startswith("gemma") else 0)
    stored, into = model.w_out(last), model.w_into_stream(last)
    torch.testing.assert_close(into, stored * gain, rtol=1e-4, atol=1e-5)
    for neuron in (0, 7):
        row = stored[neuron].double()
        expected = into[neuron].double() if norm is None else gain.double() * (row - along * (along @ row))
        moved = (raised(1e-2, neuron) - raised(-1e-2, neuron)) / 2e-2
        assert float(torch.cosine_similarity(moved, expected, dim=0)) > 0.999


# ------------------------------------------------------------------------------------------------------- GGUF


@pytest.mark.skipif(
    "STEERLAB_REAL_MODELS" not in os.environ, reason="set STEERLAB_REAL_MODELS to real models"
)
def test_a_gguf_file_is_the_model_that_was_laid_out_from_it() -> None:
    place = Path(os.environ["STEERLAB_REAL_MODELS"])
    packed, plain = sl.load(place / "smollm2-135m-instruct.gguf"), sl.load(place / "smollm2-135m-instruct")
    assert packed.stored_as == "GGUF Q4_1, dequantised"
    found, right = packed.logits(TEXT), plain.logits(TEXT)  # the folder is rounded to bfloat16
    assert float((found - right).abs().max()) < 2e-2 * float(right.abs().max())
    assert packed.instruction_prompt("Hi").text == plain.instruction_prompt("Hi").text


def storage(model: sl.LanguageModel) -> dict[int, int]:
    """Bytes by place in memory of every weight."""
    state = [*model.model.parameters(), *model.model.buffers()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state}


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "apart"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
     {"trainable_token_indices": {"embed_tokens": [3, 5]}, "target_modules": ["q_proj"]},
     {"use_dora": True, "target_modules": ["q_proj", "down_proj"]}],
    ids=["lora", "modules_to_save", "tokens", "dora"],
)  # fmt: skip
def test_an_adapter_on_a_loaded_base_uses_its_weights_and_leaves_them(
    changes: dict[str, Any], merge: bool, folder: Path, tmp_path: Path
) -> None:
    import transformers

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder), **changes)
    for name, parameter in live.named_parameters():
        if "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data += 0.5
    live.save_pretrained(tmp_path / "adapter")
    right = sl.load(tmp_path / "adapter", base=folder, merge=merge).logits(TEXT)
    base = sl.load(folder)
    before, mark = base.logits(TEXT), sl.load(folder).fingerprint
    post = sl.load(tmp_path / "adapter", base=base, merge=merge)
    torch.testing.assert_close(post.logits(TEXT), right, rtol=1e-5, atol=1e-5)
    ones = sl.Direction({sl.Site("resid_post", 1): torch.ones(base.d_model)}, post.name, post.fingerprint)
    with post.steering(sl.Add(ones, strength=5.0)):
        assert not torch.allclose(post.logits(TEXT), right)
        assert torch.equal(base.logits(TEXT), before)  # steering is of one model, and merging wrote into none
    assert base.fingerprint == mark
    assert post.fingerprint != mark
    own, both = storage(base), storage(base) | storage(post)
    added = sum(both.values()) - sum(own.values())
    touched = sum(own.values()) if merge else 0.5 * sum(own.values())
    assert added < touched, f"{added} bytes beside {sum(own.values())}"


def test_a_comparison_puts_an_adapter_on_its_base(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever base the adapter names, and with that base's tokenizer; a chat template beside the adapter counts."""
    import transformers

    from steerlab.opening import load_pair

    live = tuned(transformers.AutoModelForCausalLM.from_pretrained(folder))
    live.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "nobody/nothing"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    reads = []
    from_pretrained = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **options: reads.append(args) or from_pretrained(*args, **options),
    )
    (tmp_path / "adapter" / "README.md").write_text("---\nbase_fingerprint: 0123\n---\nA card.")
    told: list[str] = []
    pair = Pair(*load_pair(str(folder), str(tmp_path / "adapter"), {"merge": False}, told.append))
    assert len(reads) == 1
    assert [line for line in told if "fingerprint 0123, and" in line and pair.base.fingerprint in line]
    assert pair.post.stored_as == "LORA, kept apart"
    assert pair.same_tokenizer
    assert pair.post.instruction_prompt("Hi").text == "Hi!"
    assert not pair.base.has_chat_template
    assert not torch.allclose(pair.base.logits(TEXT), pair.post.logits(TEXT))


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "apart"])
def test_weights_under_an_adapter_are_not_frozen(merge: bool, folder: Path, tmp_path: Path) -> None:
    """On a CPU torch copies a frozen weight for every row of a sliced batch: 60 times slower at a large vocabulary."""
    import transformers

    tuned(transformers.AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(tmp_path / "adapter")
    model = sl.load(tmp_path / "adapter", base=folder, merge=merge)
    assert all(weight.requires_grad for weight in model.model.parameters())
