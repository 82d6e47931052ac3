"""A patch sweep gives what patching one whole forward pass at a time gives: every family, site kind and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, LAYERS, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import close
from torch import Tensor

from steerlab.activations import (
    Divergence,
    LogitDifference,
    LogProbability,
    Mapped,
    Mean,
    Noise,
    Patch,
    PatchSweep,
    Probability,
    RandomShift,
    Run,
    Zero,
    patching,
    window,
)
from steerlab.activations.patches import Cell
from steerlab.activations.sources import Source
from steerlab.errors import PromptError, RunError, SiteError, SteeringError
from steerlab.models import All, LanguageModel, Site

FALSE = ["Rome is a town of Spain, so", "Is a cat an animal? No, a cat"]
TRUE = ["Bome is a town of Spain, so", "Is a cat an animal? Go, a cat"]
FIRST, SECOND = 30, 31


@dataclass
class Put:
    """The patched states of one prompt as an ordinary edit."""

    model: LanguageModel
    cell: Cell
    prompt: int
    positions = All()

    @property
    def sites(self) -> Sequence[Site]:
        return tuple(dict.fromkeys(patch.site for patch in self.cell))

    def apply(self, state: Tensor, site: Site) -> Tensor:
        new = state.clone()
        for patch in self.cell:
            if patch.site == site:
                taken = list(patch.source_positions or patch.positions)
                values = patch.source.values(site, self.prompt, taken, state.shape[-1]).to(new.dtype)
                where = list(patch.positions)
                values = new[0, where] + values if patch.source.adds else values
                if patch.heads:
                    size = state.shape[-1] // self.model.n_heads
                    kept = torch.ones(state.shape[-1], dtype=torch.bool)
                    for head in patch.heads:
                        kept[head * size : (head + 1) * size] = False
                    values = torch.where(kept, new[0, where], values)
                new[0, where] = values
        return new

    def check(self, model: LanguageModel) -> None:
        return None


def naive(
    model: LanguageModel, prompts: Sequence[str], cells: Sequence[Sequence[Cell]]
) -> list[list[Tensor]]:
    """Logits of every patched run, one whole pass each."""
    found = []
    for number, (prompt, some) in enumerate(zip(prompts, cells, strict=True)):
        found.append([])
        for cell in some:
            for patch in cell:
                patch.source.load(range(len(prompts)), [patch.site], 0)
            with model.steering(Put(model, cell, number)):
                found[-1].append(model.logits([prompt])[0])
    return found


def pairs(model: LanguageModel) -> tuple[list[str], list[str]]:
    """Prompts of the same length on both sides for this tokenizer."""
    assert model.tokenize(FALSE).lengths == model.tokenize(TRUE).lengths
    return FALSE, TRUE


def difference(n: int) -> LogitDifference:
    return LogitDifference([FIRST] * n, [SECOND] * n)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_site_equals_whole_passes(family: str) -> None:
    model = tiny(family)
    false, true = pairs(model)
    source = Run(model, true)
    length = min(model.tokenize(false).lengths)
    cells: list[Cell] = []
    for name in model.site_names():
        for site in model.sites(name):
            for position in (1, length // 2, length - 1):
                cells.append((Patch(site, (position,), source),))
    sweep = PatchSweep(model, false, [cells] * len(false), difference(len(false)), token_budget=64)
    found = sweep.run()
    assert found.mode == "suffix"
    assert found.values.shape == (len(false), len(cells))
    expected = naive(model, false, [cells] * len(false))
    for prompt in range(len(false)):
        logits = torch.stack(expected[prompt])
        close(found.values[prompt], (logits[:, FIRST] - logits[:, SECOND]).numpy())


def sources(model: LanguageModel, false: list[str], true: list[str]) -> dict[str, Callable[[], object]]:
    other = tiny("llama", seed=3)
    means = {site: torch.randn(model.width(site)) for site in model.sites("resid_post")}
    turn = torch.linalg.qr(torch.randn(model.d_model, model.d_model))[0]
    return {
        "other prompt": lambda: Run(model, true),
        "other model": lambda: Run(other, true),
        "zero": Zero,
        "mean": lambda: Mean(means),
        "noise": lambda: Noise(0.7, seed=2),
        "random shift": lambda: RandomShift(Run(model, true), Run(model, false)),
        "mapped": lambda: Mapped(Run(other, true), dict.fromkeys(means, lambda rows: rows @ turn)),
        "another pair": lambda: Run(model, true).of(range(len(true))[::-1]),
    }


@pytest.mark.parametrize(
    "kind",
    ["other prompt", "other model", "zero", "mean", "noise", "random shift", "mapped", "another pair"],
)
def test_every_source_equals_whole_passes(kind: str) -> None:
    torch.manual_seed(0)
    model = tiny("llama")
    false, true = ["Rome is a town"] * 2, ["Rome is a town", "Bome is a sown"]
    false, true = pairs(model) if kind != "another pair" else (false, true)
    source = sources(model, false, true)[kind]()
    sites = model.sites("resid_post")
    spans = [(1,), (2, 3), (0, 4)]
    cells: list[Cell] = [(Patch(site, span, source),) for site in sites for span in spans]
    found = PatchSweep(model, false, [cells] * len(false), _all_logits(len(false)), token_budget=50).run()
    expected = naive(model, false, [cells] * len(false))
    for prompt in range(len(false)):
        close(found.values[prompt], torch.stack(expected[prompt]).numpy())


class _all_logits:
    tokens = None

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, logits: Tensor, prompts: Tensor) -> Tensor:
        return logits

    def identity(self) -> str:
        return "logits"


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2", "bloom", "mixtral", "falcon"]
)
def test_identities(family: str) -> None:
    model = tiny(family)
    false, true = pairs(model)
    n, own, clean = len(false), Run(model, false), Run(model, true)
    cells, expected = [], []
    plain, restored = model.logits(false), model.logits(true)
    for length in model.tokenize(false).lengths:
        row: list[Cell] = [
            # a run's own states change nothing
            *((Patch(site, (length // 2,), own),) for site in model.sites("resid_post")),
            # no noise, no change
            (Patch(Site("embed"), (1, 2), Noise(0.0)),),
            # the last token behind the last block, and all tokens behind any, are the clean run
            (Patch(Site("resid_post", LAYERS - 1), (length - 1,), clean),),
            *((Patch(site, tuple(range(length)), clean),) for site in model.sites("resid_post")),
            (Patch(Site("embed"), tuple(range(length)), clean),),
        ]
        cells.append(row)
    found = PatchSweep(model, false, cells, _all_logits(n)).run()
    for prompt in range(n):
        expected = [plain[prompt]] * (LAYERS + 1) + [restored[prompt]] * (LAYERS + 2)
        close(found.values[prompt], torch.stack(expected).numpy())
        close(found.plain[prompt], plain[prompt].numpy())


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cell_equals_a_whole_pass(data: st.DataObject) -> None:
    """Several patches at once, any sites and spans, on runs that are corrupted throughout."""
    model = tiny(data.draw(st.sampled_from(["llama", "gpt2", "gemma2", "mistral"])))
    false, true = pairs(model)
    false, true = false[:1], true[:1]
    length = model.tokenize(false).lengths[0]
    names = [name for name in model.site_names() if name != "ln_final_in"]
    spots = st.lists(st.integers(0, length - 1), min_size=1, max_size=3, unique=True).map(
        lambda some: tuple(sorted(some))
    )
    noise, clean, zero = Noise(0.5), Run(model, true), Zero()

    def patch() -> Patch:
        name = data.draw(st.sampled_from(names))
        site = data.draw(st.sampled_from(model.sites(name)))
        source = data.draw(st.sampled_from([clean, zero, noise]))
        return Patch(site, data.draw(spots), source)

    base: Cell = (Patch(Site("embed"), data.draw(spots), noise),)
    base += tuple(patch() for _ in range(data.draw(st.integers(0, 1))))
    cells: list[Cell] = [
        tuple(sorted((patch() for _ in range(data.draw(st.integers(1, 3)))), key=lambda one: one.site))
        for _ in range(3)
    ]
    found = PatchSweep(model, false, [cells], _all_logits(1), base=[base]).run()
    together = [tuple(sorted((*base, *cell), key=lambda one: one.site)) for cell in cells]
    expected = naive(model, false, [together])[0]
    close(found.values[0], torch.stack(expected).numpy())


def test_heads_windows_and_severed_paths_equal_whole_passes() -> None:
    model = tiny("llama")
    false, true = pairs(model)
    false, true = false[:1], true[:1]
    clean = Run(model, true)
    noise: Cell = (Patch(Site("embed"), (1, 2), Noise(1.0)),)
    corrupted = Run(model, false, [noise])
    cells: list[Cell] = [
        (Patch(Site("z", 1), (3,), clean, heads=(1, 2)),),
        window("mlp_out", 1, 2, LAYERS, (2,), clean),
        (
            Patch(Site("resid_post", 0), (2,), clean),
            *(Patch(Site("mlp_out", layer), (2,), corrupted) for layer in (1, 2)),
        ),
        (Patch(Site("resid_pre", 1), (4,), clean, source_positions=(2,)),),
    ]
    found = PatchSweep(model, false, [cells], _all_logits(1), base=[noise]).run()
    corrupted.load([0], [Site("mlp_out", 1), Site("mlp_out", 2)], 0)
    expected = naive(model, false, [[(*noise, *cell) for cell in cells]])[0]
    close(found.values[0], torch.stack(expected).numpy())
    assert [patch.site.layer for patch in cells[1]] == [0, 1]


def test_measures_equal_their_definitions() -> None:
    model = tiny("gpt2")
    false, true = pairs(model)
    n, source = len(false), Run(model, true)
    cells: list[Cell] = [(Patch(Site("resid_post", 1), (2,), source),)]
    logits = torch.stack([row[0] for row in naive(model, false, [cells] * n)]).double()
    law, clean = logits.log_softmax(-1), model.logits(true)
    target = clean.double().log_softmax(-1)
    wanted = {
        LogProbability([FIRST] * n): law[:, FIRST],
        Probability([FIRST] * n): law[:, FIRST].exp(),
        Divergence(clean): (target.exp() * (target - law)).sum(-1),
        difference(n): logits[:, FIRST] - logits[:, SECOND],
    }
    for measure, expected in wanted.items():
        found = PatchSweep(model, false, [cells] * n, measure).run()
        close(found.values[:, 0], expected.numpy())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_cost_counts_the_blocks_that_run(family: str) -> None:
    model = tiny(family)
    false, _ = pairs(model)
    source = Zero()  # needs no run of its own
    ran = [0]

    def count(module: object, args: tuple[Tensor, ...], output: Tensor) -> None:
        ran[0] += output.shape[0] * output.shape[1]

    length = min(model.tokenize(false).lengths)
    cells: list[Cell] = [
        (Patch(site, (position,), source),)
        for site in model.sites("resid_post")
        for position in range(2, length)
    ]
    sweep = PatchSweep(model, false, [cells] * len(false), difference(len(false)))
    modules = [model.anatomy.tap(Site("mlp_out", layer)).module for layer in range(LAYERS)]
    handles = [module.register_forward_hook(count) for module in modules]
    try:
        found = sweep.run()
    finally:
        for handle in handles:
            handle.remove()
    assert ran[0] == found.cost.patched + found.cost.kept
    assert found.cost.naive == sum(length * LAYERS * len(cells) for length in model.tokenize(false).lengths)


def test_a_family_that_hands_on_more_makes_whole_passes(caplog: pytest.LogCaptureFixture) -> None:
    """Block 1 adds what block 0's MLP put out in the same pass: nothing can be left out before it."""
    from families import build, tiny_tokenizer

    from steerlab.models import load_model

    model = load_model(build("llama"), tokenizer=tiny_tokenizer())
    seen: list[Tensor] = []
    first, second = (model.anatomy.blocks[layer].mlp for layer in (0, 1))
    first.register_forward_hook(lambda module, args, output: seen.append(output))
    second.register_forward_hook(lambda module, args, output: output + (seen.pop() if seen else 0))
    false, true = pairs(model)
    source = Run(model, true)
    cells: list[Cell] = [(Patch(Site("resid_pre", layer), (2,), source),) for layer in (1, 2)]
    found = PatchSweep(model, false, [cells] * len(false), _all_logits(len(false))).run()
    assert found.mode == "whole"
    assert "whole pass" in caplog.text
    expected = naive(model, false, [cells] * len(false))
    for prompt in range(len(false)):
        close(found.values[prompt], torch.stack(expected[prompt]).numpy())


