"""Learned low-rank maps: a planted teacher's logits come back, the control's do not, and the model is as it was."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab.directions import Direction
from steerlab.errors import DirectionError, PromptError, SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.models.laws import kl
from steerlab.steering import LowRank, bake, edit_from_dict

SITE = Site("resid_post", 1)
WORDS = [
    "the cat",
    "a dog",
    "Rome",
    "one two",
    "we like",
    "red is",
    "it sat",
    "no man",
    "blue sky",
    "on the mat",
]
PROMPTS = [f"{first} {second}" for first in WORDS for second in WORDS]
FRESH = [f"{first} and {second}" for first in WORDS[:5] for second in WORDS[5:]]


def planted(model: LanguageModel, rank: int = 2, size: float = 1.5, seed: int = 0) -> LowRank:
    """A map with orthonormal writes, as large as the states."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * rank + 1, model.d_model, generator=generator)
    rows[:rank] *= size / rows[:rank].norm(dim=1, keepdim=True)
    rows[rank : 2 * rank] = torch.linalg.qr(rows[rank : 2 * rank].T).Q.T
    rows[-1] = 2.0 * rows[rank : 2 * rank].sum(0)
    return LowRank(Direction({SITE: rows}, model.name, model.fingerprint, estimator="low_rank"))


@cache
def sharp() -> LanguageModel:
    """A tiny model that is sure of what it says, so that its samples tell of its law."""
    model = tiny("llama", seed=3)
    with torch.no_grad():
        model.model.lm_head.weight.mul_(6.0)
    return sl.load(model.model, tokenizer=model.tokenizer)


def answered(model: LanguageModel, edit: LowRank) -> list[tuple[str, list[int]]]:
    """Samples of the steered model, as token ids: what it says is no text of any language."""
    with model.steering(edit):
        written = model.generate(PROMPTS * 3, max_new_tokens=12, do_sample=True, seed=1)
    return [(prompt, list(answer.token_ids)) for prompt, answer in zip(PROMPTS * 3, written, strict=True)]


def laws(model: LanguageModel, *edits: Any) -> torch.Tensor:
    """Laws of every next token of unseen texts."""
    tokens = model.tokenize(FRESH, padding_side="right")
    if not edits:
        logits = model.logits(tokens, last_only=False)
    else:
        with model.steering(*edits):
            logits = model.logits(tokens, last_only=False)
    return logits[tokens.attention_mask.bool()].double().log_softmax(-1)


def test_a_planted_map_is_recovered_from_its_samples_and_the_model_keeps_its_bits() -> None:
    model = sharp()
    teacher = planted(model)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    asks = [parameter.requires_grad for parameter in model.model.parameters()]
    edit = sl.learn_low_rank(model, SITE, answered(model, teacher), rank=2, steps=200)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.model.parameters()] == asks
    assert all(parameter.grad is None for parameter in model.model.parameters())
    taught = laws(model, teacher)
    unsteered, learned, random = (
        float(kl(taught, laws(model, *edits)).mean()) for edits in ((), (edit,), (edit.random_like(),))
    )
    assert learned < unsteered / 10
    assert learned < random / 10
    # The loss it reports is that of the hooks, and no loss is below the teacher's own by more than chance.
    found = edit.map.parameters
    assert found["loss_held_out"][1]["value"] < found["loss_held_out"][0]["value"]  # type: ignore[index]
    assert found["loss_held_out"][1]["high"] < found["loss_random"]["low"]  # type: ignore[index]


def test_the_reported_loss_is_that_of_the_hooks() -> None:
    model = tiny("gpt2")
    examples = [(prompt, " sat on the mat") for prompt in PROMPTS[:12]]
    edit = sl.learn_low_rank(model, "resid_post.0", examples, rank=1, steps=3, held_out=0)
    losses = []
    for prompt, answer in examples:
        with model.steering(edit):
            law = model.logits(model.tokenize([prompt + answer]), last_only=False)[0].double().log_softmax(-1)
        ids = model.tokenize([prompt + answer]).input_ids[0]
        start = model.tokenize([prompt]).input_ids.shape[1]
        losses.append(np.mean([-float(law[at - 1, ids[at]]) for at in range(start, len(ids))]))
    found = edit.map.parameters["loss_in_sample"]
    assert found[1]["value"] == pytest.approx(np.mean(losses), rel=1e-5)  # type: ignore[index]
    assert edit.map.parameters["loss_held_out"] == [None, None]


def test_more_steps_lower_the_loss_in_the_sample() -> None:
    model = sharp()
    examples = [(prompt, " cat") for prompt in PROMPTS[:20]]
    losses = []
    for steps in (1, 20, 80):
        edit = sl.learn_low_rank(model, SITE, examples, rank=1, steps=steps)
        losses.append(edit.map.parameters["loss_in_sample"][1]["value"])  # type: ignore[index]
        assert torch.linalg.norm(edit.map.vectors[SITE][1]) == pytest.approx(1.0, abs=1e-6)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2 * losses[0]
    with model.steering(edit):
        assert model.generate(PROMPTS[0], max_new_tokens=1).text == " cat"


