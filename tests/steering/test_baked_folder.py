"""A baked folder keeps what the checkpoint had: dtypes, shards, tokenizer, licence; and says what was done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from families import build, tiny_tokenizer
from safetensors import safe_open
from torch import Tensor

from steerlab.directions import Direction
from steerlab.models import LanguageModel, Site, load_model
from steerlab.steering import Ablate, Add, bake, export, export_transformers

PROMPT = "The capital of France is Paris."
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16, one norm of it in float32, in several files, with a licence and a card."""
    folder = tmp_path_factory.mktemp("checkpoint") / "sharded"
    module = build("llama").bfloat16()
    module.model.norm.float()
    module.generation_config.max_new_tokens = 7
    module.save_pretrained(folder, max_shard_size="20KB")
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.save_pretrained(folder)
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "Notice.txt").write_text("Made for a test.")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Tiny\n")
    return folder


def direction(model: LanguageModel, name: str = "resid_pre.1", seed: int = 0) -> Direction:
    site = Site.parse(name)
    vector = torch.randn(model.width(site), generator=torch.Generator().manual_seed(seed))
    return Direction({site: vector}, model.name, model.fingerprint)


def stored(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors


def test_every_tensor_keeps_its_file_and_its_dtype(sharded: Path, tmp_path: Path) -> None:
    model = load_model(sharded)
    assert model.dtype == torch.float32  # computed in, on a CPU
    folder = export_transformers(model, [Ablate(direction(model))], tmp_path / "baked")
    before, after = stored(sharded), stored(folder)
    assert {key: tensor.dtype for key, tensor in after.items()} == {
        key: tensor.dtype for key, tensor in before.items()
    }
    assert after["model.norm.weight"].dtype == torch.float32
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    assert len(set(places.values())) > 3
    assert json.loads((folder / INDEX).read_text())["weight_map"] == places
    assert {path.name for path in folder.glob("*.safetensors")} == set(places.values())
    for key, name in places.items():
        with safe_open(str(folder / name), framework="pt") as file:
            assert key in file.keys()  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert sum(map(os.path.getsize, folder.glob("*.safetensors"))) == sum(
        map(os.path.getsize, sharded.glob("*.safetensors"))
    )


def test_a_change_is_rounded_once_and_the_rest_is_the_checkpoint_bit_for_bit(
    sharded: Path, tmp_path: Path
) -> None:
    model = load_model(sharded)
    edit = Ablate(direction(model))
    after, before = stored(export_transformers(model, [edit], tmp_path / "baked")), stored(sharded)
    unit = torch.nn.functional.normalize(edit.direction[Site("resid_pre", 1)].double(), dim=0)
    for key, tensor in before.items():
        if key.endswith(("o_proj.weight", "down_proj.weight")):
            exact = tensor.double() - torch.outer(unit, unit @ tensor.double())
        elif key.endswith("embed_tokens.weight"):
            exact = tensor.double() - torch.outer(tensor.double() @ unit, unit)
        else:
            assert torch.equal(after[key], tensor)
            continue
        # float32 arithmetic may fall on the other side of a rounding boundary, once in thousands.
        wanted = exact.to(torch.bfloat16)
        assert (after[key] == wanted).double().mean() > 0.995
        assert ((after[key].double() - exact).abs() <= exact.abs() * 2**-8 + 1e-9).all()


def test_several_changes_of_one_part_are_rounded_once_in_a_model_in_bfloat16() -> None:
    """Three additions of a third of an ulp each move a bias by one; rounded one by one they would move nothing."""
    module = build("gpt2").bfloat16()
    model = load_model(module, tokenizer=tiny_tokenizer(bos=False), dtype="bfloat16")
    bias = module.transformer.h[1].mlp.c_proj.bias
    with torch.no_grad():
        bias.fill_(1.0)
    third = Direction(
        {Site("resid_post", 1): torch.full((model.d_model,), 2**-7 / 3)}, model.name, model.fingerprint
    )
    baked = bake(model, *(Add(third, unit="raw") for _ in range(3)))
    new = baked.model.transformer.h[1].mlp.c_proj.bias
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, torch.full_like(new, 1 + 2**-7))


