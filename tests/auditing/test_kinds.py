"""Every kind of change, on several families: the right verdict, and the direction without being told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from auditing.variants import (
    WRITERS,
    ablation,
    adapter,
    between,
    changed,
    direction,
    half,
    int4,
    int8,
    noise,
    tuned,
)
from families import build, tiny
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import steerlab as sl
from steerlab.auditing import AuditResult

FAMILIES = ("llama", "gpt2", "qwen2", "gemma", "gpt_neox", "mixtral")
Make = Callable[[nn.Module], Any]

Q = direction()
KINDS: dict[str, tuple[str, Make]] = {
    "same": ("identical", lambda model: model),
    "bfloat16": ("cast or requantised", half),
    "int8": ("cast or requantised", lambda model: changed(model, int8)),
    "int4": ("cast or requantised", lambda model: changed(model, int4)),
    "ablated": ("directional ablation", lambda model: changed(model, ablation(Q), WRITERS)),
    "ablated by 0.6": ("directional ablation", lambda model: changed(model, ablation(Q, 0.6), WRITERS)),
    "columns keep length": (
        "directional ablation",
        lambda model: changed(model, ablation(Q, keep=0), WRITERS),
    ),
    "rows keep length": ("directional ablation", lambda model: changed(model, ablation(Q, keep=1), WRITERS)),
    "ablated, then cast": (
        "directional ablation",
        lambda model: half(changed(model, ablation(Q), WRITERS)),
    ),
    "rank 1": ("low-rank adapter", lambda model: changed(model, adapter(1))),
    "rank 8": ("low-rank adapter", lambda model: changed(model, adapter(8))),
    "noise": ("noise", lambda model: changed(model, noise)),
    "tuned": ("full fine-tune", tuned),
}


def cosine(found: AuditResult, wanted: torch.Tensor) -> float:
    assert found.direction is not None
    (rows,) = found.direction.vectors.values()
    assert rows.shape == (1, len(wanted))
    return abs(float(torch.cosine_similarity(rows[0], wanted, dim=0)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", KINDS)
def test_the_kind_is_right(family: str, what: str) -> None:
    base = build(family)
    kind, make = KINDS[what]
    found = sl.audit(base, make(base))
    assert found.kind == kind, (found.sentence, [(row.name, row.label) for row in found.matrices])
    assert found.lineage.share > 0.9
    if kind == "directional ablation":
        assert cosine(found, Q) >= 0.95
        assert ("keep their length" in found.sentence) == ("length" in what), found.sentence
        assert ("not undone" in found.details[0]) == ("0.6" not in what)
    else:
        assert found.direction is None
    if what.startswith("rank"):
        assert found.rank == int(what.split()[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_is_told_with_the_other_model_at_hand(family: str) -> None:
    base = build(family)
    other = tuned(base)
    candidate = between(base, other, 0.3)
    assert sl.audit(base, candidate).kind == "full fine-tune"
    assert "other=" in sl.audit(base, candidate).details[0]
    found = sl.audit(base, candidate, other=other)
    assert found.kind == "merge"
    assert found.share == pytest.approx(0.3, abs=1e-3)
    assert sl.audit(base, tuned(base, seed=1, steps=1), other=build(family, seed=1)).kind == "full fine-tune"


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_other_seeds_are_of_another_lineage(family: str) -> None:
    found = sl.audit(build(family), build(family, seed=1))
    assert found.kind == "not the same lineage"
    assert abs(found.lineage.correlation) < 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mixtral"])
def test_what_bake_makes_is_recognised(family: str) -> None:
    model = tiny(family)
    site = sl.Site("resid_post", 1)
    made = sl.Direction({site: Q}, model.name, model.fingerprint)
    ablated = sl.audit(model, sl.bake(model, sl.Ablate(made)))
    assert ablated.kind == "directional ablation"
    assert cosine(ablated, Q) > 0.999
    recovered = ablated.direction
    assert recovered is not None
    with model.steering(sl.Ablate(recovered)):  # its fingerprint is the base's
        by_hooks = model.logits(["a cat"])
    with model.steering(sl.Ablate(made)):
        assert (model.logits(["a cat"]) - by_hooks).abs().max() < 1e-2
    if family != "mixtral":
        added = sl.audit(model, sl.bake(model, sl.Add(made, 2.0, unit="raw")))
        assert added.kind == "constant addition"
        assert added.direction is not None
        torch.testing.assert_close(added.direction[site], 2 * Q, atol=1e-3, rtol=1e-3)


def test_an_addition_at_the_embedding_is_one() -> None:
    base = build("llama")
    moved = changed(base, lambda rows: rows + 0.5 * Q, re.compile(r"embed_tokens"))
    found = sl.audit(base, moved)
    assert found.kind == "constant addition"
    assert found.direction is not None
    torch.testing.assert_close(found.direction["resid_pre.0"], 0.5 * Q, atol=1e-4, rtol=1e-3)


def test_a_direction_for_each_layer_is_told_from_one() -> None:
    model = base = build("llama")
    wanted = {layer: direction(seed=layer) for layer in range(3)}
    for layer, q in wanted.items():
        model = changed(model, ablation(q), re.compile(rf"layers\.{layer}\..*(o_proj|down_proj)"))
    found = sl.audit(base, model)
    assert found.kind == "directional ablation"
    assert found.direction is not None
    assert [site.layer for site in found.direction.sites] == [0, 1, 2]
    for layer, q in wanted.items():
        assert abs(float(found.direction[layer] @ q)) > 0.99


def test_a_few_ablated_matrices_among_casts_are_found() -> None:
    base = build("llama", num_hidden_layers=8)
    made = half(changed(base, ablation(Q), re.compile(r"layers\.4\.mlp\.down_proj")))
    found = sl.audit(base, made)
    assert found.kind == "directional ablation"
    assert cosine(found, Q) > 0.99
    assert sum(row.label == "cast to bfloat16" for row in found.matrices) > 50


def test_a_cast_of_a_table_of_which_few_rows_differ_is_one() -> None:
    """As after a fine-tune, which moves the words of its texts alone, and none of the rows that are sampled."""
    base = build("llama", vocab_size=1024).bfloat16().float()
    with torch.no_grad():
        base.model.embed_tokens.weight[5:8] += 1e-4 * torch.randn(3, 32)  # every fourth is sampled
    found = sl.audit(base, half(base))
    assert found.kind == "cast or requantised", found.sentence
    assert [row.label for row in found.matrices if row.label != "same"] == ["cast to bfloat16"]
    back = sl.audit(half(base), base)
    assert back.kind == "cast or requantised", back.sentence


def test_strengths_that_differ_by_layer_are_said() -> None:
    model = base = build("llama")
    for layer, strength in enumerate((0.4, 0.9, 1.3)):
        model = changed(model, ablation(Q, strength), re.compile(rf"layers\.{layer}\..*(o_proj|down_proj)"))
    found = sl.audit(base, model)
    assert found.kind == "directional ablation"
    assert "between 0.4 and 1.3" in found.sentence
    assert "matrix by matrix" in found.details[0]
    assert [row.strength for row in found.matrices if row.name.endswith("down_proj.weight")] == pytest.approx(
        [0.4, 0.9, 1.3], abs=1e-3
    )


def test_a_subspace_is_recovered_whole() -> None:
    base = build("llama")
    basis = torch.linalg.qr(torch.stack([direction(seed=1), direction(seed=2)], dim=1))[0]
    found = sl.audit(base, changed(base, lambda weight: weight - basis @ (basis.T @ weight), WRITERS))
    assert found.kind == "directional ablation"
    assert found.direction is not None
    (rows,) = found.direction.vectors.values()
    assert float((rows @ basis).square().sum()) == pytest.approx(2, abs=1e-3)


def test_added_words_are_named_and_not_compared() -> None:
    base = build("llama")
    grown = changed(base, lambda weight: weight)
    grown.resize_token_embeddings(330, mean_resizing=False)
    found = sl.audit(base, grown)
    assert found.kind == "embeddings added"
    assert any("10 rows more" in line for line in found.details)


def test_a_tuned_pair_of_stories_and_what_is_made_of_it(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    chat = shared / "models" / "stories260K-chat-local"
    assert sl.audit(folder, folder).kind == "identical"
    assert sl.audit(folder, chat).kind == "full fine-tune"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    q = direction(64)
    made = {
        "cast or requantised": half(base),
        "directional ablation": half(changed(base, ablation(q, keep=0), WRITERS)),
        "low-rank adapter": changed(base, adapter(8)),
        "noise": half(changed(base, noise)),
        "full fine-tune": tuned(base, AutoTokenizer.from_pretrained(folder)),
    }
    for kind, model in made.items():
        model.save_pretrained(tmp_path / kind)
        found = sl.audit(folder, tmp_path / kind)
        assert found.kind == kind, found.sentence
    assert cosine(sl.audit(folder, tmp_path / "directional ablation"), q) > 0.95
    other = AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    assert sl.audit(folder, between(base, other), other=chat).share == pytest.approx(0.5, abs=1e-4)
