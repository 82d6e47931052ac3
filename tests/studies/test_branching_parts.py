"""Legacy aggregations, AEP panels, attribution, votes and steered sweeps against closed forms (C4–C10)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from toy import NONE, Chain, fixed

from steerlab.directions import Direction
from steerlab.errors import DatasetError, PromptError
from steerlab.models.metering import metered
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.samples import rendered, sample
from steerlab.readouts.sampling import sample_tokens
from steerlab.results import result_from_dict
from steerlab.steering import Add
from steerlab.studies import branching
from steerlab.studies._branching import estimators, legacy
from steerlab.studies._branching.aep import panels
from steerlab.studies._branching.amounts import PARTS
from steerlab.studies._branching.attribution import attribute, pareto_shares
from steerlab.studies._branching.parts import Drawn, _Runner
from steerlab.studies._branching.reference import beside, read_curves
from steerlab.studies._branching.steered import branching_by_strength
from steerlab.studies._branching.votes import majority, votes


def ragged(rows: list[np.ndarray]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


# -- legacy aggregations --


def test_the_published_rule_reads_the_longest_few() -> None:
    """45 outputs of 10 tokens at ln 16 and five of 100 at ln 2: 13.0 printed, 5.36 by tokens, 2.00 by the
    published rule."""
    values = ragged([np.full(10, math.log(16))] * 45 + [np.full(100, math.log(2))] * 5)
    assert math.exp(estimators.sequence_weighted(values)) == pytest.approx(13.0, abs=0.01)
    assert math.exp(estimators.token_weighted(values)) == pytest.approx(5.36, abs=0.01)
    assert math.exp(legacy.condensed(values)[-1]) == pytest.approx(2.0)


def test_four_survivors_decide_the_published_scalar() -> None:
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.geometric(0.01, size=50), 400)
    values = ragged([np.full(n, 1.0) for n in sizes])
    condensed = legacy.condensed(values)
    assert 3 < (sizes >= len(condensed)).sum() <= 8
    assert math.isnan(
        legacy.log_factor(values[:3], values[:3])
    )  # the published code stops here with an error


def test_an_early_short_sample_cuts_all_that_follow() -> None:
    late = ragged([np.array([3.0, *[0.0] * 9]), np.array([3.0, *[0.0] * 9]), np.array([3.0])])
    assert legacy.l0(late) < legacy.l0(late[::-1])  # the order decides
    assert legacy.l0(late[::-1]) == pytest.approx(math.exp(3.0))
    constant = ragged([np.full(5, 1.0), np.full(9, 1.0)])
    assert legacy.l0(constant) == pytest.approx(math.e)


def test_geometric_lengths_bias_the_published_rule() -> None:
    """C4: every step ends with 0.02, else uniform over four: entropy constant, BF 4.291377 whatever is drawn."""
    rows = torch.tensor([[0.245] * 4 + [0.02]] * 5)
    runs = sample_tokens(
        Chain(rows),
        [[0]] * 12,
        vocab_size=5,
        stop_ids=[4],
        samples=50,
        max_new_tokens=256,
        law=NONE,
        seed=1,
        rows=600,
    )
    by_prompt = [(runs.entropy[runs.prompt == n], runs.surprisal[runs.prompt == n]) for n in range(12)]
    entropies, surprisals = zip(*by_prompt, strict=True)
    assert math.exp(estimators.sequence_weighted(runs.entropy)) == pytest.approx(4.291377, abs=1e-4)
    for kind in ("L1", "L2"):
        assert legacy.over_prompts(entropies, surprisals, kind) == pytest.approx(4.10, abs=0.08)
    assert legacy.over_prompts(entropies, surprisals, "L0") == pytest.approx(4.291377, abs=1e-4)


def test_the_published_smoother_lingers_and_the_corrected_one_does_not() -> None:
    """C8: raw 12, 4, 4, ... gives 12, 11.2, 10.48, 9.832; corrected it is a weighted mean of what was seen."""
    raw = np.array([12.0, *[4.0] * 40])
    published = legacy.smoothed(raw, corrected=False)
    np.testing.assert_allclose(published[:5], [12, 11.2, 10.48, 9.832, 9.2488])
    np.testing.assert_allclose(published, 4 + 8 * 0.9 ** np.arange(41))
    corrected = legacy.smoothed(raw)
    assert corrected[1] == pytest.approx((0.9 * 12 + 4) / 1.9)
    assert (corrected < published)[1:].all()
    np.testing.assert_allclose(legacy.smoothed(np.full(9, 3.0)), 3.0)


def test_the_published_curve_averages_the_prompts_that_are_left() -> None:
    first, second = ragged([np.full(4, 1.0)] * 5), ragged([np.full(2, 0.0)] * 5)
    np.testing.assert_allclose(legacy.l3([first, second]), [(math.e + 1) / 2] * 2 + [math.e] * 2)


# -- AEP --


def test_panels_of_independent_steps_stay_in_their_band_and_fall_as_the_square_root() -> None:
    law = [0.5, 0.3, 0.15, 0.05]
    runs = sample_tokens(
        fixed(law),
        [[0]] * 6,
        vocab_size=4,
        stop_ids=(),
        samples=60,
        max_new_tokens=64,
        law=NONE,
        seed=3,
        rows=400,
    )
    found = panels("toy", runs.entropy, runs.surprisal, runs.prompt)
    assert found.sequences == 360
    assert found.outside < 0.35
    np.testing.assert_allclose(found.entropy, 1.142120, atol=1e-5)
    assert found.slope == pytest.approx(-0.5, abs=0.08)
    np.testing.assert_allclose(found.spread[8:], found.predicted[8:], rtol=0.15)
    variance = sum(p * (-math.log(p) - 1.142120) ** 2 for p in law)
    np.testing.assert_allclose(found.band, 1.96 * np.sqrt(variance / np.arange(1, 65) / 360), rtol=0.08)


def test_a_wrong_record_leaves_its_band() -> None:
    runs = sample_tokens(
        fixed([0.5, 0.3, 0.2]),
        [[0]] * 6,
        vocab_size=3,
        stop_ids=(),
        samples=60,
        max_new_tokens=64,
        law=NONE,
        rows=400,
    )
    assert panels("toy", runs.entropy - 0.1, runs.surprisal, runs.prompt).outside > 0.9


# -- attribution --


def grid(keep: Any = lambda cell: True) -> tuple[np.ndarray, dict[str, list[str]], list[int]]:
    """C9: a balanced 2 × 2 × 2 × 6 grid of BF = 10 + 3 AT + 1 S + 0.5 G + 0.1 C, two prompts a cell."""
    cells = [cell for cell in itertools.product((0, 1), (0, 1), (0, 1), range(6), (0, 1)) if keep(cell)]
    values = np.array([10 + 3 * a + s + 0.5 * g + 0.1 * c for a, s, g, c, _ in cells])
    names = ("AT", "S", "G", "C")
    return (
        values,
        {name: [str(cell[at]) for cell in cells] for at, name in enumerate(names)},
        [cell[4] for cell in cells],
    )


def test_pareto_shares_are_the_published_ones() -> None:
    values, factors, _ = grid()
    shares = pareto_shares(values, factors)
    assert [round(100 * shares[name], 2) for name in ("AT", "S", "G", "C")] == [63.38, 21.13, 10.56, 4.93]
    with pytest.raises(ValueError, match="one level"):
        pareto_shares(values, {"AT": ["0"] * len(values)})


def test_paired_contrasts_survive_missing_cells_that_move_the_shares() -> None:
    values, factors, prompt = grid()
    whole = {
        one.factor: one for one in attribute(np.log(values), factors, prompt) if one.factor in ("AT", "S")
    }
    fewer, some, which = grid(
        lambda cell: cell[0] == cell[1] or cell[3] == 0
    )  # AT and S confounded but at level 0
    part = {one.factor: one for one in attribute(np.log(fewer), some, which) if one.factor in ("AT", "S")}
    assert pareto_shares(fewer, some)["S"] > 2 * pareto_shares(values, factors)["S"] * 0.7
    assert part["AT"].change.value == pytest.approx(whole["AT"].change.value, abs=0.02)
    assert part["S"].change.value == pytest.approx(whole["S"].change.value, abs=0.02)
    assert whole["AT"].change.value > 0


def test_noise_gets_a_share_but_no_significance() -> None:
    rng = np.random.default_rng(0)
    cells = [(a, n) for a in "xy" for n in range(40)]
    logs = rng.normal(size=80)
    (found,) = attribute(logs, {"A": [a for a, _ in cells]}, [n for _, n in cells])
    assert found.share == 1.0
    assert found.p_value > 0.05
    (moved,) = attribute(
        logs + np.array([3.0 * (a == "y") for a, _ in cells]),
        {"A": [a for a, _ in cells]},
        [n for _, n in cells],
    )
    assert moved.p_value < 0.01
    assert moved.change.low > 2


# -- votes --


def test_votes_of_independent_answers_have_no_excess() -> None:
    """C10: Bernoulli 0.7: deviation of Maj@1 0.458258, mean accuracy of Maj@3 0.784."""
    rng = np.random.default_rng(0)
    answers = [[["wrong", "right"][int(one)] for one in rng.random(4000) < 0.7] for _ in range(8)]
    single, three = (votes(answers, ["right"] * 8, k, draws=4000) for k in (1, 3))
    assert single.deviation.value == pytest.approx(0.458258, abs=0.01)
    assert three.accuracy.value == pytest.approx(0.784, abs=0.01)
    assert abs(single.excess.value) < 0.01
    assert abs(three.excess.value) < 0.01
    assert majority(0.7, 3) == pytest.approx(0.784)
    assert majority(0.5, 2) == pytest.approx(0.5)
    scattered = [
        ["right"] * 7 + [f"wrong{n}" for n in range(9)]
    ] * 4  # right is the plurality far more often than the half
    assert votes(scattered, ["right"] * 4, 15).excess.value < 0
    with pytest.raises(ValueError, match="at least one"):
        votes([], [], 1)


# -- steering, reference curves, the parts of a real pair --


def test_a_sweep_holds_every_strength_against_none() -> None:
    """Scaling the last stream to nothing makes the law uniform; zero strength is bit-equal to no steering."""
    model = tiny("llama")
    site = model.sites("resid_post")[-1]
    found = branching_by_strength(
        model,
        ["the cat sat", "a dog"],
        lambda s: [Add(direction_of(model, site), strength=s, unit="raw")],
        [5.0, 0.0, -5.0],
        samples=4,
        max_new_tokens=6,
        template="plain",
        law=SamplingLaw(),
    )
    assert [one.strength for one in found.rows] == [5.0, 0.0, -5.0]
    assert found.rows[1].ratio.value == 1
    for one in (found.rows[0], found.rows[2]):
        assert one.ratio.value == pytest.approx(one.factor.value / found.rows[1].factor.value, rel=1e-6)
        assert one.factor.value != found.rows[1].factor.value
    assert found.plot().data
    with pytest.raises(PromptError, match="at least one prompt"):
        branching_by_strength(model, [], lambda s: [], [1.0])


def direction_of(model: Any, site: Any) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return Direction(vectors={site: vector}, model_name=model.name, fingerprint=model.fingerprint)


def test_published_curves_load_and_draw_beside_ours(shared: Path, tmp_path: Path) -> None:
    """Values at positions 0 and 255 of the shipped tables, as the paper's revision has them."""
    found = read_curves(shared / "data" / "branching_factor" / "Meta-Llama-3-8B.csv")
    x, y = found["Meta-Llama-3-8B, self conditioned baseline"]
    assert y[x == 0][0] == pytest.approx(18.45, abs=0.01)
    assert y[x == 255][0] == pytest.approx(5.3, abs=0.05)
    assert len(beside({"ours": [3.0, 2.0]}, found).data) >= 1 + len(found)
    with pytest.raises(DatasetError, match="needs the columns"):
        read_curves(shared / "data" / "branching_factor" / "agentic_delta_from_control.csv")
    bad = tmp_path / "bad.csv"
    bad.write_text("model,series,x,bf\na,b,1,two\n")
    with pytest.raises(DatasetError, match="row 2: x and bf"):
        read_curves(bad)


