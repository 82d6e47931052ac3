"""Tables of interventions in packed passes: each request has its own, and nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import tiny
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import FirstGenerated, Generated, Index, LanguageModel, Last, Site, Window
from steerlab.steering import Ablate, Add, Condition, Decay, PerRow, Rotate, generate_batch
from steerlab.steering.packed import Columns, Pass

PROMPTS = [
    "The capital of France is Paris.",
    "A cat",
    "A dog and a cat sat on the mat near the river",
    "Paris is",
    "The",
    "One two three four five",
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


def direction(model: LanguageModel, name: str = "resid_post.1", seed: int = 0) -> Direction:
    site = Site.parse(name)
    vector = torch.randn(model.width(site), generator=torch.Generator().manual_seed(seed))
    return Direction({site: vector}, model.name, model.fingerprint)


def rows_of(model: LanguageModel) -> list[Any]:
    return [
        Add(direction(model), strength=3.0),
        (),
        [Ablate(direction(model, seed=1)), Add(direction(model, "resid_pre.2", seed=2), strength=2.0)],
        Add(direction(model, seed=3), strength=3.0, positions=Generated(), schedule=Decay(0.8)),
        Add(direction(model, "mlp_out.0", seed=4), strength=3.0, positions=Last() | FirstGenerated(2)),
        [
            Rotate(direction(model, seed=5), strength=40.0, unit="angle"),
            Add(direction(model, seed=6), strength=2.0, positions=Window(-2, None)),
        ],
    ]


def test_every_row_writes_what_it_writes_in_a_table_of_generate(model: LanguageModel) -> None:
    table = PerRow(*rows_of(model))
    with model.steering(table):
        expected = model.generate(PROMPTS, max_new_tokens=12)
    found = generate_batch(model, PROMPTS, max_new_tokens=12, table=table)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    plain = model.generate(PROMPTS, max_new_tokens=12)
    assert sum(a.token_ids != b.token_ids for a, b in zip(found, plain, strict=True)) >= 4
    assert found[1].token_ids == plain[1].token_ids


def test_prompts_that_are_cut_into_chunks_are_steered_at_the_same_places(model: LanguageModel) -> None:
    """Eight tokens a pass: prompts are read in pieces, so a place in the pass says nothing of the place in the text."""
    rows = [Add(direction(model), strength=3.0, positions=Index(-1) | Index(0)), (), *rows_of(model)[2:]]
    with model.steering(PerRow(*rows)):
        expected = model.generate(PROMPTS, max_new_tokens=6)
    found = generate_batch(model, PROMPTS, max_new_tokens=6, table=PerRow(*rows), max_batch_tokens=8)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def final_states(model: LanguageModel, prompts: Sequence[str], rows: Sequence[Any]) -> list[Tensor]:
    """What the unembedding reads in each packed pass."""
    states: list[Tensor] = []
    handle = model.anatomy.head.register_forward_pre_hook(lambda module, args: states.append(args[0].clone()))
    try:
        generate_batch(model, prompts, max_new_tokens=5, table=PerRow(*rows))
    finally:
        handle.remove()
    return states


def test_a_row_left_alone_keeps_every_bit(model: LanguageModel) -> None:
    nothing = final_states(model, PROMPTS, [()] * len(PROMPTS))
    some = final_states(model, PROMPTS, rows_of(model))
    assert len(some) == len(nothing) == 5
    for steered, plain in zip(some, nothing, strict=True):
        assert torch.equal(steered[0, 1], plain[0, 1])
        assert not torch.equal(steered[0, 0], plain[0, 0])


def test_a_row_is_what_it_is_alone(model: LanguageModel) -> None:
    rows = rows_of(model)
    together = final_states(model, PROMPTS, rows)
    for number, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        alone = final_states(model, [prompt], [row])
        for many, one in zip(together, alone, strict=True):
            assert (many[0, number] - one[0, 0]).abs().max() <= 1e-5 * one.abs().max()


def test_a_prompt_that_begins_like_another_is_not_read_from_its_cache() -> None:
    """Shared beginnings have other states under other interventions."""
    model = tiny("llama", max_position_embeddings=512)
    long = "A dog and a cat sat on the mat near the river " * 3
    rows = [Add(direction(model, "resid_post.0"), strength=4.0), (), Add(direction(model), strength=-4.0), ()]
    with model.steering(PerRow(*rows)):
        expected = model.generate([long] * 4, max_new_tokens=8)
    found = generate_batch(model, [long] * 4, max_new_tokens=8, table=PerRow(*rows))
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert found[0].token_ids != found[1].token_ids


def test_wrong_tables_are_refused_before_anything_runs(model: LanguageModel) -> None:
    edit = Add(direction(model))
    held = Condition(direction(model, "resid_post.0"), threshold=0.0, positions=None)
    refusals: list[tuple[list[Any], str]] = [
        ([edit], "has 1 rows for 2 prompts"),
        ([Add(direction(model), condition=held), ()], "has a condition"),
        ([Add(direction(model, "resid_mid.1")), ()], "no module's output"),
    ]
    for rows, said in refusals:
        with pytest.raises(SteeringError, match=said):
            generate_batch(model, PROMPTS[:2], max_new_tokens=2, table=PerRow(*rows))
    late = Add(direction(model), positions=Generated())
    with pytest.raises(SteeringError, match="never acted"):
        generate_batch(model, PROMPTS[:2], max_new_tokens=1, table=PerRow(late, ()))
    with pytest.raises(SteeringError, match="prompt 1 give numbers that are not finite"):
        generate_batch(
            model, PROMPTS[:2], max_new_tokens=3, table=PerRow((), Add(direction(model), strength=3e38))
        )
    assert not model.anatomy.base._forward_hooks  # nothing is left behind
    assert generate_batch(model, PROMPTS[:1], max_new_tokens=3) == model.generate(
        PROMPTS[:1], max_new_tokens=3
    )


def test_a_pass_of_other_tokens_than_announced_is_an_error() -> None:
    now = Pass()
    now.begin([])
    assert now.here(torch.zeros(1, 7, 4)) == ()
    now.columns = (Columns("a", 0, 3, 0, 3, True),)
    assert now.columns[0].step == 0
    with pytest.raises(SteeringError, match="7 tokens where 3"):
        now.here(torch.zeros(1, 7, 4))