def test_a_cache_of_another_kind_restarts_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from steerlab.activations import _suffix

    monkeypatch.setattr(_suffix, "_keys_values", lambda cache, n_layers: None)
    model = tiny("gpt2")
    false, true = pairs(model)
    source = Run(model, true)
    cells: list[Cell] = [(Patch(site, (2,), source),) for site in model.sites("resid_post")]
    found = PatchSweep(model, false, [cells] * len(false), _all_logits(len(false))).run()
    assert found.mode == "restart"
    expected = naive(model, false, [cells] * len(false))
    for prompt in range(len(false)):
        close(found.values[prompt], torch.stack(expected[prompt]).numpy())


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    false, true = pairs(model)
    source = Run(model, true)
    cells: list[Cell] = [
        (Patch(site, (position,), source),) for site in model.sites("resid_post") for position in range(4)
    ]
    arguments = (model, false, [cells] * len(false), difference(len(false)))
    whole = PatchSweep(*arguments).run()
    folder, ran = tmp_path / "sweeps", []
    finish = patching.finish

    def interrupted(*args: object) -> Tensor:
        ran.append(args)
        if len(ran) > len(cells) // 2:
            raise KeyboardInterrupt
        return finish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(patching, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PatchSweep(*arguments, token_budget=20).run(kept_in=folder)
    first = len(ran) - 1
    monkeypatch.setattr(patching, "finish", lambda *args: ran.append(args) or finish(*args))
    ran.clear()
    again = PatchSweep(*arguments, token_budget=20).run(kept_in=folder)
    close(again.values, whole.values)
    assert first > 0
    assert len(ran) < first + len(cells) * len(false)
    ran.clear()
    once_more = PatchSweep(*arguments).run(kept_in=folder)
    np.testing.assert_array_equal(once_more.values, again.values)
    assert not ran
    # Another sweep has a file of its own.
    PatchSweep(model, false, [cells[1:]] * len(false), difference(len(false))).run(kept_in=folder)
    assert len(list(folder.glob("*.npz"))) == 2
    for file in folder.glob("*.npz"):
        file.write_bytes(b"nothing")
    with pytest.raises(RunError, match="remove it"):
        PatchSweep(*arguments).run(kept_in=folder)


def _kept_like_new(folder: Path, sweep: Callable[[], PatchSweep]) -> None:
    """What a sweep gives with a folder of other sweeps' values is what it gives without."""
    np.testing.assert_array_equal(sweep().run(kept_in=folder).values, sweep().run().values)


def test_a_kept_sweep_is_read_by_nothing_that_was_made_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from families import build, tiny_tokenizer

    from steerlab.models import load_model
    from steerlab.steering import Add

    model = tiny("llama")
    false, true = pairs(model)
    site = model.sites("resid_post")[1]

    def swept(model: LanguageModel, source: Source) -> PatchSweep:
        return PatchSweep(model, false, [[(Patch(site, (2,), source),)]] * len(false), difference(len(false)))

    def files() -> int:
        return len(list(tmp_path.glob("*.npz")))

    swept(model, Run(model, true)).run(kept_in=tmp_path)
    # Weights that bfloat16 holds have one fingerprint in both dtypes.
    exact = load_model(build("llama").to(torch.bfloat16).float(), tokenizer=tiny_tokenizer())
    rounded = load_model(build("llama").to(torch.bfloat16), tokenizer=tiny_tokenizer())
    assert exact.fingerprint == rounded.fingerprint
    for other in (exact, rounded):
        _kept_like_new(tmp_path, lambda other=other: swept(other, Run(other, true)))
    _kept_like_new(tmp_path, lambda: swept(exact, Run(rounded, true)))
    assert files() == 4

    push = Add([1.0] * model.d_model, 3, sites="resid_post.0")
    with model.steering(push):
        _kept_like_new(tmp_path, lambda: swept(model, Run(model, true)))
    with rounded.steering(push):  # the source's model counts, too
        _kept_like_new(tmp_path, lambda: swept(model, Run(rounded, true)))
    hook = model.model.register_forward_hook(lambda module, args, output: None)
    swept(model, Run(model, true)).run(kept_in=tmp_path)
    hook.remove()
    assert files() == 4
    assert "nothing is kept" in caplog.text

    # Maps have one name and other numbers.
    for factor in (1.0, 2.0):
        maps = {site: lambda rows, factor=factor: factor * rows}
        _kept_like_new(
            tmp_path, lambda maps=maps: swept(model, Mapped(Run(model, true), maps, name="aligned"))
        )
    assert files() == 6

    monkeypatch.setattr("steerlab.activations._kept.code_version", lambda: "another")
    swept(model, Run(model, true)).run(kept_in=tmp_path)
    assert files() == 7


def test_a_sweep_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    model = tiny("llama")
    false, true = pairs(model)
    cells: list[Cell] = [(Patch(model.sites("resid_post")[1], (2,), Run(model, true)),)]
    sweep = PatchSweep(model, false, [cells] * len(false), difference(len(false)))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be kept in .*; choose another folder"):
        sweep.run(kept_in=tmp_path / "file")


def test_less_memory_means_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    false, true = pairs(model)
    source = Run(model, true)
    cells: list[Cell] = [(Patch(site, (2,), source),) for site in model.sites("resid_post")]
    arguments = (model, false, [cells] * len(false), difference(len(false)))
    expected = PatchSweep(*arguments).run()
    finish = patching.finish

    def small(model: LanguageModel, kept: object, rows: Tensor, *rest: object) -> Tensor:
        if len(rows) > 1:
            raise torch.OutOfMemoryError
        return finish(model, kept, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(patching, "finish", small)
    close(PatchSweep(*arguments).run().values, expected.values)


def test_steered_runs_are_swept_as_they_are_steered() -> None:
    from steerlab.directions import Direction
    from steerlab.steering import Add

    model = tiny("llama")
    false, true = pairs(model)
    vectors = {site: torch.ones(model.d_model) for site in model.sites("resid_post")}
    with model.steering(Add(Direction(vectors, model.name, model.fingerprint), strength=0.3, layers="all")):
        source = Run(model, true)
        cells: list[Cell] = [(Patch(site, (2,), source),) for site in model.sites("resid_post")]
        found = PatchSweep(model, false, [cells] * len(false), _all_logits(len(false))).run()
        expected = naive(model, false, [cells] * len(false))
    for prompt in range(len(false)):
        close(found.values[prompt], torch.stack(expected[prompt]).numpy())


def test_bfloat16_stays_within_its_rounding() -> None:
    from families import build, tiny_tokenizer

    from steerlab.models import load_model

    model = load_model(build("llama").to(torch.bfloat16), tokenizer=tiny_tokenizer())
    false, true = pairs(model)
    source = Run(model, true)
    cells: list[Cell] = [(Patch(site, (2,), source),) for site in model.sites("resid_post")]
    found = PatchSweep(model, false, [cells] * len(false), _all_logits(len(false))).run()
    expected = naive(model, false, [cells] * len(false))
    for prompt in range(len(false)):
        close(found.values[prompt], torch.stack(expected[prompt]).numpy(), rtol=0.1)


def test_what_cannot_be_patched_is_refused() -> None:
    model = tiny("llama")
    false, _ = pairs(model)
    n = len(false)

    def sweep(patch: Patch) -> PatchSweep:
        return PatchSweep(model, false, [[(patch,)]] * n, difference(n))

    with pytest.raises(PromptError, match="none at position 500"):
        sweep(Patch(Site("resid_post", 0), (500,), Zero()))
    with pytest.raises(SiteError, match="layers 0 to 2"):
        sweep(Patch(Site("resid_post", 9), (1,), Zero()))
    with pytest.raises(SiteError, match="no heads"):
        sweep(Patch(Site("resid_post", 0), (1,), Zero(), heads=(1,)))
    with pytest.raises(SiteError, match="heads 0 to 3"):
        sweep(Patch(Site("z", 0), (1,), Zero(), heads=(7,)))
    with pytest.raises(PromptError, match="pair prompts of equal length"):
        sweep(Patch(Site("resid_post", 0), (1,), Run(model, ["Rome"] * n)))
    with pytest.raises(PromptError, match="counted from 0"):
        Patch(Site("resid_post", 0), (), Zero())
    with pytest.raises(PromptError, match="takes 2 from its source"):
        Patch(Site("resid_post", 0), (1,), Zero(), source_positions=(1, 2))
    with pytest.raises(PromptError, match="different tokens"):
        LogitDifference([3], [3])
    with pytest.raises(PromptError, match="in brackets"):
        PatchSweep(model, "Rome", [[]], difference(1))
    with pytest.raises(PromptError, match="one a prompt"):
        PatchSweep(model, false, [], difference(n))
    with pytest.raises(SteeringError, match="patches nothing"):
        PatchSweep(model, false, [[()]] * n, difference(n))
    with pytest.raises(SteeringError, match="no mean"):
        sweep(Patch(Site("resid_post", 0), (1,), Mean({}))).run()
    with pytest.raises(SteeringError, match="no map"):
        sweep(Patch(Site("resid_post", 0), (1,), Mapped(Run(model, false), {}))).run()
