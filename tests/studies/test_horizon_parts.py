"""Legacy aggregations, AEP panels, attribution, votes, resampling, nudging and prompt sets against closed forms
(C4–C11)."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from families import tiny
from toy import Chain, fixed

from steerlab.datasets import prompt_sets
from steerlab.directions import Direction
from steerlab.errors import DatasetError, PromptError
from steerlab.readouts.nudging import first_word, nudge, nudge_words
from steerlab.readouts.resampling import commitment, resample
from steerlab.readouts.sampling import SamplingLaw, sample_tokens
from steerlab.results import result_from_dict
from steerlab.steering import Add
from steerlab.studies import branching
from steerlab.studies._branching import estimators, legacy
from steerlab.studies._branching.aep import panels
from steerlab.studies._branching.attribution import attribute, pareto_shares
from steerlab.studies._branching.reference import beside, read_curves
from steerlab.studies._branching.steered import branching_by_strength
from steerlab.studies._branching.votes import majority, votes

NONE = SamplingLaw(1.0, "none", 1.0)


class Letters:
    """A tokenizer whose token n is the letter n."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + n): n for n in range(self.size)}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + int(n)) for n in ids)


def model_of(network: Chain, stops: tuple[int, ...] = ()) -> Any:
    """What the studies ask of a `LanguageModel`, around a network with a known law."""
    size = network.rows.shape[1]
    network.config.eos_token_id = list(stops) or None
    return SimpleNamespace(
        model=network,
        source=network,
        vocab_size=size,
        tokenizer=Letters(size),
        name="toy",
        end_token_ids=stops,
    )


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


# -- resampling --


