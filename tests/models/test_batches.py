"""Whatever reads many prompts tokenises some at a time, halves when memory runs out, and never holds all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import close

import steerlab as sl
from steerlab.activations import record, sweep
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel, passes, prompts
from steerlab.models.batches import run_in_batches
from steerlab.neurons.ablation import last_layer
from steerlab.readouts.confidence import read_texts
from steerlab.readouts.samples import sample
from steerlab.readouts.scoring import continuation_log_probability

TEXTS = [
    "The capital of France",
    "Two plus",
    "A cat is an animal that people keep",
    "Rome",
    "Is it true? Yes it is",
]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    budget=st.integers(1, 200),
    rows=st.integers(30, 100),
)
def test_every_prompt_is_done_once_whatever_fits(lengths: list[int], budget: int, rows: int) -> None:
    done: list[int] = []
    told: list[int] = []

    def run(batch: list[int]) -> None:
        if len(batch) * max(lengths[row] for row in batch) > rows:
            raise torch.OutOfMemoryError("out of memory")
        done.extend(batch)

    run_in_batches(run, lengths, budget, done=told.append)
    assert sorted(done) == list(range(len(lengths)))
    assert sum(told) == len(lengths)


def test_other_errors_pass_and_one_prompt_too_many_is_named() -> None:
    def broken(batch: list[int]) -> None:
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        run_in_batches(broken, [1, 2], 10)

    def full(batch: list[int]) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(SteerlabError, match="Prompt 1 with 9 tokens does not fit in memory even alone"):
        run_in_batches(full, [3, 9], 100)


def _loss(model: LanguageModel) -> np.ndarray:
    return read_texts(model, TEXTS, seed=0, description="").loss


def _price(model: LanguageModel) -> np.ndarray:
    vector = sl.Direction(
        {sl.Site("resid_post", 1): torch.ones(model.d_model)}, model.name, model.fingerprint
    )
    edits = {name: [sl.Add(vector, strength=strength)] for name, strength in (("one", 2.0), ("none", 0.0))}
    price = sl.steering.side_effects(model, TEXTS, edits)
    assert price["none"].kl.value == 0
    assert price["one"].loss_change is not None
    return np.array([price["one"].kl.value, price["one"].loss_change.value])


class _Nothing:
    """A change that changes nothing, at the first block's output."""

    sites = (sl.Site("resid_post", 0),)

    def apply(
        self, state: torch.Tensor, site: sl.Site, variants: slice, prompts: torch.Tensor
    ) -> torch.Tensor:
        return state.float()


READS: dict[str, Callable[[LanguageModel], Any]] = {
    "logits": lambda model: model.logits(TEXTS).numpy(),
    "reduced": lambda model: model.logits(TEXTS, reduce=lambda logits: logits.logsumexp(-1)).numpy(),
    "generate": lambda model: [text.token_ids for text in model.generate(TEXTS, max_new_tokens=4)],
    "sampled": lambda model: [
        text.token_ids for text in model.generate(TEXTS, max_new_tokens=4, do_sample=True, seed=3)
    ],
    "drawn": lambda model: [
        row.tolist() for row in sample(model, model.token_ids(TEXTS), samples=2, max_new_tokens=4).tokens
    ],
    "last layer": lambda model: last_layer(model, TEXTS)[0].numpy(),
    "swept": lambda model: sweep(
        record(model, TEXTS), _Nothing(), 2, lambda logits, _: logits.logsumexp(-1)
    ).numpy(),
    "texts": _loss,
    "price": _price,
}


@pytest.mark.parametrize("name", READS)
def test_memory_that_runs_out_halves_the_batch(
    name: str, tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = READS[name](tiny_llama)
    forward, sizes = tiny_llama.anatomy.base.forward, []

    def scarce(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(tiny_llama.anatomy.base, "forward", scarce)
    found = READS[name](tiny_llama)
    assert max(sizes) > 2 >= sizes[-1]
    if isinstance(right, list):
        assert found == right
    else:
        close(torch.as_tensor(found), torch.as_tensor(right))


def test_logits_come_in_slices_and_are_transformers_own(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tiny_llama.tokenize(TEXTS, padding_side="right")
    rows, columns = tokens.attention_mask.nonzero(as_tuple=True)
    with torch.no_grad():
        right = tiny_llama.model(tokens.input_ids, attention_mask=tokens.attention_mask).logits[rows, columns]
    monkeypatch.setattr(passes, "_CELLS", 3 * tiny_llama.vocab_size)
    parts = list(tiny_llama.logits_in_slices(tiny_llama.last_hidden(tokens, rows, columns)))
    assert {len(logits) for _, logits in parts[:-1]} == {3}
    close(torch.cat([logits for _, logits in parts]), right[:, : tiny_llama.vocab_size])
    law = right[:, : tiny_llama.vocab_size].log_softmax(-1)
    answers = [tokens.lengths[row] - 1 for row in range(len(tokens))]
    last = torch.stack(
        [
            law[(rows == row) & (columns == end - 1)][0, tokens.input_ids[row, end]]
            for row, end in enumerate(answers)
        ]
    )
    close(continuation_log_probability(tiny_llama, tokens, answers).float(), last)


def test_prompts_are_counted_some_at_a_time(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "WINDOW", 2)
    assert tiny_llama.lengths(TEXTS) == list(tiny_llama.tokenize(TEXTS).lengths)
    with pytest.raises(PromptError, match="Prompt 3 is empty"):
        tiny_llama.lengths([*TEXTS[:3], "", *TEXTS])


@pytest.mark.parametrize("cells", [1, 2, 5, 100])
def test_a_sweep_measures_a_few_logits_at_a_time(
    cells: int, tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants together, or one variant's prompts in parts: the values are those of all at once."""
    recording, seen = record(tiny_llama, TEXTS), []

    def measure(logits: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        seen.append(logits.shape[0] * logits.shape[1])
        assert logits.shape[1] == len(prompts)
        return logits.logsumexp(-1) + prompts

    right = sweep(recording, _Nothing(), 3, measure)
    monkeypatch.setattr(passes, "_CELLS", cells * tiny_llama.vocab_size)
    seen.clear()
    close(sweep(recording, _Nothing(), 3, measure), right)
    assert max(seen) <= cells
