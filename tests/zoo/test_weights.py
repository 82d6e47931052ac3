"""The shipped weights meet every bar, on held-out items, as they are stored."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlab import zoo
from steerlab.zoo.measuring import Amounts, Measured, measure_pair

MEGABYTE = 1_000_000
# All the statements, which lie nearest to their bars; of the rest, which lies far from them, fewer than in the card.
AMOUNTS = Amounts(sums=48, requests=40, open_prompts=24, documents=40)


@pytest.fixture(scope="module", params=zoo.scales())
def measured(request: pytest.FixtureRequest) -> list[Measured]:
    pair = (zoo.path(f"{request.param}-{kind}") for kind in ("base", "post"))
    return measure_pair(*pair, large=request.param == "large", amounts=AMOUNTS)


def test_every_bar_is_met(measured: list[Measured]) -> None:
    bars = [row for row in measured if row.bar is not None]
    assert len(bars) >= 15
    missed = [f"{row.model}: {row.what}: {row.estimate}, bar {row.bar}" for row in bars if not row.met]
    assert not missed, "\n".join(missed)


def test_at_least_five_topics_are_labelled_well(measured: list[Measured]) -> None:
    for model in {row.model for row in measured}:
        topics = [row.estimate.value for row in measured if row.model == model and "bare: " in row.what]
        assert len(topics) >= 5
        assert sum(value >= 0.75 for value in topics) >= 5


def test_measuring_again_gives_the_same_numbers() -> None:
    few = Amounts(statements=24, sums=8, requests=8, open_prompts=4, new_tokens=8, documents=8)
    pair = [zoo.path(f"small-{kind}") for kind in ("base", "post")]
    assert measure_pair(*pair, large=False, amounts=few) == measure_pair(*pair, large=False, amounts=few)


@pytest.mark.parametrize("name", zoo.names())
def test_folders_are_ordinary_checkpoints_with_a_card(name: str) -> None:
    folder = zoo.path(name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.max_position_embeddings >= 256
    assert len(tokenizer) == model.config.vocab_size
    assert (tokenizer.chat_template is not None) == name.endswith("post")
    for word in (" TRUE", " FALSE", " I", "I"):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "95 % intervals" in card
    assert "MISSED" not in card
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert f"{size:.2f} M parameters" in card
    assert 0.8 < size < 2 if name.startswith("small") else 3 <= size <= 8


def test_the_weights_are_small_enough_to_ship() -> None:
    sizes = [file.stat().st_size for name in zoo.names() for file in zoo.path(name).iterdir()]
    assert sum(sizes) <= 40 * MEGABYTE


def test_all_four_share_their_token_ids() -> None:
    tables = [
        json.loads((zoo.path(name) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        for name in zoo.names()
    ]
    assert all(table == tables[0] for table in tables)