@pytest.mark.usefixtures("smaller_studies")
def test_parts_of_a_random_pair_are_whole_and_claim_nothing_of_nudging() -> None:
    pair = {"base": tiny("llama"), "post": tiny("llama", seed=1)}
    result = branching((pair["base"], pair["post"]), ["the cat", "a dog sat"], law=SamplingLaw())
    assert result.parts is not None
    assert {one.model for one in result.parts.legacy} == {"base", "post"}
    assert all(one.outside < 0.5 for one in result.parts.panels)
    assert result_from_dict(result.to_dict()).to_dict() == result.to_dict()
    assert set(result.figures()) >= {"branching_factor", "aep_gap"}
    assert branching((pair["base"], pair["post"]), ["the cat"], temperature=0).parts is None


def test_known_samples_are_not_drawn_again() -> None:
    """Fewer samples of the first prompts are those that are there; others are drawn, once."""
    model, law = tiny("llama"), SamplingLaw()
    ids = rendered(model, ["the cat", "a dog sat", "why"], "plain")
    known = sample(model, ids, samples=4, max_new_tokens=8, law=law, seed=3)
    run = _Runner({"base": model}, {"base": "plain"}, {"base": Drawn(ids, known)}, law, PARTS["quick"], 3)

    def costs(some: list[list[int]], samples: int, steps: int) -> int:
        with metered({"base": model}) as spent:
            found = run.sample("base", some, samples, steps)
        fresh = sample(model, some, samples=samples, max_new_tokens=steps, law=law, seed=3)
        np.testing.assert_array_equal(found.tokens, fresh.tokens)
        np.testing.assert_allclose(found.entropy, fresh.entropy, atol=1e-4)
        return spent["base"].read

    assert costs(ids, 4, 8) == costs(ids[:2], 3, 5) == 0
    assert costs(ids[1:], 2, 4) > 0
    assert costs(ids[1:], 2, 4) == 0
    assert costs(ids, 5, 8) > 0
    assert costs(ids, 4, 9) > 0
    apart = [ids[1:], [[*row, 7] for row in ids], ids[:1]]
    together = run.sample_all("base", apart, 3, 6)
    for some, found in zip(apart, together, strict=True):
        fresh = sample(model, some, samples=3, max_new_tokens=6, law=law, seed=3)
        np.testing.assert_array_equal(found.tokens, fresh.tokens)
        np.testing.assert_array_equal(found.prompt, fresh.prompt)
