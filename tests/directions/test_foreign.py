"""Directions of other tools: what their files say, layer by layer, and what is not opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny

from steerlab.directions import Direction, read_caa, read_gguf, read_refusal_direction, read_steering_vectors
from steerlab.errors import DirectionError
from steerlab.models import LanguageModel, Site
from steerlab.steering import Add, export_gguf

WIDTH = 32


@pytest.fixture(scope="module")
def gemma() -> LanguageModel:
    """The shape of Gemma-2B where a direction can tell: 18 layers of width 2048."""
    return tiny("gemma", hidden_size=2048, num_hidden_layers=18)


def vector(seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def _repeng(path: Path, directions: dict[int, np.ndarray]) -> None:
    """What repeng's `ControlVector.export_gguf` writes."""
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, row in directions.items():
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --------------------------------------------------------------------------------------------------------------- gguf


def test_a_repeng_control_vector_acts_on_block_outputs(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    rows = {layer: vector(layer).numpy() for layer in (1, 2)}
    _repeng(tmp_path / "happy.gguf", rows)
    read = read_gguf(tmp_path / "happy.gguf", tiny_llama)
    assert read.sites == (Site("resid_post", 1), Site("resid_post", 2))
    for layer, row in rows.items():
        np.testing.assert_array_equal(read[Site("resid_post", layer)].numpy(), row)
    read.check(tiny_llama)


def test_what_was_exported_is_read_back(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    made = Direction({Site("resid_post", 1): vector()}, tiny_llama.name, tiny_llama.fingerprint)
    pytest.importorskip("gguf", reason="needs the extra gguf")
    path = export_gguf(tiny_llama, [Add(made, strength=2.0)], tmp_path / "made.gguf")
    read = read_gguf(path, tiny_llama)
    torch.testing.assert_close(read[Site("resid_post", 1)], 2 * made[Site("resid_post", 1)])
    with pytest.raises(DirectionError, match="was written for a model with fingerprint"):
        read_gguf(path, tiny("llama", seed=1))


@pytest.mark.parametrize("kind", ["F16", "F64", "BF16", "Q8_0", "Q4_K"])
def test_packed_numbers_are_unpacked(tmp_path: Path, kind: str) -> None:
    """What the gguf package packs, it unpacks: within the kind's own precision of what was written."""
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    wanted = vector(width=256)
    row = wanted.numpy()
    types = {"F16": np.float16, "F64": np.float64}
    writer = gguf.GGUFWriter(tmp_path / "packed.gguf", "controlvector")
    if kind in types:
        writer.add_tensor("direction.1", row.astype(types[kind]))
    elif kind == "Q4_K":
        # Blocks of 256: two float16 scales, 12 bytes of block scales, 128 bytes of four-bit numbers.
        block = np.concatenate([np.array([1, 0], np.float16).view(np.uint8), np.full(12, 1, np.uint8),
                                np.full(128, 0x33, np.uint8)])  # fmt: skip
        wanted = torch.from_numpy(gguf.dequantize(block, gguf.GGMLQuantizationType.Q4_K))
        writer.add_tensor("direction.1", block, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    else:
        packed = gguf.GGMLQuantizationType[kind]
        writer.add_tensor("direction.1", gguf.quantize(row, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf(tmp_path / "packed.gguf", tiny("llama", hidden_size=256))[Site("resid_post", 1)]
    assert read.shape == (256,)
    torch.testing.assert_close(read, wanted, rtol=0.01, atol=0.02)


def test_whole_numbers_are_no_direction(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    _repeng(tmp_path / "whole.gguf", {1: np.arange(WIDTH, dtype=np.int32)})
    with pytest.raises(DirectionError, match=r"direction\.1 as I32, which is not read; save it as F32"):
        read_gguf(tmp_path / "whole.gguf", tiny_llama)
    for given in (torch.arange(WIDTH), torch.ones(WIDTH, dtype=torch.complex64), torch.ones(WIDTH).bool()):
        torch.save({1: given}, tmp_path / "whole.pt")
        with pytest.raises(DirectionError, match=r"layer 1 holds \w+ numbers.*save it as float32"):
            read_steering_vectors(tmp_path / "whole.pt", tiny_llama)


def test_damaged_and_wrong_gguf_files_are_refused(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    _repeng(tmp_path / "whole.gguf", {1: vector().numpy()})
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:90])
    (tmp_path / "text.gguf").write_text("hello, I am no tensor file at all")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("cut", "text", "empty"):
        with pytest.raises(DirectionError, match="cannot be read as a GGUF file"):
            read_gguf(tmp_path / f"{name}.gguf", tiny_llama)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", vector().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DirectionError, match="not a control vector"):
        read_gguf(tmp_path / "model.gguf", tiny_llama)
    with pytest.raises(DirectionError, match="There is no file"):
        read_gguf(tmp_path / "absent.gguf", tiny_llama)
    _repeng(tmp_path / "wide.gguf", {1: vector(width=64).numpy()})
    with pytest.raises(DirectionError, match="width 64"):
        read_gguf(tmp_path / "wide.gguf", tiny_llama)
    _repeng(tmp_path / "deep.gguf", {7: vector().numpy()})
    with pytest.raises(DirectionError, match=r"resid_post\.7"):
        read_gguf(tmp_path / "deep.gguf", tiny_llama)


# ---------------------------------------------------------------------------------------------------------- torch.save


def test_steering_vectors_are_read_by_layer(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    rows = {2: vector(2), 0: vector(0)}
    torch.save(rows, tmp_path / "vectors.pt")
    read = read_steering_vectors(tmp_path / "vectors.pt", tiny_llama)
    assert read.sites == (Site("resid_post", 0), Site("resid_post", 2))
    assert torch.equal(read[Site("resid_post", 2)], rows[2])
    attention = read_steering_vectors(tmp_path / "vectors.pt", tiny_llama, name="attn_out")
    assert attention.sites == (Site("attn_out", 0), Site("attn_out", 2))
    torch.save({-1: vector()}, tmp_path / "negative.pt")
    with pytest.raises(DirectionError, match="layers count from 0"):
        read_steering_vectors(tmp_path / "negative.pt", tiny_llama)
    torch.save([vector()], tmp_path / "list.pt")
    with pytest.raises(DirectionError, match="holds a list, not a dictionary"):
        read_steering_vectors(tmp_path / "list.pt", tiny_llama)


def test_caa_vectors_have_their_layer_in_the_name(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    for layer in (0, 2):
        torch.save(vector(layer).half(), tmp_path / f"vec_layer_{layer}_Llama-2-7b-chat-hf.pt")
    both = read_caa(tmp_path, tiny_llama)
    assert both.sites == (Site("resid_post", 0), Site("resid_post", 2))
    one = read_caa(tmp_path / "vec_layer_2_Llama-2-7b-chat-hf.pt", tiny_llama)
    assert torch.equal(one[Site("resid_post", 2)], vector(2).half().float())
    torch.save(vector(), tmp_path / "mine.pt")
    assert read_caa(tmp_path / "mine.pt", tiny_llama, layer=1).sites == (Site("resid_post", 1),)
    with pytest.raises(DirectionError, match=r"does not say its layer; pass layer="):
        read_caa(tmp_path / "mine.pt", tiny_llama)
    torch.save(vector(), tmp_path / "vec_layer_2_other.pt")
    with pytest.raises(DirectionError, match="two vectors of layer 2"):
        read_caa(tmp_path, tiny_llama)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DirectionError, match="holds no vec_layer"):
        read_caa(tmp_path / "nothing", tiny_llama)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle ran",))


def test_pickled_objects_are_not_opened(
    tiny_llama: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_Evil(), tmp_path / "vec_layer_1_evil.pt")
    (tmp_path / "vec_layer_2_raw.pt").write_bytes(pickle.dumps(_Evil()))
    torch.save({1: vector().numpy()}, tmp_path / "vec_layer_0_numpy.pt")
    for layer, name in ((1, "evil"), (2, "raw"), (0, "numpy")):
        file = tmp_path / f"vec_layer_{layer}_{name}.pt"
        with pytest.raises(DirectionError, match="pickled objects are not opened"):
            read_caa(file, tiny_llama)
        with pytest.raises(DirectionError, match="pickled objects are not opened"):
            read_steering_vectors(file, tiny_llama)
    assert capsys.readouterr().out == ""


# -------------------------------------------------------------------------------------------------- refusal_direction


def test_a_published_refusal_direction_is_read_where_it_was_chosen(
    shared: Path, gemma: LanguageModel
) -> None:
    """Gemma-2B-it's run: (position, layer) = (-2, 10), norm 10.06; the choice is one of the differences of means."""
    run = shared / "data" / "refusal_direction_runs" / "gemma-2b-it"
    chosen = read_refusal_direction(run, gemma)
    assert chosen.sites == (Site("resid_pre", 10),)
    assert chosen.position == "Index(index=-2)"
    assert chosen[Site("resid_pre", 10)].norm().item() == pytest.approx(10.0644, abs=1e-3)
    every = read_refusal_direction(run, gemma, position=-2)
    assert every.sites == tuple(Site("resid_pre", layer) for layer in range(18))[-len(every.sites) :]
    assert torch.equal(every[Site("resid_pre", 10)], chosen[Site("resid_pre", 10)])
    # The last template token is the same in every prompt, so at the embedding the classes do not differ.
    assert Site("resid_pre", 0) not in read_refusal_direction(run, gemma, position=-1).sites
    with pytest.raises(DirectionError, match="positions -5 to -1, not 0"):
        read_refusal_direction(run, gemma, position=0)


def test_wrong_refusal_runs_are_refused(shared: Path, tiny_llama: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(DirectionError, match=r"resid_pre\.10"):
        read_refusal_direction(shared / "data" / "refusal_direction_runs" / "gemma-2b-it", tiny_llama)
    with pytest.raises(DirectionError, match=r"direction_metadata\.json"):
        read_refusal_direction(tmp_path, tiny_llama)
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"layer": 1}))
    with pytest.raises(DirectionError, match="does not name a layer and a position"):
        read_refusal_direction(tmp_path, tiny_llama)
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"layer": 1, "pos": -1}))
    torch.save(torch.zeros(2, WIDTH), tmp_path / "direction.pt")
    with pytest.raises(DirectionError, match="not one vector"):
        read_refusal_direction(tmp_path, tiny_llama)
    torch.save(vector(), tmp_path / "direction.pt")
    assert read_refusal_direction(tmp_path, tiny_llama).sites == (Site("resid_pre", 1),)
