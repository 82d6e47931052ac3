"""Where weights come from: files in parts, adapters, GGUF, live models; in little memory, or refused in a sentence."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from auditing.variants import WRITERS, ablation, adapter, changed, direction
from families import build, tiny, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlab as sl
from steerlab import cli
from steerlab.auditing import AuditResult, _pairs, _weights
from steerlab.auditing._spectrum import Change, white_edge
from steerlab.errors import ModelError

Q = direction()


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_parts_and_a_live_model_are_read_alike(tmp_path: Path) -> None:
    base = build("llama")
    made = changed(base, ablation(Q), WRITERS)
    parts = saved(made, tmp_path / "parts", max_shard_size="60KB")
    assert len(list(parts.glob("*.safetensors"))) == 3
    whole = saved(base, tmp_path / "whole")
    by_files, by_models = sl.audit(whole, parts), sl.audit(base, made)
    assert by_files.kind == by_models.kind == "directional ablation"
    rows, twins = (sorted(each.matrices, key=lambda row: row.name) for each in (by_files, by_models))
    assert [(row.name, row.label, row.rank, row.role) for row in rows] == [
        (row.name, row.label, row.rank, row.role) for row in twins
    ]
    assert [row.change for row in rows] == pytest.approx([row.change for row in twins], rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral"])
def test_names_in_files_and_in_models_are_the_same(family: str, tmp_path: Path) -> None:
    base = build(family)
    assert sl.audit(saved(base, tmp_path / "base"), base).kind == "identical"


def test_an_engine_s_wrappers_change_no_name(tmp_path: Path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    assert sl.audit(base, sl.load(base, backend="transformer_lens")).kind == "identical"
    torchao = sl.load(base)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(torchao.model, Int8WeightOnlyConfig())
    assert sl.audit(base, torchao).kind == "cast or requantised"


def test_an_adapter_is_put_on_the_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = saved(build("llama"), tmp_path / "base")
    tuned = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    found = sl.audit(base, tmp_path / "adapter")
    assert (found.kind, found.rank) == ("low-rank adapter", 2)
    assert {row.name.split(".")[-2] for row in found.matrices if row.label != "same"} == {
        "q_proj",
        "down_proj",
    }


def test_a_bundled_pair_is_a_fine_tune() -> None:
    found = sl.audit("zoo:small-base", "zoo:small-post")
    assert found.kind == "full fine-tune"
    assert found.lineage.share > 0.9


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_direction_found_in_files_belongs_to_the_loaded_base(family: str, tmp_path: Path) -> None:
    base = build(family)
    first, second = (
        saved(base, tmp_path / "base"),
        saved(changed(base, ablation(Q), WRITERS), tmp_path / "made"),
    )
    found = sl.audit(first, second)
    assert found.direction is not None
    model = sl.load(first)
    recovered = found.direction if family != "mixtral" else found.direction.moved_to(model)
    recovered.check(model)
    given = sl.Direction({"resid_post.2": Q}, model.name, model.fingerprint)  # type: ignore[dict-item]
    assert found.cosines(given)[sl.Site("resid_post", 2)] > 0.999
    with pytest.raises(sl.SteerlabError, match="no direction to compare"):
        sl.audit(first, first).cosines(given)


def test_roles_are_named_where_the_family_is_known() -> None:
    base = build("gpt2")
    found = sl.audit(base, changed(base, ablation(Q), WRITERS))
    roles = {row.role for row in found.matrices if row.label == "ablated"}
    assert roles == {"attention output", "MLP output"}
    assert all(row.alignment and row.alignment > 0.999 for row in found.matrices if row.label == "ablated")


def test_what_it_hands_on_is_shown_and_kept(tmp_path: Path) -> None:
    base = build("llama")
    found = sl.audit(base, changed(base, ablation(Q), WRITERS))
    matrices, lineage = found.tables()
    assert len(matrices.rows) == 6
    assert len(lineage.rows) == 1
    assert found.figure().data
    again = AuditResult.model_validate_json(found.save(tmp_path / "audit.json").read_text("utf-8"))
    assert again == found
    assert "ablation" in repr(found)
    assert "<table>" in found._repr_html_()
    with pytest.raises(sl.SteerlabError, match="no change to draw"):
        sl.audit(base, base).figure()
    with pytest.raises(sl.SteerlabError, match="cannot be written"):
        found.save(tmp_path)


def test_the_command_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build("llama")
    first = saved(base, tmp_path / "base")
    second = saved(changed(base, ablation(Q), WRITERS), tmp_path / "changed")

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["steerlab", "audit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    assert run(first, second) == 0
    assert "directional ablation: One direction was removed" in capsys.readouterr().out
    assert run(first, second, "--json") == 0
    assert AuditResult.model_validate_json(capsys.readouterr().out).kind == "directional ablation"
    model = sl.load(first)
    given = sl.Direction({"resid_post.2": Q}, model.name, model.fingerprint)  # type: ignore[dict-item]
    added = sl.export(model, sl.Add(given, 2.0, unit="raw"), tmp_path / "added")
    capsys.readouterr()
    assert run(first, added) == 0
    assert "constant addition: Constants were added (1 bias," in capsys.readouterr().out
    assert run(first, added, "--json") == 0
    assert AuditResult.model_validate_json(capsys.readouterr().out).kind == "constant addition"
    sl.Direction({"resid_post.2": Q}, "any", "").save(tmp_path / "q.safetensors")  # type: ignore[dict-item]
    assert run(first, second, "--against", tmp_path / "q.safetensors") == 0
    assert "q.safetensors: 1.000, at resid_post.2." in capsys.readouterr().out
    assert run(first, tmp_path / "nothing") == 2
    assert "There is no folder" in capsys.readouterr().err


@settings(max_examples=8, deadline=None)
@given(power=st.integers(-6, 6), order=st.permutations(range(3)), family=st.sampled_from(["llama", "gpt2"]))
def test_scale_and_order_of_layers_change_nothing(power: int, order: list[int], family: str) -> None:
    def moved(model: Any) -> Any:
        turned = changed(model, lambda weight: weight * 2.0**power)
        stack = turned.model.layers if family == "llama" else turned.transformer.h
        blocks = [stack[number] for number in order]
        for number, block in enumerate(blocks):
            stack[number] = block
        return turned

    base = build(family)
    for change, names in ((ablation(Q), WRITERS), (adapter(2), WRITERS)):
        made = changed(base, change, names)
        plain, other = sl.audit(base, made), sl.audit(moved(base), moved(made))
        assert plain.kind == other.kind
        assert plain.rank == other.rank
        if plain.direction is not None and other.direction is not None:
            (one,), (two,) = plain.direction.vectors.values(), other.direction.vectors.values()
            assert abs(float(torch.cosine_similarity(one[0], two[0], dim=0))) > 0.9999


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(8, 120), columns=st.integers(8, 120), seed=st.integers(0, 10**6), heavy=st.booleans())
def test_shuffled_signs_stay_below_the_edge(rows: int, columns: int, seed: int, heavy: bool) -> None:
    drawn = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, columns, generator=drawn) ** (4 if heavy else 1)
    sizes *= torch.rand(rows, 1, generator=drawn) if heavy else 1
    entries = sizes * torch.randn(rows, columns, generator=drawn).sign()
    edge = white_edge(entries.square().sum(1), entries.square().sum(0))
    assert float(torch.linalg.svdvals(entries)[0]) <= edge


def test_the_randomised_spectrum_is_the_exact_one() -> None:
    drawn = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 20, generator=drawn) @ torch.randn(20, 400, generator=drawn)
    matrix += 0.01 * torch.randn(300, 400, generator=drawn)

    def blocks() -> Any:
        for start in range(0, 300, 64):
            yield start, torch.zeros(len(matrix[start : start + 64]), 400), matrix[start : start + 64]

    exact = torch.linalg.svdvals(matrix.double())
    change = Change(blocks, (300, 400))
    torch.testing.assert_close(change.spectrum().values[:20], exact[:20], rtol=1e-4, atol=0)
    change._kept = None  # read block by block
    torch.testing.assert_close(change.spectrum().values[:20], exact[:20], rtol=1e-4, atol=0)


def sparse(folder: Path, rows: int, columns: int, parts: int) -> Path:
    """A checkpoint of zeros that takes no room on the disk, and its index."""
    folder.mkdir()
    names = [f"model.layers.{number}.mlp.down_proj.weight" for number in range(parts)]
    files = [f"model-{number}.safetensors" for number in range(parts)]
    for name, file in zip(names, files, strict=True):
        size = rows * columns * 2
        head = json.dumps(
            {name: {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, size]}}
        ).encode()
        with (folder / file).open("wb") as opened:
            opened.write(struct.pack("<Q", len(head)) + head)
            opened.truncate(8 + len(head) + size)
    index = {"metadata": {}, "weight_map": dict(zip(names, files, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def memory() -> int:
    """Bytes of this process that no file holds; 0 where the system does not say."""
    said = Path("/proc/self/status")
    line = re.search(r"RssAnon:\s+(\d+)", said.read_text()) if said.exists() else None
    return int(line[1]) * 1024 if line else 0


def test_a_large_pair_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 12_000, 2_048
    base, candidate = (sparse(tmp_path / name, rows, columns, 2) for name in ("base", "candidate"))
    with (candidate / "model-1.safetensors").open("r+b") as opened:
        opened.seek(-4 * columns, 2)
        opened.write(torch.ones(2 * columns).bfloat16().view(torch.uint8).numpy().tobytes())
    read: list[int] = []
    held: list[int] = []
    plain = _weights.FileWeights.rows

    def counted(self: Any, *where: Any) -> torch.Tensor:
        block = plain(self, *where)
        read.append(block.numel())
        held.append(memory())
        return block

    monkeypatch.setattr(_weights.FileWeights, "rows", counted)
    before = memory()
    found = sl.audit(base, candidate)
    assert max(read) <= _pairs.BLOCK < rows * columns
    assert max(held) - before < 160e6  # one side of a matrix has 98 MB
    assert [row.rows_touched for row in found.matrices] == [0, 2]


BAD = {
    "a folder without weights": "no weights",
    "an empty folder": "no weights",
    "another family": "no tensor of the same name",
    "another width": "only models of one shape",
    "more layers": "one architecture",
    "damaged": "damaged",
    "packed": "packed numbers",
    "quantised": "packed numbers",
    "pickle": "pickle",
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_audited_is_refused_in_a_sentence(what: str, tmp_path: Path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    bad = tmp_path / "bad"
    bad.mkdir()
    if what == "another family":
        saved(build("gpt2"), bad)
    elif what == "another width":
        saved(build("llama", hidden_size=48, intermediate_size=64), bad)
    elif what == "more layers":
        saved(build("llama", num_hidden_layers=4), bad)
    elif what == "quantised":
        saved(build("llama"), bad)
        settings = json.loads((bad / "config.json").read_text("utf-8"))
        settings["quantization_config"] = {"quant_method": "fp8"}
        (bad / "config.json").write_text(json.dumps(settings))
    elif what == "damaged":
        (bad / "model.safetensors").write_bytes(b"nothing")
    elif what == "pickle":
        (bad / "pytorch_model.bin").write_bytes(b"nothing")
    elif what == "packed":
        from safetensors.torch import save_file

        save_file({"model.norm.weight": torch.ones(3, dtype=torch.uint8)}, bad / "model.safetensors")
    if what == "a folder without weights":
        (bad / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=BAD[what]) as raised:
        sl.audit(base, bad)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="not an int"):
        sl.audit(3, tiny("llama"))
    with pytest.raises(ModelError, match="neither a folder here nor a model that can be fetched"):
        sl.audit("nobody/nothing", tiny("llama"))


def test_other_words_in_the_tokenizer_are_said(tmp_path: Path) -> None:
    base = saved(build("llama"), tmp_path / "base")
    other = saved(build("llama"), tmp_path / "other")
    listed = json.loads((other / "tokenizer.json").read_text("utf-8"))
    words = listed["model"]["vocab"]
    words["Paris!"] = words.pop(max(words, key=words.get))
    (other / "tokenizer.json").write_text(json.dumps(listed))
    found = sl.audit(base, other)
    assert found.kind == "identical"
    assert "The tokenizers differ: 1 of" in found.details[0]