def test_the_record_says_how_large_the_rounding_is(sharded: Path, tmp_path: Path) -> None:
    model = load_model(sharded)
    edit = Add(direction(model, "resid_post.1"), strength=2.0)
    folder = export_transformers(model, [edit], tmp_path / "baked")
    said = json.loads((folder / "steering.json").read_text())["rounding"]
    assert said["dtype"] == "bfloat16"
    tokens = torch.arange(1, said["tokens"] + 1) * 7919 % model.vocab_size
    again = load_model(folder)
    with torch.no_grad(), model.steering(edit):
        steered = model.model(tokens[None]).logits[0, :, : model.vocab_size].double()
    with torch.no_grad():
        found = again.model(tokens[None]).logits[0, :, : model.vocab_size].double()
    error = ((found - steered).norm(dim=1) / steered.norm(dim=1)).median()
    assert said["logits"] == pytest.approx(float(error), rel=1e-3)
    assert 1e-6 < said["logits"] < 0.02
    card = (folder / "README.md").read_text()
    assert again.fingerprint in card
    assert f"{said['logits']:.2g} of their size" in card


def test_a_checkpoint_in_float32_stays_one(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "plain")
    tiny_tokenizer(bos=False).save_pretrained(tmp_path / "plain")
    model = load_model(tmp_path / "plain")
    folder = export_transformers(model, [Ablate(direction(model))], tmp_path / "baked")
    assert {tensor.dtype for tensor in stored(folder).values()} == {torch.float32}
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]
    assert json.loads((folder / "steering.json").read_text())["rounding"]["logits"] < 1e-5


def test_another_dtype_is_written_where_it_is_asked_for(sharded: Path, tmp_path: Path) -> None:
    model = load_model(sharded, dtype="float32")
    folder = export(model, Ablate(direction(model)), tmp_path / "wide", dtype="float32")
    assert {tensor.dtype for tensor in stored(folder).values()} == {torch.float32}
    narrow = load_model(sharded, dtype="float16")
    folder = export_transformers(narrow, [Ablate(direction(narrow))], tmp_path / "half")
    kinds = {tensor.dtype for tensor in stored(folder).values()}
    assert kinds == {torch.float16}  # what was read as float16 is not bfloat16 any more


def test_licence_template_and_generation_settings_are_kept(sharded: Path, tmp_path: Path) -> None:
    model = load_model(sharded)
    folder = export_transformers(model, [Ablate(direction(model))], tmp_path / "baked")
    for name in ("LICENSE", "Notice.txt", "chat_template.jinja", "tokenizer.json"):
        assert (folder / name).read_bytes() == (sharded / name).read_bytes()
    kept = [json.loads((place / "generation_config.json").read_text()) for place in (sharded, folder)]
    assert kept[0] == kept[1]
    assert kept[0]["max_new_tokens"] == 7
    card = (folder / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert "LICENSE, Notice.txt" in card


def test_the_card_says_how_it_is_undone_and_that_works(sharded: Path, tmp_path: Path) -> None:
    model = load_model(sharded)
    edit = Add(direction(model, "resid_post.1"), strength=2.0, unit="raw")
    folder = export_transformers(model, [edit, Ablate(direction(model))], tmp_path / "both")
    card = (folder / "README.md").read_text()
    assert "sl.Add(direction.moved_to(model), -2.0, unit='raw', sites=['resid_post.1'])" in card
    assert "not undone from these weights alone" in card
    assert "steerlab audit" in card
    again = load_model(export_transformers(model, [edit], tmp_path / "added"))
    undone = bake(again, Add(edit.direction.moved_to(again), -2.0, unit="raw", sites=["resid_post.1"]))
    plain = model.logits([PROMPT])
    assert (again.logits([PROMPT]) - plain).abs().max() > 5e-3
    assert (undone.logits([PROMPT]) - plain).abs().max() < 1e-2 * plain.abs().max()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX file modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_readable_as_the_umask_says(mask: int, mode: int, sharded: Path, tmp_path: Path) -> None:
    model = load_model(sharded)
    with umask(mask):
        folder = export_transformers(model, [Ablate(direction(model))], tmp_path / "baked")
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}


def test_a_model_made_here_is_written_as_it_is(tmp_path: Path) -> None:
    model = load_model(build("llama").bfloat16(), tokenizer=tiny_tokenizer(), dtype="bfloat16")
    folder = export_transformers(model, [Ablate(direction(model))], tmp_path / "baked")
    assert {tensor.dtype for tensor in stored(folder).values()} == {torch.bfloat16}
    assert json.loads((folder / "steering.json").read_text())["rounding"]["dtype"] == "bfloat16"