def settling() -> Chain:
    """State 0 goes on with .8, settles to right (1) or wrong (2) with .1 each, and stays there."""
    return Chain(torch.tensor([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def test_resampling_changes_no_accuracy_at_one_and_commitment_grows() -> None:
    found = resample(
        model_of(settling()),
        [[0]] * 40,
        lambda _, text: text.endswith("b"),
        positions=(0, 5, 20),
        rollouts=12,
        continuations=8,
        max_new_tokens=40,
        law=NONE,
    )
    for one in found:
        assert not one.change.excludes(0), one
        # right with 1/2 from the start; after t steps settled with 1 - .8^t
        assert one.commitment.value == pytest.approx(1 - 0.8**one.t, abs=0.07)
    assert found[0].commitment.low < 0.05


def test_ended_answers_stay_what_they_were() -> None:
    chain = Chain(
        torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    )
    (found,) = resample(
        model_of(chain, (3,)),
        [[0]] * 20,
        lambda _, text: "b" in text,
        positions=(5,),
        max_new_tokens=9,
        law=NONE,
    )
    assert found.ended == 1
    assert found.change.value == 0
    assert found.commitment.value == pytest.approx(1)


def test_no_variance_is_no_commitment() -> None:
    assert math.isnan(commitment(np.ones((3, 4)), 2).value)
    for arguments, match in (
        ({"rollouts": 1}, "at least two rollouts"),
        ({"positions": (99,)}, "cannot be taken up"),
    ):
        given = {"positions": (1,), "max_new_tokens": 5, **arguments}
        with pytest.raises(PromptError, match=match):
            resample(model_of(settling()), [[0]], lambda _, text: True, **given)  # type: ignore[arg-type]


# -- nudging --


def test_a_uniform_base_is_nudged_everywhere_or_nowhere() -> None:
    """C11: base uniform over four, γ = .3: every step nudged, process BF 1, base BF 4; γ = .2: none, both 4."""
    base, aligned = model_of(fixed([0.25] * 4)), model_of(fixed([0.1, 0.7, 0.1, 0.1]))
    always = nudge(base, aligned, [[0]] * 3, gamma=0.3, law=NONE, max_new_tokens=12)
    assert always.nudged.all()
    assert (always.tokens == 1).all()
    assert math.exp(estimators.sequence_weighted(always.process)) == pytest.approx(1)
    assert math.exp(estimators.sequence_weighted(always.base)) == pytest.approx(4, abs=1e-5)
    assert (always.share == 1).all()
    never = nudge(base, aligned, [[0]] * 3, gamma=0.2, law=NONE, max_new_tokens=12)
    assert not never.nudged.any()
    for values in (never.process, never.base):
        assert math.exp(estimators.sequence_weighted(values)) == pytest.approx(4, abs=1e-5)


def test_the_process_law_fits_its_own_draws() -> None:
    rows = torch.tensor(
        [[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.3, 0.3, 0.2, 0.2]]
    )
    found = nudge(
        model_of(Chain(rows)),
        model_of(fixed([0.1, 0.7, 0.1, 0.1])),
        [[0]] * 40,
        gamma=0.5,
        law=NONE,
        samples=20,
    )
    assert abs(estimators.martingale_z(found.process, found.surprisal)) < 4
    assert 0.1 < found.nudged.mean() < 0.9
    assert np.isnan(found.away(1)[found.nudged]).all()
    np.testing.assert_array_equal(np.isnan(found.away(2)) | ~np.isnan(found.away(1)), True)


def test_forced_prefixes_and_random_tokens() -> None:
    base, aligned = model_of(fixed([0.25] * 4)), model_of(fixed([0.1, 0.7, 0.1, 0.1]))
    forced = nudge(base, aligned, [[0]] * 3, prefix=5, law=NONE, max_new_tokens=12)
    assert forced.nudged[:, :5].all()
    assert not forced.nudged[:, 5:].any()
    random = nudge(base, None, [[0]] * 60, gamma=0.3, law=NONE, max_new_tokens=12)
    assert np.bincount(random.tokens.ravel(), minlength=4) / random.tokens.size == pytest.approx(
        [0.25] * 4, abs=0.03
    )


def test_no_nudge_equals_plain_sampling() -> None:
    model = tiny("llama")
    prompts = [model.tokenize([text]).input_ids[0].tolist() for text in ("the cat", "a dog sat on")]
    law = SamplingLaw()
    plain = sample_tokens(
        model.model,
        prompts,
        vocab_size=model.vocab_size,
        stop_ids={1},
        samples=3,
        max_new_tokens=8,
        law=law,
        seed=5,
    )
    found = nudge(
        model, tiny("llama", seed=1), prompts, gamma=0.0, samples=3, max_new_tokens=8, law=law, seed=5
    )
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_allclose(found.base, plain.entropy, atol=1e-5)


def test_nudging_needs_one_vocabulary_and_words_do_not(shared: Path) -> None:
    from steerlab.models import load

    base, other = tiny("llama"), load(shared / "models" / "stories260K")
    with pytest.raises(PromptError, match="use nudge_words"):
        nudge(base, other, [[0, 5]])
    with pytest.raises(PromptError, match="is a probability"):
        nudge(base, None, [[0]], gamma=2)
    with pytest.raises(PromptError, match="at least one prompt"):
        nudge(base, None, [])
    (text, share), *_ = nudge_words(base, other, ["Once upon a time"], gamma=0.9, max_new_tokens=6)
    assert text.strip()
    assert 0 < share <= 1


@given(st.text(alphabet=" \nabc.", max_size=12))
def test_first_words_are_beginnings(text: str) -> None:
    word = first_word(text)
    assert text.startswith(word)
    assert len(word.split()) == (1 if text.strip() else 0)


# -- prompts --


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, 50))
def test_levels_are_nested(level: int, seed: int) -> None:
    tokenizer = tiny("llama").tokenizer
    makers: tuple[Any, ...] = (
        lambda c: prompt_sets.arithmetic(6, c, seed),
        lambda c: prompt_sets.passages(6, c),
        lambda c: prompt_sets.instructions(6, c),
    )
    for make in makers:
        for shorter, longer in zip(make(level), make(level + 1), strict=True):
            assert longer.startswith(shorter.rstrip("?"))
    assert len(tokenizer.get_vocab()) > 0


def test_stories_and_random_strings_are_distinct_and_seeded() -> None:
    assert len(set(prompt_sets.story_openings(20, 3))) == 20
    assert prompt_sets.story_openings(5, 3, seed=1) == prompt_sets.story_openings(5, 3, seed=1)
    from steerlab import zoo

    tokenizers = [zoo.load(name).tokenizer for name in ("small-base", "large-base")]
    strings = prompt_sets.random_strings(tokenizers, 4, 2)
    assert len(set(strings)) == 4
    for one in tokenizers:
        for text in strings:
            assert len(text.split()) == 24
            assert len(one(" " + text, add_special_tokens=False)["input_ids"]) == 24
    assert prompt_sets.random_strings(tokenizers, 1, 3)[0].startswith(
        prompt_sets.random_strings(tokenizers, 1, 1)[0]
    )


def test_prompt_files_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    plain, rows, bad = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    plain.write_text("one\n\n two \n")
    rows.write_text('{"prompt": "one"}\n"two"\n')
    bad.write_text('{"prompt": "one"}\n{"other": 1}\n')
    assert prompt_sets.read_prompts(plain) == prompt_sets.read_prompts(rows) == ("one", "two")
    with pytest.raises(DatasetError, match="line 2: none of the columns"):
        prompt_sets.read_prompts(bad)
    with pytest.raises(DatasetError, match="cannot be read"):
        prompt_sets.read_prompts(tmp_path / "none.txt")
    with pytest.raises(DatasetError, match="no level 9"):
        prompt_sets.instructions(2, 9)


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


def test_parts_of_a_random_pair_are_whole_and_claim_nothing_of_nudging() -> None:
    pair = {"BASE": tiny("llama"), "POST": tiny("llama", seed=1)}
    result = branching((pair["BASE"], pair["POST"]), ["the cat", "a dog sat"], law=SamplingLaw())
    assert result.parts is not None
    assert {one.model for one in result.parts.legacy} == {"BASE", "POST"}
    assert all(one.outside < 0.5 for one in result.parts.panels)
    assert result_from_dict(result.to_dict()).to_dict() == result.to_dict()
    assert set(result.figures()) >= {"branching_factor", "aep_gap"}
    assert branching((pair["BASE"], pair["POST"]), ["the cat"], temperature=0).parts is None
