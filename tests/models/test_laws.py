"""Log-odds, log-probabilities and KL against their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steerlab.models.batches import batches_by_length
from steerlab.models.laws import at_tokens, divergence, kl, log_odds, log_probability


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 4


@given(st.integers(0, 99))
def test_log_odds_are_those_of_summed_probabilities(seed: int) -> None:
    rows = logits(seed, 3, 5, 11)
    law = rows.double().softmax(-1).numpy()
    inside, away = law[..., [1, 4]].sum(-1), law[..., [0, 7, 8]].sum(-1)
    np.testing.assert_allclose(log_odds(rows, [4, 1]).numpy(), np.log(inside / (1 - inside)), rtol=1e-9)
    np.testing.assert_allclose(log_odds(rows, [1, 4], [8, 0, 7]).numpy(), np.log(inside / away), rtol=1e-9)
    floored = np.log(inside + 1e-8) - np.log(1 - inside + 1e-8)
    np.testing.assert_allclose(log_odds(rows, [1, 4], floor=1e-8).numpy(), floored, rtol=1e-9)


def test_log_odds_stay_exact_where_probabilities_round_to_one() -> None:
    rows = torch.tensor([[80.0, 0.0, 0.0]])
    assert log_odds(rows, [0]).item() == pytest.approx(80 - np.log(2))
    assert log_odds(rows, []).isnan().all()


@given(st.integers(0, 99))
def test_kl_is_its_sum_and_never_negative(seed: int) -> None:
    plain, changed = logits(seed, 4, 9), logits(seed + 100, 4, 9)
    p, q = (rows.double().softmax(-1).numpy() for rows in (plain, changed))
    expected = (p * (np.log(p) - np.log(q))).sum(-1)
    np.testing.assert_allclose(divergence(plain, changed).numpy(), expected, rtol=1e-9)
    floored = (p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(-1)
    np.testing.assert_allclose(divergence(plain, changed, floor=1e-6).numpy(), floored, rtol=1e-7, atol=1e-12)
    same = plain.log_softmax(-1)
    assert (kl(same, same + 1e-8) >= 0).all()
    assert kl(same, same[0]).shape == (4,)  # one law against many


def test_a_token_of_each_row() -> None:
    rows, tokens = logits(0, 2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    law = rows.log_softmax(-1)
    assert torch.equal(log_probability(rows, tokens), at_tokens(law, tokens))
    assert log_probability(rows, tokens)[1, 2] == law[1, 2, 3]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 90), st.sampled_from([1, 1.25, 3, np.inf]))
def test_batches_hold_every_prompt_once_and_stretch_no_further(
    lengths: list[int], budget: int, stretch: float
) -> None:
    batches = batches_by_length(lengths, budget, stretch=stretch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[index] for index in batch]
        assert len(own) == 1 or len(own) * max(own) <= budget
        assert max(own) <= stretch * min(own)