def test_the_control_is_as_large_and_points_elsewhere() -> None:
    edit = planted(tiny("llama"), rank=3)
    control = edit.random_like(seed=4)
    for made in (edit, control):
        rows = made.map.vectors[SITE].double()
        change = rows[3:6].T @ rows[:3]
        assert float(torch.linalg.matrix_norm(change)) == pytest.approx(1.5 * 3**0.5, rel=1e-5)
        assert float(rows[-1].norm()) == pytest.approx(2 * 3**0.5, rel=1e-5)
    assert edit.rank == control.rank == 3
    assert (
        abs(float(torch.cosine_similarity(edit.map.vectors[SITE][-1], control.map.vectors[SITE][-1], dim=0)))
        < 0.7
    )
    assert control.random_like(seed=4).map.hash != control.map.hash


def test_it_is_a_file_and_data(tmp_path: Path) -> None:
    model = tiny("llama")
    edit = sl.learn_low_rank(model, SITE, [(prompt, " cat") for prompt in PROMPTS[:8]], rank=2, steps=2)
    edit.map.save(tmp_path / "map.safetensors")
    again = LowRank(Direction.load(tmp_path / "map.safetensors"))
    with model.steering(edit):
        first = model.logits(PROMPTS[:4])
    with model.steering(again):
        assert torch.equal(model.logits(PROMPTS[:4]), first)
    data = sl.LowRank(again.map, 0.5, positions=sl.Last()).to_dict()
    assert data["edit"] == "low_rank"
    read = edit_from_dict(data, [again.map])
    assert isinstance(read, LowRank)
    assert (read.strength, read.sites, read.positions) == (0.5, (SITE,), sl.Last())
    assert "learned map of rank 2" in repr(edit)
    assert again.map.parameters == edit.map.parameters


def test_it_composes_into_one_operator() -> None:
    model = tiny("llama")
    edit, other = planted(model, 1), planted(model, 2, seed=5)
    x = torch.randn(2, 3, model.d_model, generator=torch.Generator().manual_seed(0)).double()
    together = edit.operator(SITE).then(other.operator(SITE))  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(together(x), other.apply(edit.apply(x, SITE), SITE))


def test_the_model_is_as_before_on_exceptions() -> None:
    model = tiny("llama")
    module = model.model
    module.train()
    module.model.norm.weight.requires_grad_(True)
    calls: list[int] = []

    def fails(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("out of luck")

    handle = module.lm_head.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        sl.learn_low_rank(model, SITE, [(prompt, " cat") for prompt in PROMPTS[:8]], rank=1, steps=20)
    handle.remove()
    assert all(part.training for part in module.modules())
    assert module.model.norm.weight.requires_grad
    assert not model.frames.watched
    with torch.no_grad():
        assert torch.isfinite(model.logits(PROMPTS[:2])).all()
    module.eval()


def test_bad_input_is_a_sentence() -> None:
    model = tiny("llama")
    pairs = [(prompt, " cat") for prompt in PROMPTS[:8]]
    with pytest.raises(SteeringError, match="from 1 to the width 32, not 33"):
        sl.learn_low_rank(model, SITE, pairs, rank=33)
    with pytest.raises(SteeringError, match="At least one step is needed"):
        sl.learn_low_rank(model, SITE, pairs, steps=0)
    with pytest.raises(SteeringError, match="The learning rate is a number above 0 and up to 1, not -1"):
        sl.learn_low_rank(model, SITE, pairs, learning_rate=-1)
    with pytest.raises(SteeringError, match=r"pairs \[\(prompt, answer\), \.\.\.\]"):
        sl.learn_low_rank(model, SITE, ["the cat", "a dog"])  # type: ignore[list-item]
    with pytest.raises(SteeringError, match="two examples or more; 1 came"):
        sl.learn_low_rank(model, SITE, pairs[:1])
    with pytest.raises(PromptError, match=r"Answer 1 is .*; give a text, or a list of token ids"):
        sl.learn_low_rank(model, SITE, [pairs[0], ("a dog", 3)])  # type: ignore[list-item]
    v = Direction({SITE: torch.ones(32)}, model.name, model.fingerprint)
    with pytest.raises(SteeringError, match=r"is no learned map but 1 vectors of given; learn one"):
        LowRank(v)
    with pytest.raises(SteeringError, match="LowRank is not among the changes that become weights"):
        bake(model, planted(model))
    with pytest.raises(DirectionError, match="was made in"), model.steering(planted(tiny("gpt2"))):
        pass
