"""Ablations after which weights keep their length: hooks, baked weights and numpy agree; files, sentences, refusals."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tiny, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_every_way import REFUSED as REFUSED_FAMILIES
from tolerances import close

import steerlab as sl
from steerlab.cli.written import Written, placed
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site, load_model
from steerlab.steering import edit_from_dict

PROMPTS = ["The capital of France is Paris.", "A cat"]
WRITERS = re.compile(r"(o_proj|down_proj|dense|dense_4h_to_h|c_proj|out_proj|fc2|fc_out)$")
SITE = Site("resid_post", 1)
#: With what is asked for and in the way, words of the sentence.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"toward": 1.5}, "goes toward 0 alone and not toward 1.5"),
    "a mean": ({"toward": "mean"}, "goes toward 0 alone"),
    "a schedule": ({"schedule": sl.steering.Decay(0.9)}, "a share of the change keeps no length"),
    "the stream": ({"sites": "resid_post.1"}, "not at resid_post.1"),
    "a family of the stream": ({"sites": "resid_post"}, "not at resid_post"),
    "an input alone": ({"sites": "z.1"}, "not at z.1"),
    "another word": ({"preserve": "rows"}, "keeps 'norm' or nothing"),
}


def direction(model: LanguageModel, k: int = 1, seed: int = 0) -> sl.Direction:
    rows = torch.randn(k, model.d_model, generator=torch.Generator().manual_seed(seed))
    return sl.Direction({SITE: rows}, model.name, model.fingerprint)


def by_hand(model: LanguageModel, rows: np.ndarray) -> Any:
    """A copy of the module with every writing map changed by numpy, column by column, and its bias projected."""
    made = copy.deepcopy(model.model)
    q = np.linalg.svd(rows, full_matrices=False)[2]
    away = np.eye(q.shape[1]) - q.T @ q
    for name, module in made.named_modules():
        if not WRITERS.search(name):
            continue
        turned = type(module).__name__ == "Conv1D"
        matrix = module.weight.detach().numpy().T if turned else module.weight.detach().numpy()
        written = [matrix[:, j] for j in range(matrix.shape[1])]
        kept = [away @ column * np.linalg.norm(column) / np.linalg.norm(away @ column) for column in written]
        new = torch.from_numpy(np.stack(kept, axis=1))
        with torch.no_grad():
            module.weight.copy_(new.T if turned else new)
            if module.bias is not None:
                module.bias.copy_(torch.from_numpy(away @ module.bias.numpy()))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_weights_and_numpy_agree(family: str) -> None:
    why = REFUSED_FAMILIES.get((family, "keeps_lengths"))
    single = (
        why is not None or family == "bloom"
    )  # grouped experts take no float64, and BLOOM's mask overflows there
    module, rtol = (build(family), 1e-4) if single else (build(family).double(), 1e-9)
    model, k = load_model(module, tokenizer=tiny_tokenizer()), 1 + FAMILIES.index(family) % 2
    edit = sl.Ablate(direction(model, k), preserve="norm")
    if why is not None:
        with pytest.raises(SteeringError, match=why), model.steering(edit):
            pass
        with pytest.raises(SteeringError, match=why):
            sl.bake(model, edit)
        return
    with model.steering(edit):
        steered = model.logits(PROMPTS)
        written = model.generate(PROMPTS, max_new_tokens=5)
        rows = sl.capture(model, PROMPTS, ["attn_out", "mlp_out"], positions=sl.All())
    hand = load_model(
        by_hand(model, direction(model, k).vectors[SITE].double().numpy()), tokenizer=tiny_tokenizer()
    )
    close(steered, hand.logits(PROMPTS), rtol=rtol)
    baked = sl.bake(model, edit)
    close(baked.logits(PROMPTS), steered, rtol=rtol)
    assert baked.generate(PROMPTS, max_new_tokens=5) == written
    mine, theirs = baked.model.state_dict(), hand.model.state_dict()
    for name in theirs:
        close(mine[name].double(), theirs[name].double(), rtol=rtol)
    assert (steered - model.logits(PROMPTS)).abs().max() > 5e-3
    q = torch.linalg.qr(direction(model, k).vectors[SITE].double().T).Q
    for site in rows.sites:
        assert float((rows[site].double() @ q).norm()) <= 1e-6 * float(
            rows[site].double().norm()
        )  # read in float32


def test_it_is_not_the_plain_ablation_of_the_same_sites() -> None:
    model = tiny("llama")
    sites = ["attn_out", "mlp_out"]
    with model.steering(sl.Ablate(direction(model), sites=sites)):
        plain = model.logits(PROMPTS)
    with model.steering(sl.Ablate(direction(model), preserve="norm")):
        kept = model.logits(PROMPTS)
    assert (kept - plain).abs().max() > 1e-3
    parts = [
        sl.bake(model, sl.Ablate(direction(model), sites=sites)),
        sl.bake(model, sl.Ablate(direction(model), preserve="norm")),
    ]
    lengths = [part.model.model.layers[0].mlp.down_proj.weight.norm(dim=0) for part in (model, *parts)]
    close(lengths[2], lengths[0])
    assert bool((lengths[1] < lengths[0]).all())


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_engines_do_the_same(backend: str, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = []
    for engine in ("transformers", backend):
        model = sl.load(tmp_path, backend=engine, device="cpu")
        with model.steering(sl.Ablate(direction(model), preserve="norm")):
            found.append(model.logits(PROMPTS))
    close(found[1], found[0])


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon_7b"])
def test_layers_tokens_and_other_edits(family: str) -> None:
    """A window of layers; beside an addition in front of and behind it; some tokens alone, by rows and alone."""
    model = tiny(family)
    edit = sl.Ablate(direction(model), preserve="norm", layers=(1, 2))
    assert {site.layer for site in edit.sites} == {1, 2}
    for edits in ([edit], [sl.Add(torch.ones(model.width(Site("z", 1))), 0.3, sites="z.1"), edit]):
        for order in (edits, edits[::-1]):
            with model.steering(*order):
                ablated = model.logits(PROMPTS)
            close(sl.bake(model, *order).logits(PROMPTS), ablated)
    some = sl.Ablate(direction(model), preserve="norm", positions=sl.All() - sl.Index(0))
    with model.steering(some):
        together = model.logits(PROMPTS)
        alone = torch.cat([model.logits([prompt]) for prompt in PROMPTS])
    close(together, alone)
    with model.steering(sl.PerRow([some], [])):
        rows = model.logits(PROMPTS)
    close(rows[0], together[0])
    close(rows[1], model.logits(PROMPTS)[1])
    with pytest.raises(SteeringError, match="weights act on every token"):
        sl.bake(model, some)


def test_a_mixture_of_experts_is_ablated_at_its_attention() -> None:
    model = tiny("mixtral")
    edit = sl.Ablate(direction(model), preserve="norm", sites="attn_out")
    with model.steering(edit):
        steered = model.logits(PROMPTS)
    close(sl.bake(model, edit).logits(PROMPTS), steered)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_what_inputs_write_keeps_its_length(seed: int, k: int) -> None:
    model = tiny("gpt2")
    edit = sl.Ablate(direction(model, k, seed), preserve="norm")
    baked = sl.bake(model, edit).model.transformer.h
    q = torch.linalg.qr(direction(model, k, seed).vectors[SITE].double().T).Q
    for block, plain in zip(baked, model.model.transformer.h, strict=True):
        for new, old in ((block.mlp.c_proj, plain.mlp.c_proj), (block.attn.c_proj, plain.attn.c_proj)):
            close(new.weight.norm(dim=1), old.weight.norm(dim=1), rtol=1e-5)  # Conv1D stores [in, out]
            assert float((new.weight.detach().double() @ q).abs().max()) < 1e-6 * float(
                old.weight.detach().norm()
            )


def test_a_column_that_lies_along_the_direction_becomes_zero() -> None:
    """Its direction afterwards would be rounding, and so it is not blown up again."""
    module: Any = build("llama")
    made = direction(tiny("llama"))
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight[:, 3] = 2 * made[SITE]
        module.model.layers[0].mlp.down_proj.weight[:, 4] = 0
    model = load_model(module, tokenizer=tiny_tokenizer())
    made = direction(model)
    baked = (
        sl.bake(model, sl.Ablate(made, preserve="norm")).model.model.layers[0].mlp.down_proj.weight.detach()
    )
    assert float(baked[:, 3:5].norm()) < 1e-5 * float(made[SITE].norm())


def test_it_is_data(tmp_path: Path) -> None:
    model = tiny("llama")
    made = direction(model)
    for options in ({}, {"layers": [0, 2]}, {"sites": "mlp_out"}, {"layers": "all"}):
        edit = sl.Ablate(made, preserve="norm", **options)  # type: ignore[arg-type]
        before = edit.to_dict()
        with model.steering(edit):
            steered = model.logits(PROMPTS)
        assert edit.to_dict() == before
        assert before["preserve"] == "norm"
        again = edit_from_dict(before, [made])
        for twin in (again, replace(edit)):
            with model.steering(twin):
                assert torch.equal(model.logits(PROMPTS), steered)
        assert repr(again) == repr(edit)
        assert "with the lengths of weights kept" in repr(edit)
    assert "preserve" not in sl.Ablate(made).to_dict()  # stored ablations are what they were
    folder = sl.export(model, sl.Ablate(made, preserve="norm"), tmp_path / "made")
    assert '"preserve": "norm"' in (folder / "steering.json").read_text("utf-8")
    assert sl.audit(model, folder).kind == "directional ablation"


def test_the_command_line_writes_it(tmp_path: Path) -> None:
    model = tiny("llama")
    file = tmp_path / "d.safetensors"
    direction(model).save(file)
    (whole,) = placed(model, [Written(True, "", file, direction(model), "norm", None)])
    (window,) = placed(model, [Written(True, "", file, direction(model), "norm", "1-2")])
    assert isinstance(whole, sl.Ablate)
    assert isinstance(window, sl.Ablate)
    assert whole.preserve == window.preserve == "norm"
    assert {site.layer for site in window.sites} == {1, 2}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused(what: str) -> None:
    model = tiny("llama")
    options, words = REFUSED[what]
    with pytest.raises(SteeringError, match=words) as raised:
        sl.Ablate(direction(model), **{"preserve": "norm", **options})
    assert str(raised.value).endswith(".")
    with pytest.raises(SteeringError, match="the model says"):
        sl.Ablate(direction(model), preserve="norm").apply(torch.ones(1, 1, 48), Site("mlp_post", 0))
