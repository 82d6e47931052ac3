"""What rows have in common at their beginning is read once, with the same states as rows that are read whole."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given
from hypothesis import strategies as st
from tolerances import close

from steerlab.models import LanguageModel, Prompt, Tokens
from steerlab.models.metering import metered
from steerlab.models.shared_beginnings import beginnings
from steerlab.steering import Add

ALIKE, OWN, ROWS = 20, 8, 24


def batch(rows: list[list[int]]) -> Tokens:
    """Rows of ids, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Tokens(ids, mask, positions, None, (Prompt(""),) * len(rows), tuple(map(len, rows)), "right")


def answers() -> Tokens:
    """Two prompts with twelve answers of several lengths each."""
    draw = torch.Generator().manual_seed(0)
    heads = torch.randint(3, 200, (2, ALIKE), generator=draw).tolist()
    tails = torch.randint(3, 200, (ROWS, OWN), generator=draw).tolist()
    return batch([heads[row % 2] + tails[row][: OWN - row % 3] for row in range(ROWS)])


def behind(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Every real token behind the beginnings."""
    rows = [(row, column) for row, length in enumerate(tokens.lengths) for column in range(ALIKE, length)]
    first, second = torch.tensor(rows).T
    return first, second


def whole(model: LanguageModel, tokens: Tokens) -> torch.Tensor:
    """The same states with every row read whole."""
    model._shares, before = False, model._shares
    try:
        return model.last_hidden(tokens, *behind(tokens))
    finally:
        model._shares = before


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_whole_rows(family: str) -> None:
    model, tokens = tiny(family), answers()
    for _ in range(2):  # proved in the first, used in the second
        close(model.last_hidden(tokens, *behind(tokens)), whole(model, tokens))
    assert model._shares is not None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen2"])
def test_beginnings_are_read_once(family: str) -> None:
    model, tokens = tiny(family), answers()
    model.last_hidden(tokens, *behind(tokens))
    with metered({"model": model}) as spent:
        model.last_hidden(tokens, *behind(tokens))
    assert spent["model"].read == 2 * ALIKE + ROWS * OWN


def test_a_steered_pass_is_read_whole() -> None:
    model, tokens = tiny("llama"), answers()
    edit = Add(torch.ones(model.d_model), unit="raw", sites=model.sites("resid_post")[1])
    plain = model.last_hidden(tokens, *behind(tokens))
    with model.steering(edit), metered({"model": model}) as spent:
        steered = model.last_hidden(tokens, *behind(tokens))
    assert spent["model"].read == tokens.input_ids.numel()
    assert not torch.allclose(steered, plain)


def test_a_difference_ends_the_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    from steerlab.models import passes

    model, tokens = tiny("llama"), answers()
    model._shares = None
    read_on = passes.read_on

    def wrong(*given: object) -> torch.Tensor | None:
        found = read_on(*given)  # type: ignore[arg-type]
        return None if found is None else found + 1

    monkeypatch.setattr(passes, "read_on", wrong)
    try:
        close(model.last_hidden(tokens, *behind(tokens)), whole(model, tokens))
        assert model._shares is False
    finally:
        model._shares = None


def test_a_batch_that_does_not_fit_says_so_and_sharing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from steerlab.models import shared_beginnings

    model, tokens = tiny("llama"), answers()
    model.last_hidden(tokens, *behind(tokens))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(shared_beginnings, "_base", full)
    with pytest.raises(torch.OutOfMemoryError):
        model.last_hidden(tokens, *behind(tokens))
    assert model._shares


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=6), min_size=2, max_size=8),
    st.integers(1, 40),
    st.integers(1, 6),
)
def test_the_cut_saves_as_much_as_any(heads: list[list[int]], copies: int, first: int) -> None:
    rows = [[*head, 2] for head in heads for _ in range(copies)]
    tokens = batch(rows)
    limit = min(first, *(len(row) - 1 for row in rows))
    saved = {cut: (len(rows) - len({tuple(row[:cut]) for row in rows})) * cut for cut in range(1, limit + 1)}
    found = beginnings(tokens, first)
    enough = max(saved.values()) >= max(256, 0.2 * tokens.input_ids.numel())
    assert (found is not None) == enough
    if found is not None:
        assert saved[found.column] == max(saved.values())
        for row, number in enumerate(found.of_row.tolist()):
            assert rows[row][: found.column] == rows[found.firsts[number]][: found.column]
