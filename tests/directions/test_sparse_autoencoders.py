"""Decoder rows of sparse autoencoders, in both layouts: the rows, their site, and sentences for what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import steerlab as sl
from steerlab.directions import read_sae
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Site
from steerlab.steering import edit_from_dict

WIDTH, FEATURES = 32, 6


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "W_dec": torch.randn(FEATURES, WIDTH, generator=generator),
        "W_enc": torch.randn(WIDTH, FEATURES, generator=generator),
        "b_dec": torch.randn(WIDTH, generator=generator),
        "threshold": torch.rand(FEATURES, generator=generator),
    }


def sae_lens(
    folder: Path, config: dict[str, Any] | None, given: dict[str, torch.Tensor] | None = None
) -> Path:
    """What SAELens' `save_model` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(given or weights(), folder / "sae_weights.safetensors")
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def gemma_scope(folder: Path, given: dict[str, torch.Tensor] | None = None) -> Path:
    """A folder as of the repositories gemma-scope-*."""
    place = folder / "layer_1" / "width_16k" / "average_l0_10"
    place.mkdir(parents=True, exist_ok=True)
    np.savez(place / "params.npz", **{name: part.numpy() for name, part in (given or weights()).items()})
    return place / "params.npz"


@pytest.mark.parametrize(
    ("config", "site"),
    [
        ({"hook_name": "blocks.1.hook_resid_post", "d_in": WIDTH, "d_sae": FEATURES}, "resid_post.1"),
        ({"hook_point": "blocks.2.hook_resid_pre"}, "resid_pre.2"),  # releases before 3
        (
            {"architecture": "jumprelu", "metadata": {"hook_name": "blocks.0.hook_mlp_out"}},
            "mlp_out.0",
        ),  # from 6
        (
            {"metadata": {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}},
            "mlp_out.1",
        ),
        ({"hook_name": "blocks.1.attn.hook_z"}, "z.1"),
    ],
)
def test_a_folder_of_sae_lens_says_its_site(
    tiny_llama: LanguageModel, tmp_path: Path, config: dict[str, Any], site: str
) -> None:
    folder = sae_lens(tmp_path / "sae", config)
    for path in (folder, folder / "sae_weights.safetensors", str(folder)):
        direction = read_sae(path, 4, tiny_llama)
        assert direction.sites == (Site.parse(site),)
        assert torch.equal(direction.vectors[Site.parse(site)][0], weights()["W_dec"][4])
    assert direction.parameters == {"file": "sae_weights.safetensors", "features": [4]}
    assert read_sae(folder, 4, tiny_llama, site=site).hash == direction.hash


