"""Attribution patching: exact where all is linear, second order in the change elsewhere, every site, its error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tiny, tiny_tokenizer
from scipy import stats
from tolerances import close
from torch import Tensor

import steerlab as sl
from steerlab.activations import (
    Divergence,
    LogitDifference,
    LogProbability,
    Noise,
    PatchAttribution,
    PatchResult,
    PatchSweep,
    Probability,
    Run,
    Shift,
    StatePatch,
    Zero,
)
from steerlab.activations.patches import Cell
from steerlab.activations.sources import Source
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Site

PROMPTS = ["Rome is a town of Spain, so", "Is a cat an animal? No, a cat"]
OTHERS = ["Bome is a town of Spain, so", "Is a cat an animal? Go, a cat"]
FIRST, SECOND = 30, 31


def difference(n: int = 2) -> LogitDifference:
    return LogitDifference([FIRST] * n, [SECOND] * n)


def double(family: str) -> LanguageModel:
    return sl.load(build(family).double(), tiny_tokenizer(), dtype="auto")


def each(sites: Sequence[Site], positions: Sequence[int], source: Source) -> list[list[Cell]]:
    return [[(StatePatch(site, (at,), source),) for site in sites for at in positions] for _ in PROMPTS]


def test_where_all_is_linear_it_is_the_sweep() -> None:
    """Llama without its final norm: logits are linear in the last stream. Float32, to 1e-5 of the largest effect."""
    network = build("llama")
    network.model.norm = torch.nn.Identity()
    model = sl.load(network, tiny_tokenizer())
    length = min(model.lengths(PROMPTS))
    sites = [Site("resid_post", 2), Site("mlp_out", 2), Site("ln_final_in")]
    sweep = PatchSweep(
        model, PROMPTS, each(sites, range(length - 1, length), Run(model, OTHERS)), difference()
    )
    sweep.cells[0].append((StatePatch(sites[0], (model.lengths(PROMPTS)[0] - 1,), Zero()),))
    found, exact = sweep.attribution(), sweep.run()
    known = np.isfinite(exact.values)
    assert (known == np.isfinite(found.values)).all()
    close(torch.from_numpy(found.values[known]), torch.from_numpy(exact.values[known]), rtol=1e-5)
    close(torch.from_numpy(found.plain), torch.from_numpy(exact.plain), rtol=1e-5)
    said = found.against(exact)
    assert said.largest_effect > 1e-3
    assert said.largest_error < 1e-4 * said.largest_effect
    assert said.top_found == 1.0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_error_is_of_second_order(family: str) -> None:
    """Halving the change divides the error by four (float64), at every site of the stream and inside blocks."""
    model = double(family)
    sites = [
        Site(name, 1)
        for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post")
    ]
    vectors = {
        site: torch.randn(
            model.width(site), dtype=torch.float64, generator=torch.Generator().manual_seed(number)
        )
        for number, site in enumerate(sites)
    }
    length = min(model.lengths(PROMPTS))
    errors = []
    for size in (2e-3, 1e-3):
        cells = each(sites, (2, length - 1), Shift({site: size * vector for site, vector in vectors.items()}))
        sweep = PatchSweep(model, PROMPTS, cells, difference())
        found, exact = sweep.attribution(), sweep.run()
        assert found.effects.shape == exact.values.shape
        errors.append(np.abs(found.values - exact.values).max())
        assert errors[-1] < size * np.abs(exact.values - exact.plain[:, None]).max()
    assert 3.0 < errors[0] / errors[1] < 5.0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_site_has_its_slope(family: str) -> None:
    """Against the sweep's own central difference for a small change, to 2 % of the largest effect."""
    model = tiny(family)
    length = min(model.lengths(PROMPTS))
    sites = [model.sites(name)[-1] for name in model.site_names()]
    generator = torch.Generator().manual_seed(0)
    vectors = {site: 1e-3 * torch.randn(model.width(site), generator=generator) for site in sites}
    effects = []
    for sign in (1, -1):
        cells = each(sites, (length - 1,), Shift({site: sign * vector for site, vector in vectors.items()}))
        sweep = PatchSweep(model, PROMPTS, cells, difference())
        effects.append(sweep.run().values)
    slope = (effects[0] - effects[1]) / 2
    found = -sweep.attribution().effects
    assert np.abs(found - slope).max() <= 0.02 * np.abs(slope).max()


