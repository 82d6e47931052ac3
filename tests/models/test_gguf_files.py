"""GGUF files: one, one in parts, and folders that hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import tiny_tokenizer
from gguf_maker import write_gguf

import steerlab as sl
from steerlab.errors import ModelError

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> sl.LanguageModel:
    file = tmp_path_factory.mktemp("whole") / "tiny.gguf"
    network = write_gguf(file)
    model = sl.load(file)
    assert model.stored_as == "GGUF F32, dequantised"
    ids = model.tokenize(TEXT).input_ids
    with torch.no_grad():
        right = network(ids).logits[0, -1, : model.vocab_size]
    torch.testing.assert_close(model.logits(TEXT)[0], right, rtol=1e-5, atol=1e-5)
    return model


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    write_gguf(tmp_path / "tiny.gguf", tensors_a_part=16)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"tiny-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    return parts


@pytest.mark.parametrize("named", ["folder", 0, 1, 2])
def test_parts_are_the_whole_file(named: str | int, whole: sl.LanguageModel, split: list[Path]) -> None:
    model = sl.load(split[0].parent if isinstance(named, str) else split[named])
    assert model.stored_as == "GGUF F32 in 3 parts, dequantised"
    assert torch.equal(model.logits(TEXT), whole.logits(TEXT))
    assert model.tokenize(TEXT).input_ids.tolist() == whole.tokenize(TEXT).input_ids.tolist()
    assert model.generate(TEXT, max_new_tokens=4) == whole.generate(TEXT, max_new_tokens=4)
    assert model.fingerprint == whole.fingerprint
    assert sorted(split[0].parent.iterdir()) == split  # nothing is left beside them


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_part_is_named(gone: int, split: list[Path]) -> None:
    split[gone].unlink()
    for named in (split[2], split[0].parent):
        with pytest.raises(ModelError, match=rf"one of 3 parts, and {split[gone].name} is not beside it"):
            sl.load(named)


def test_damaged_parts_are_refused(split: list[Path]) -> None:
    split[1].write_bytes(b"GGUF")
    with pytest.raises(
        ModelError, match=r"The 3 parts that tiny-00001-of-00003\.gguf begins cannot be joined"
    ):
        sl.load(split[0])


def test_parts_of_another_model_are_counted(split: list[Path]) -> None:
    split[1].write_bytes(split[2].read_bytes())
    with pytest.raises(ModelError, match=r"cannot be joined|hold \d+ tensors of"):
        sl.load(split[0])


def test_of_several_models_in_a_folder_one_is_to_be_named(split: list[Path], whole: sl.LanguageModel) -> None:
    write_gguf(split[0].parent / "other.gguf")
    with pytest.raises(ModelError, match=r"several GGUF models \(other.gguf, tiny-00001-of-00003.gguf\)"):
        sl.load(split[0].parent)
    assert sl.load(split[0].parent / "other.gguf").fingerprint == whole.fingerprint


def test_a_gguf_file_is_a_tokenizer_too(split: list[Path]) -> None:
    from families import build

    model = sl.load(build("qwen2"), split[0])
    assert len(model.tokenizer) >= 320 > len(tiny_tokenizer())


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelError, match=r"give the folder that contains config\.json, or a \.gguf file"):
        sl.load(tmp_path / "notes.txt")


def test_without_the_package_a_gguf_file_is_a_sentence(
    split: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"gguf is not installed; run pip install 'steerlab\[gguf\]'"):
        sl.load(split[0])
