from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import close
from torch import Tensor, nn

from steerlab.activations import Activations, Moments, capture
from steerlab.activations import reading as room
from steerlab.errors import PromptError, SiteError, SteerlabError
from steerlab.models import All, Generated, LanguageModel, Last, Prompt, Site, Span

PROMPTS = [
    "The capital of France is Paris.",
    "A cat",
    "Two plus two is four; three plus four is seven.",
    "x",
    "Is a cat an animal?",
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "bloom", "falcon"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(request.param, bos=request.param != "gpt2")


def alone(model: LanguageModel, prompt: str, layer: int) -> Tensor:
    """States [position, width] after a block that is not the last, from transformers, without any padding."""
    ids = model.tokenize([prompt]).input_ids
    with torch.no_grad():
        return model.model(ids, output_hidden_states=True).hidden_states[layer + 1][0]


def number_of_hooks(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def test_rows_are_the_states_of_each_prompt_alone(model: LanguageModel) -> None:
    site = Site("resid_post", 1)
    last = capture(model, PROMPTS, [site], token_budget=40)
    every = capture(model, PROMPTS, site, positions=All())
    assert last.example.tolist() == list(range(len(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        states = alone(model, prompt, 1)
        close(last[site][i], states[-1], rtol=0.0002)
        close(every[site][every.example == i], states, rtol=0.0002)
        assert last.position[i] == len(states) - 1
        assert every.position[every.example == i].tolist() == list(range(len(states)))


@settings(deadline=None, max_examples=15)
@given(budget=st.integers(1, 200), window=st.integers(1, 6), order=st.permutations(range(len(PROMPTS))))
def test_batching_never_shows_in_the_rows(budget: int, window: int, order: list[int]) -> None:
    model = _llama()
    prompts = [PROMPTS[i] for i in order]
    sites = [Site("resid_pre", 2), Site("mlp_out", 0), Site("embed")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_WINDOW", window)
        acts = capture(model, prompts, sites, positions=Last(), token_budget=budget)
    assert acts.example.tolist() == list(range(len(prompts)))
    for site in sites:
        one_by_one = torch.cat([capture(model, [prompt], [site])[site] for prompt in prompts])
        close(acts[site], one_by_one)


def _llama(cache: dict[str, LanguageModel] = {}) -> LanguageModel:  # noqa: B006
    if not cache:
        cache["llama"] = tiny("llama")
    return cache["llama"]


def test_no_more_forward_than_needed(tiny_llama: LanguageModel) -> None:
    runs: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
        for name, module in [("head", tiny_llama.model.lm_head)]
        + [(f"block {i}", block) for i, block in enumerate(tiny_llama.anatomy.blocks)]
    ]
    try:
        capture(tiny_llama, PROMPTS[:1], [Site("resid_post", 1)])
        assert runs == ["block 0", "block 1"]
        runs.clear()
        capture(tiny_llama, PROMPTS[:1], [Site("resid_post", 2), Site("embed")])
        assert runs == ["block 0", "block 1", "block 2"]
    finally:
        for handle in handles:
            handle.remove()


def test_batches_are_sorted_by_length_within_the_budget(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = _recorded(tiny_llama, monkeypatch)
    capture(tiny_llama, PROMPTS * 3, [Site("resid_post", 0)], token_budget=60)
    assert all(rows * width <= 60 or rows == 1 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    assert sum(rows for rows, _ in shapes) == 15


def test_moments_equal_the_rows(model: LanguageModel) -> None:
    sites = [Site("resid_post", 0), Site("attn_out", 1)]
    labels = ["true", "false", "true", "false", "true"]
    rows = capture(model, PROMPTS, sites, positions=All())
    moments = capture(
        model, PROMPTS, sites, positions=All(), into=Moments("scatter"), labels=labels, token_budget=30
    )
    assert moments.fingerprint == model.fingerprint
    for site in sites:
        for label in ("true", "false"):
            chosen = torch.tensor([labels[i] == label for i in rows.example.tolist()])
            x = rows[site][chosen].double()
            centred = x - x.mean(0)
            assert moments.count(label) == len(x)
            close(moments.mean(site, label), x.mean(0))
            close(moments.scatter(site, label), centred.T @ centred, rtol=0.0001 * len(x))


def test_spans_are_read_where_they_lie(tiny_llama: LanguageModel) -> None:
    text = "The capital of France is Paris."
    prompt = Prompt(text, spans={"subject": (text.index("France"), text.index(" is"))})
    acts = capture(tiny_llama, [prompt, prompt], [Site("resid_pre", 0)], positions=Span("subject"))
    tokens = tiny_llama.tokenize([prompt])
    assert tokens.offsets is not None
    overlapping = [
        i
        for i, (low, high) in enumerate(tokens.offsets[0])
        if low < text.index(" is") and high > text.index("France")
    ]
    assert acts.position.tolist() == overlapping * 2
    assert acts.example.tolist() == [0] * len(overlapping) + [1] * len(overlapping)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    site = Site("resid_post", 1)
    prompts = PROMPTS * 4
    whole = capture(tiny_llama, prompts, [site])
    shapes = _recorded(tiny_llama, monkeypatch, limit=70, error=error)
    acts = capture(tiny_llama, prompts, [site])
    close(acts[site], whole[site])
    failed = [rows * width for rows, width in shapes if rows * width > 70]
    assert failed
    assert all(later <= earlier / 2 for earlier, later in pairwise(failed))
    # once it fits, it stays small: no batch fails again
    assert [rows * width > 70 for rows, width in shapes] == sorted(
        [rows * width > 70 for rows, width in shapes], reverse=True
    )


def test_one_prompt_that_does_not_fit_is_named(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _recorded(tiny_llama, monkeypatch, limit=10, error=torch.OutOfMemoryError("out of memory"))
    with pytest.raises(SteerlabError, match=r"Prompt 2 with \d+ tokens does not fit in the memory of cpu"):
        capture(tiny_llama, PROMPTS, [Site("resid_post", 1)])


def test_other_errors_pass_and_leave_no_hook(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = number_of_hooks(tiny_llama)

    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(tiny_llama.anatomy.blocks[1].mlp, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        capture(tiny_llama, PROMPTS, tiny_llama.sites("resid_post"))
    assert number_of_hooks(tiny_llama) == before
    assert len(tiny_llama.model.model.layers) == tiny_llama.n_layers


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_copies_and_pickles_are_the_same_states(
    copied: Callable[[Activations], Activations], tiny_llama: LanguageModel
) -> None:
    states = capture(tiny_llama, PROMPTS, "resid_post")
    again = copied(states)
    assert (again.sites, again.prompts_hash, len(again)) == (states.sites, states.prompts_hash, len(states))
    assert all(torch.equal(again[site], states[site]) for site in states.sites)


def test_captured_rows_are_ordinary_tensors(tiny_llama: LanguageModel) -> None:
    site = Site("resid_post", 0)
    rows = capture(tiny_llama, PROMPTS, [site])[site]
    assert rows.dtype == torch.float32
    assert not rows.is_inference()
    layer = nn.Linear(rows.shape[1], 1)
    layer(rows).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"prompts": {"text": ["one text"]}}, PromptError, "one column"),
        ({"prompts": [1, 2]}, PromptError, "Prompt 0 is an int"),
        ({"sites": "resid_past"}, SiteError, "did you mean 'resid_post'"),
        ({"sites": 5}, SiteError, "write 'resid_post.12'"),
        ({"sites": "resid_post.9"}, SiteError, "layers 0 to 2"),
        ({"sites": "resid_post.-1"}, SiteError, r"model\.sites\('resid_post', \[-1\]\)"),
        ({"positions": "last"}, PromptError, r"give sl\.Last\(\)"),
        ({"positions": -1}, PromptError, r"sl\.Index\(-1\)"),
        ({"positions": Last}, PromptError, r"make one of it: Last\(\)"),
        ({"into": "moments"}, SteerlabError, r"sl\.Moments\(\)"),
        ({"prompts": []}, PromptError, "at least one prompt"),
        ({"prompts": ["a", ""]}, PromptError, "Prompt 1 is empty"),
        ({"sites": []}, SteerlabError, "at least one site"),
        ({"sites": [Site("resid_post", 9)]}, SiteError, "layers 0 to 2"),
        ({"positions": Generated()}, PromptError, r"Generated\(\) picks no token"),
        ({"labels": [0, 1]}, SteerlabError, "into=Moments"),
        ({"labels": [0], "into": Moments()}, SteerlabError, "2 prompts came with 1 labels"),
        ({"token_budget": 0}, SteerlabError, "at least 1"),
        ({"into": Moments("scatter", memory_budget=100)}, SteerlabError, r"need 8\.0 KiB"),
    ],
)
def test_misuse_is_named(
    tiny_llama: LanguageModel, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    given = {"prompts": ["a b", "c"], "sites": [Site("resid_post", 0)], **arguments}
    with pytest.raises(error, match=sentence):
        capture(tiny_llama, given.pop("prompts"), given.pop("sites"), **given)


def test_sites_and_prompts_as_they_are_typed(tiny_llama: LanguageModel) -> None:
    every = tuple(tiny_llama.sites("resid_post"))
    one = capture(tiny_llama, "a cat", "resid_post")
    assert one.sites == every
    assert one.n_prompts == len(one) == 1
    mixed = ["blocks.1.hook_resid_post", "resid_post", Site("embed"), "resid_post.0"]
    states = capture(tiny_llama, (text for text in ["a cat", Prompt("a dog")]), mixed)
    assert states.sites == (every[1], every[0], every[2], Site("embed"))
    assert torch.equal(states["resid_post.1"], states[every[1]])
    assert torch.equal(one[2], one["resid_post.2"])
    with pytest.raises(SiteError, match=r"write 'resid_post\.2'"):
        states[2]
    with pytest.raises(SiteError, match="name one of"):
        one["resid_post"]


def test_moments_stay_with_their_model(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    site = Site("resid_post", 0)
    moments = capture(tiny_llama, PROMPTS, [site], into=Moments())
    with pytest.raises(SteerlabError, match=f"hold states of {tiny_llama.name}"):
        capture(tiny_gpt2, PROMPTS, [site], into=moments)


def test_sites_that_were_not_captured_are_named(tiny_llama: LanguageModel) -> None:
    acts = capture(tiny_llama, PROMPTS, [Site("resid_post", 0)])
    with pytest.raises(SiteError, match=r"resid_post\.1 was not captured; there is resid_post\.0"):
        acts[Site("resid_post", 1)]


def _recorded(
    model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None = None,
    error: Exception | None = None,
) -> list[tuple[int, int]]:
    """Shapes of the batches the model is run on; those above ``limit`` tokens raise ``error``."""
    shapes: list[tuple[int, int]] = []
    run = model.run

    def recording(tokens: Any, **arguments: Any) -> Any:
        shapes.append((len(tokens), tokens.width))
        if limit is not None and len(tokens) * tokens.width > limit:
            assert error is not None
            raise error
        return run(tokens, **arguments)

    monkeypatch.setattr(model, "run", recording)
    return shapes


def test_progress_is_shown_when_asked_for(tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int | None, int]] = []

    def watching(iterable: Iterator[Any], description: str, total: int | None = None) -> Iterator[Any]:
        steps = list(iterable)
        seen.append((description, total, len(steps)))
        yield from steps

    monkeypatch.setattr(room, "track", watching)
    acts = capture(tiny_llama, PROMPTS, [Site("resid_post", 0)], progress="Reading")
    assert len(acts) == len(PROMPTS)
    assert seen == [("Reading", len(PROMPTS), len(PROMPTS))]