@pytest.mark.parametrize(
    "measure",
    [
        LogProbability([FIRST] * 2),
        Probability([FIRST] * 2),
        Divergence(torch.randn(2, 400, generator=torch.Generator().manual_seed(0))),
    ],
    ids=lambda one: type(one).__name__,
)
def test_every_measure_has_a_slope(measure: LogProbability) -> None:
    model = double("llama")
    if isinstance(measure, Divergence):
        measure = Divergence(model.logits(OTHERS))
    site = Site("resid_post", 0)
    small = Shift(
        {site: 1e-3 * torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    )
    sweep = PatchSweep(model, PROMPTS, each([site], (1, 4), small), measure)
    found, exact = sweep.attribution(), sweep.run()
    right = exact.values - exact.plain[:, None]
    np.testing.assert_allclose(found.effects, right, atol=0.02 * np.abs(right).max())


def test_heads_spans_bases_and_steering_are_the_sweeps() -> None:
    """Small noise as base and patch, in a steered model, some heads of several: as the sweep to first order."""
    model = double("llama")
    noise = Noise(1e-3)
    cells: list[Cell] = [
        (StatePatch(Site("z", 1), (2, 3), noise, heads=(0, 2)),),
        (StatePatch(Site("z", 1), (2, 3), noise),),
        (StatePatch(Site("resid_post", 0), (1,), noise), StatePatch(Site("mlp_out", 2), (4,), noise)),
        (StatePatch(Site("embed"), (0, 1), noise),),
    ]
    base = [(StatePatch(Site("embed"), (1,), Noise(0.5, 1)),)] * 2
    sweep = PatchSweep(model, PROMPTS, [cells, cells[:2]], difference(), base=base)
    with model.steering(sl.Add(torch.ones(32), 0.3, sites="resid_post.1")):
        found, exact = sweep.attribution(), sweep.run()
    right = exact.values - exact.plain[:, None]
    np.testing.assert_allclose(found.effects, right, atol=0.02 * np.nanmax(np.abs(right)))
    np.testing.assert_allclose(found.plain, exact.plain, rtol=1e-6)
    assert np.isnan(found.values[1, 2:]).all()
    plain = PatchSweep(model, PROMPTS, [cells, cells[:2]], difference(), base=base).attribution()
    assert np.abs(plain.plain - found.plain).max() > 1e-6
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_two_passes_do_for_all_cells() -> None:
    model = tiny("llama")
    ran = []
    handle = model.anatomy.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    cells = each(model.sites("resid_post"), range(6), Run(model, OTHERS))
    PatchSweep(model, PROMPTS, cells, difference()).attribution()
    handle.remove()
    lengths = len(set(model.lengths(PROMPTS)))
    assert len(ran) == 2 * lengths  # this run and that of the source, for each length of prompts


def test_the_agreement_is_what_scipy_and_a_count_say() -> None:
    random = np.random.default_rng(0)
    exact = random.normal(size=(3, 8))
    guess = exact + 0.3 * random.normal(size=(3, 8))
    exact[2, 6:] = guess[2, 6:] = np.nan
    plain = np.array([1.0, -2.0, 0.5])
    result = PatchResult(exact + plain[:, None], plain, None, "suffix")  # type: ignore[arg-type]
    said = PatchAttribution(guess + plain[:, None], plain).against(result, k=2)
    known = np.isfinite(exact)
    assert said.pearson == pytest.approx(stats.pearsonr(exact[known], guess[known]).statistic)
    assert said.spearman == pytest.approx(stats.spearmanr(exact[known], guess[known]).statistic)
    assert said.largest_error == pytest.approx(np.nanmax(np.abs(exact - guess)))
    assert said.largest_effect == pytest.approx(np.nanmax(np.abs(exact)))
    tops = []
    for a, b in zip(exact, guess, strict=True):
        first, second = (
            set(sorted(np.flatnonzero(np.isfinite(x)), key=lambda i: -abs(x[i]))[:2]) for x in (a, b)
        )
        tops.append(len(first & second) / 2)
    assert said.top_found == pytest.approx(np.mean(tops))
    assert (said.k, said.cells) == (2, 22)
    assert type(said).model_validate_json(said.model_dump_json()) == said


class Leaving:
    """A measure that leaves torch's graph, or gives two numbers."""

    tokens = None

    def __init__(self, *, several: bool) -> None:
        self.several = several

    def __call__(self, logits: Tensor, prompts: Tensor) -> Tensor:
        return logits[:, :2] if self.several else logits[:, 0].detach()

    def identity(self) -> str:
        return "leaving"


def test_what_has_no_slope_is_refused_in_a_sentence() -> None:
    model = tiny("llama")
    cells = each([Site("resid_post", 1)], (1,), Zero())
    exact = PatchSweep(model, PROMPTS, cells, difference()).run()
    found = PatchSweep(model, PROMPTS, cells, difference()).attribution()
    other = PatchSweep(model, PROMPTS, cells, LogitDifference([3, 3], [9, 9])).attribution()
    fewer = PatchSweep(model, PROMPTS[:1], cells[:1], difference(1)).attribution()
    nothing = PatchAttribution(np.full((2, 1), np.nan), exact.plain)
    for make, said in (
        (
            lambda: PatchSweep(model, PROMPTS, cells, Leaving(several=True)).attribution(),
            "gives .2,. numbers a run",
        ),
        (lambda: PatchSweep(model, PROMPTS, cells, Leaving(several=False)).attribution(), "has no gradient"),
        (lambda: fewer.against(exact), "of the same prompts and cells"),
        (lambda: other.against(exact), "plain runs differ"),
        (lambda: found.against(exact, k=0), "top 0 cells are none"),
        (lambda: nothing.against(exact), "no cell in common"),
    ):
        with pytest.raises(SteerlabError, match=said):
            make()


def test_a_prompt_without_cells_has_its_plain_value() -> None:
    model = tiny("llama")
    cells = each([Site("resid_post", 1)], (1,), Zero())
    right = PatchSweep(model, PROMPTS, cells, difference()).attribution()
    found = PatchSweep(model, PROMPTS, [cells[0], []], difference()).attribution()
    np.testing.assert_allclose(found.plain, right.plain, rtol=1e-6)
    np.testing.assert_allclose(found.values[0], right.values[0], rtol=1e-6)
    assert np.isnan(found.values[1]).all()


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    prompts = [PROMPTS[0]] * 4
    cells = [each([Site("resid_post", 1)], (1,), Zero())[0]] * 4
    right = PatchSweep(model, prompts, cells, difference(4)).attribution()
    forward = model.anatomy.base.forward

    def small(*args: object, **inputs: Tensor) -> object:
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **inputs)

    monkeypatch.setattr(model.anatomy.base, "forward", small)
    found = PatchSweep(model, prompts, cells, difference(4)).attribution()
    close(torch.from_numpy(found.values), torch.from_numpy(right.values), rtol=1e-5)
