"""Audits of real weights where they are at hand: an exact ablation, one with lengths kept, and one that is undone.

`STEERLAB_REAL_MODELS` names the folder in which the real models lie.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import steerlab as sl

pytestmark = pytest.mark.skipif(
    "STEERLAB_REAL_MODELS" not in os.environ, reason="set STEERLAB_REAL_MODELS to the folder of real models"
)
WRITERS = ("o_proj.weight", "down_proj.weight")


@pytest.fixture(scope="module", params=["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def model(request: pytest.FixtureRequest) -> sl.LanguageModel:
    return sl.load(Path(os.environ["STEERLAB_REAL_MODELS"]) / request.param, dtype="bfloat16")


@pytest.fixture(scope="module")
def direction(model: sl.LanguageModel) -> sl.Direction:
    pairs = sl.datasets.contrasts()["formal"].split("train")
    found = sl.extract(model, sl.datasets.ContrastSet(pairs.positive[:8], pairs.negative[:8]))
    return found.at(found.best or found.sites[-1])


@pytest.mark.parametrize("preserve", [None, "norm"])
def test_what_is_baked_is_recognised(
    model: sl.LanguageModel, direction: sl.Direction, preserve: Any, tmp_path: Path
) -> None:
    edit = sl.Ablate(direction, preserve=preserve)
    baked = sl.bake(model, edit)  # proved against the hooks
    baked.model.save_pretrained(tmp_path)
    found = sl.audit(Path(model.name), tmp_path)
    assert found.kind == "directional ablation"
    assert max(found.cosines(direction).values()) >= 0.95
    assert found.direction is not None
    found.direction.moved_to(model).check(model)
    assert "not undone" in found.details[0]


def test_an_ablation_of_less_than_all_is_undone_to_rounding(
    model: sl.LanguageModel, direction: sl.Direction
) -> None:
    base = model.model
    q = torch.nn.functional.normalize(direction[direction.sites[0]].float(), dim=0)
    made = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith(WRITERS):
                weight.copy_(weight.float() - 0.6 * torch.outer(q, q @ weight.float()))
    found = sl.audit(base, made)
    assert found.kind == "directional ablation"
    assert found.direction is not None
    strengths = {row.name: row.strength for row in found.matrices if row.label == "ablated"}
    assert len(strengths) == 2 * model.n_layers
    (rows,) = found.direction.vectors.values()
    u = torch.nn.functional.normalize(rows[0].double(), dim=0)
    originals = dict(base.named_parameters())
    for name, weight in made.named_parameters():
        if not name.endswith(WRITERS):
            continue
        alpha = strengths[name.removeprefix("model.")]
        assert alpha == pytest.approx(0.6, abs=0.02)
        candidate, plain = weight.detach().double(), originals[name].detach().double()
        back = candidate + alpha / (1 - alpha) * torch.outer(u, u @ candidate)
        # bfloat16 rounds to 2⁻⁹ of a number at most; along u that is multiplied by 1/(1 − α).
        rounding = float((candidate * 2**-9).norm())
        assert float((back - plain).norm()) < rounding < float((candidate - plain).norm())
