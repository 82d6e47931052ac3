"""The normal form x ← keep ⊙ x + (x A) C + c: composing, sharing and stacking it, against doing each step by itself."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import close
from torch import Tensor

from steerlab.models.operators import Operator

WIDTH = 5


@st.composite
def operators(draw: st.DrawFn) -> Operator:
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rank = draw(st.integers(0, 3))
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    keep = draw(st.sampled_from(["none", "zero", "any"]))
    return Operator(
        keep={"none": None, "zero": torch.zeros(WIDTH, dtype=torch.float64), "any": normal(WIDTH)}[keep],
        reads=normal(WIDTH, rank) if rank else None,
        writes=normal(rank, WIDTH) if rank else None,
        shift=normal(WIDTH) if draw(st.booleans()) else None,
    )


def by_hand(operator: Operator, x: Tensor) -> Tensor:
    new = x.clone() if operator.keep is None else operator.keep * x
    if operator.reads is not None:
        new = new + x @ operator.reads @ operator.writes
    return new if operator.shift is None else new + operator.shift


def states() -> Tensor:
    return torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(several=st.lists(operators(), min_size=1, max_size=4))
@settings(deadline=None)
def test_the_composed_operator_is_one_after_the_other(several: list[Operator]) -> None:
    x = expected = states()
    for operator in several:
        expected = by_hand(operator, expected)
    torch.testing.assert_close(Operator.composed(several)(x), expected, atol=1e-8, rtol=1e-8)


@given(operator=operators(), share=st.floats(-2, 2))
@settings(deadline=None)
def test_a_share_is_that_part_of_the_way(operator: Operator, share: float) -> None:
    x = states()
    expected = x + share * (by_hand(operator, x) - x)
    torch.testing.assert_close(operator(x, share), expected, atol=1e-9, rtol=1e-9)
    each = torch.tensor([[share], [0.0], [1.0], [0.5]]).expand(3, 4, 1)
    by_token = operator(x, each)
    close(by_token[:, 0], expected[:, 0])
    assert torch.equal(by_token[:, 1], x[:, 1])
    torch.testing.assert_close(by_token[:, 2], by_hand(operator, x)[:, 2], atol=1e-9, rtol=1e-9)


@given(several=st.lists(operators(), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_stack_gives_every_row_its_own_and_slot_zero_nothing(several: list[Operator]) -> None:
    several = [one for one in several if one]
    if not several:
        return
    x = torch.randn(
        len(several) + 2, 3, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    slots = torch.tensor([0, *range(1, len(several) + 1), 0])
    new = Operator.stacked([Operator(), *several], WIDTH).at(slots)(x)
    for row, operator in enumerate(several, start=1):
        torch.testing.assert_close(new[row], by_hand(operator, x[row]), atol=1e-8, rtol=1e-8)
    assert torch.equal(new[0], x[0])
    assert torch.equal(new[-1], x[-1])


def test_half_precision_states_are_computed_in_float32() -> None:
    random = torch.Generator().manual_seed(0)
    operator = Operator(
        reads=torch.randn(WIDTH, 1, generator=random), writes=torch.randn(1, WIDTH, generator=random)
    )
    x = torch.randn(2, 2, WIDTH, generator=random).bfloat16()
    new = operator(x)
    assert new.dtype == torch.float32
    close(new, by_hand(operator, x.float()))