def test_gemma_scope_is_told_its_site(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    path = gemma_scope(tmp_path)
    for place in (path, path.parent):
        direction = read_sae(place, np.int64(2), tiny_llama, site="resid_post.1")
        assert torch.equal(direction["resid_post.1"], weights()["W_dec"][2])
    several = read_sae(path, [0, 5], tiny_llama, site=Site("resid_post", 1))
    assert torch.equal(several.vectors[Site("resid_post", 1)], weights()["W_dec"][[0, 5]])


def test_half_precision_is_read(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    half = {name: part.bfloat16() for name, part in weights().items()}
    folder = sae_lens(tmp_path, {"hook_name": "blocks.1.hook_resid_post"}, half)
    assert torch.equal(read_sae(folder, 3, tiny_llama)[1], half["W_dec"][3].float())


def test_a_feature_is_added_removed_clamped_and_stored(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    feature = read_sae(gemma_scope(tmp_path), 2, tiny_llama, site="resid_post.1")
    row = weights()["W_dec"][2]
    edit = sl.Add(feature, 3.0)
    state = torch.randn(2, 3, WIDTH)
    torch.testing.assert_close(edit.apply(state, Site("resid_post", 1)), state + 3 * row)  # raw activations
    feature.save(tmp_path / "feature.safetensors")
    stored = sl.Direction.load(tmp_path / "feature.safetensors")
    for one in (edit, sl.Ablate(feature), sl.Clamp(feature, 5.0)):
        with tiny_llama.steering(one):
            right = tiny_llama.logits("a cat")
        with tiny_llama.steering(edit_from_dict(one.to_dict(), [stored])):
            assert torch.equal(tiny_llama.logits("a cat"), right)


def test_the_output_of_one_block_is_the_input_of_the_next(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    folder = sae_lens(tmp_path, {"hook_name": "blocks.2.hook_resid_pre"})
    assert read_sae(folder, 0, tiny_llama, site="resid_post.1").sites == (Site("resid_post", 1),)
    with pytest.raises(SteerlabError, match=r"trained at resid_pre\.2"):
        read_sae(folder, 0, tiny_llama, site="resid_post.2")


POST = {"hook_name": "blocks.1.hook_resid_post"}
_Make = Callable[[Path], tuple[Path, Any, dict[str, Any]]]


def _without(name: str) -> dict[str, torch.Tensor]:
    return {key: part for key, part in weights().items() if key != name}


def _zero_row() -> dict[str, torch.Tensor]:
    made = weights()
    made["W_dec"][2] = 0
    return made


def _pickled(place: Path) -> Path:
    np.savez(place / "params.npz", W_dec=np.array([{"a": 1}], dtype=object))
    return place / "params.npz"


def _text(place: Path, name: str) -> Path:
    (place / name).write_text("not a file of numbers")
    return place / name


REFUSED: dict[str, tuple[_Make, str]] = {
    "nothing there": (lambda p: (p / "gone", 0, {}), "There is no sae_weights.safetensors or params.npz"),
    "a pickle of torch": (lambda p: (_text(p, "sae.pt"), 0, {}), "neither safetensors"),
    "index": (lambda p: (sae_lens(p, POST), FEATURES, {}), "has the features 0 to 5, not 6"),
    "negative": (lambda p: (gemma_scope(p), -1, {"site": "resid_post.1"}), "has the features 0 to 5, not -1"),
    "one of several": (lambda p: (sae_lens(p, POST), [0, 9], {}), "not 9"),
    "a name": (lambda p: (sae_lens(p, POST), "cats", {}), "counted from 0"),
    "truth value": (lambda p: (sae_lens(p, POST), True, {}), "counted from 0"),
    "none": (lambda p: (sae_lens(p, POST), [], {}), "counted from 0"),
    "no decoder": (lambda p: (sae_lens(p, POST, _without("W_dec")), 0, {}), "has no W_dec"),
    "no decoder, npz": (
        lambda p: (gemma_scope(p, _without("W_dec")), 0, {"site": "resid_post.1"}),
        "it has W_enc, b_dec, threshold",
    ),
    "width": (
        lambda p: (sae_lens(p, POST, {"W_dec": torch.ones(4, 7)}), 0, {}),
        "have 7 numbers, and resid_post.1 of tiny-llama has width 32",
    ),
    "one axis": (lambda p: (sae_lens(p, POST, {"W_dec": torch.ones(4)}), 0, {}), r"has the shape \[4\]"),
    "dead": (lambda p: (sae_lens(p, POST, _zero_row()), 2, {}), "Feature 2 of .* writes nothing"),
    "no site": (lambda p: (gemma_scope(p), 0, {}), "does not say where it was trained"),
    "no configuration": (lambda p: (sae_lens(p, None), 0, {}), "does not say where it was trained"),
    "another site": (lambda p: (sae_lens(p, POST), 0, {"site": "resid_post.0"}), "trained at resid_post.1"),
    "no site of ours": (
        lambda p: (sae_lens(p, {"hook_name": "blocks.0.ln2.hook_normalized"}), 0, {}),
        "none of the sites here",
    ),
    "a layer too many": (
        lambda p: (sae_lens(p, {"hook_name": "blocks.7.hook_resid_post"}), 0, {}),
        "resid_post.7",
    ),
    "objects": (lambda p: (_pickled(p), 0, {"site": "resid_post.1"}), "objects are not opened"),
    "text": (lambda p: (_text(p, "params.npz"), 0, {"site": "resid_post.1"}), "cannot be read as NumPy"),
    "text, safetensors": (
        lambda p: (_text(p, "sae_weights.safetensors"), 0, {"site": "resid_post.1"}),
        "cannot be read as a safetensors",
    ),
    "configuration": (
        lambda p: (_text(sae_lens(p, POST), "cfg.json").parent, 0, {}),
        "cannot be read as JSON",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(
    tiny_llama: LanguageModel, tmp_path: Path, case: str
) -> None:
    make, said = REFUSED[case]
    path, feature, options = make(tmp_path)
    with pytest.raises(SteerlabError, match=said):
        read_sae(path, feature, tiny_llama, **options)
