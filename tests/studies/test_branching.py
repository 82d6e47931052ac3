"""The estimators on samples of known laws and in closed form, and the study on real and random pairs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from smaller import use_smaller_amounts
from toy import MARKOV, NONE, Chain, fixed, sample

from steerlab import datasets
from steerlab.errors import ModelError, PromptError
from steerlab.models import LanguageModel, load_model
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.sampling import Trajectories, sample_tokens
from steerlab.results import result_from_dict
from steerlab.studies import _pair, branching
from steerlab.studies._branching import estimators
from steerlab.studies._branching.measures import Sampled
from steerlab.studies._branching.result import BranchingResult
from steerlab.studies._pair import LARGE, Pair, amounts_of


def ragged(*rows: list[float]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


# -- C1, C2: one law --


@pytest.mark.parametrize(
    ("size", "law", "factor"),
    [
        (1000, NONE, 1000),
        (20, SamplingLaw(1, "top_p", 0.88), 18),
        (8, SamplingLaw(1, "top_p", 0.9), 8),
        (10, SamplingLaw(1, "top_p", 0.9), 9),  # ten times 0.1 does not reach 0.9 in binary
        (8, SamplingLaw(1, "min_p", 0.5), 8),
        (8, SamplingLaw(1, "floor", 1 / 8 + 1e-6), 1),  # empty: the likeliest token stays
        (8, SamplingLaw(1, "top_k", 3), 3),
        (50, SamplingLaw(0, "none", 1), 1),
    ],
)
def test_uniform_law(size: int, law: SamplingLaw, factor: float) -> None:
    runs = sample(fixed([1 / size] * size), n=6, steps=7, law=law)
    for values in (runs.entropy, runs.surprisal):
        assert math.exp(estimators.sequence_weighted(values)) == pytest.approx(factor, rel=1e-5)
        assert np.exp(estimators.cumulative(values)) == pytest.approx(np.full(7, factor), rel=1e-5)
        assert np.exp(estimators.windowed(values, 3)) == pytest.approx(np.full(2, factor), rel=1e-5)
    assert estimators.martingale_z(runs.entropy, runs.surprisal) == 0
    assert (runs.kept == factor).all()
    assert not runs.ended.any()


# -- C3: a Markov chain --


def test_markov_chain_from_a_known_state() -> None:
    runs = sample(Chain(MARKOV), n=4000, steps=20, seed=3, rows=4000)
    assert math.exp(estimators.local(runs.entropy)[0]) == pytest.approx(1.384145, abs=1e-5)
    cumulative = np.exp(estimators.cumulative(runs.entropy))
    assert cumulative[4] == pytest.approx(1.464270, abs=0.01)
    assert cumulative[19] == pytest.approx(1.577768, abs=0.01)
    windows = np.exp(estimators.windowed(runs.entropy, 5))
    assert windows == pytest.approx([1.46427, 1.58968, 1.62670, 1.63617], abs=0.015)
    assert abs(estimators.martingale_z(runs.entropy, runs.surprisal)) < 4


def test_markov_chain_rate() -> None:
    """Prompts start at the stationary law (15, 10, 2) / 27; one state a step, entropies .325083, .639032, 1.039721."""
    prompts = [[0]] * 15 + [[1]] * 10 + [[2]] * 2
    runs = sample_tokens(
        Chain(MARKOV),
        prompts,
        vocab_size=3,
        stop_ids=(),
        samples=20,
        max_new_tokens=100,
        law=NONE,
        seed=1,
        rows=600,
    )
    assert set(np.round(np.unique(runs.entropy), 5)) == {0.32508, 0.63903, 1.03972}
    assert estimators.sequence_weighted(runs.entropy) == pytest.approx(
        0.4942965, abs=4 * 0.0075 / math.sqrt(10.8)
    )
    assert estimators.token_weighted(runs.surprisal) == pytest.approx(
        0.4942965, abs=4 * 0.0137 / math.sqrt(10.8)
    )
    mean_of_factors = np.exp(runs.entropy).mean()
    assert mean_of_factors == pytest.approx(1.680203, abs=0.01)  # another quantity, told apart


# -- C4, C5: random lengths --


def test_geometric_length() -> None:
    law = [0.02] + [0.98 / 4] * 4
    runs = sample(fixed(law), 1, n=600, steps=256, stop_ids=[0], seed=5, rows=600)
    for estimate in (estimators.sequence_weighted, estimators.token_weighted):
        assert math.exp(estimate(runs.entropy)) == pytest.approx(4.291377, rel=1e-5)  # whatever was drawn
    assert runs.lengths.mean() == pytest.approx(50, abs=8)
    assert estimators.total(runs.entropy) == pytest.approx(1.456608 * runs.lengths.mean(), rel=1e-5)
    assert estimators.token_weighted(runs.surprisal) == pytest.approx(
        1.456608, abs=4 * 0.0071 / math.sqrt(12)
    )
    # the mean of ratios of surprisals is something else when lengths are random
    assert estimators.sequence_weighted(runs.surprisal) > 1.55
    last = runs.tokens[np.arange(len(runs)), runs.lengths - 1]
    assert (last[runs.ended] == 0).all()
    assert ((runs.tokens == 0).sum(axis=1) <= 1).all()
    assert not runs.ended[runs.lengths == 256].all() or (runs.lengths < 256).all()


def coupled() -> np.ndarray:
    """Nine of ten go on for 9 tokens of 16 ways, one of ten for 99 of 2 ways."""
    first = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    return ragged(*([[first] + [math.log(16)] * 9] * 9 + [[first] + [math.log(2)] * 99]))


def test_length_coupled_to_entropy() -> None:
    values = coupled()
    assert estimators.sequence_weighted(values) == pytest.approx(2.344001, abs=1e-6)
    assert estimators.token_weighted(values) == pytest.approx(1.560274, abs=1e-6)
    assert np.exp(estimators.sequence_means(values)).mean() == pytest.approx(11.47302, abs=1e-5)
    local = np.exp(estimators.local(values))
    assert local[1:10] == pytest.approx(np.full(9, 12.9960), abs=1e-4)
    assert local[10:] == pytest.approx(np.full(90, 2.0))
    long = np.exp(estimators.local(values[estimators.cohort(values, 100)]))
    assert long[1:] == pytest.approx(np.full(99, 2.0))  # the drop was the composition's
    assert estimators.absorbed(values).sum() == pytest.approx(estimators.total(values))


def test_published_smoother_is_not_ours() -> None:
    """Raw windows 12, 4, 4 ...: an exponential mean with 0.1 would still show 9.8 in the fourth."""
    values = np.log(np.array([[12.0] * 5 + [4.0] * 20]))
    assert np.exp(estimators.windowed(values, 5)) == pytest.approx([12, 4, 4, 4, 4])


def test_estimators_refuse_a_sequence_without_a_step() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        estimators.sequence_weighted(np.array([[np.nan, np.nan], [1.0, np.nan]]))


@given(st.lists(st.lists(st.floats(0, 5), min_size=1, max_size=12), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_estimator_identities(rows: list[list[float]]) -> None:
    values = ragged(*rows)
    assert estimators.absorbed(values).sum() == pytest.approx(estimators.total(values), abs=1e-9)
    assert estimators.total(values) == pytest.approx(
        estimators.token_weighted(values) * estimators.lengths(values).mean(), abs=1e-9
    )
    low, high = min(map(min, rows)), max(map(max, rows))
    for estimate in (estimators.sequence_weighted(values), estimators.token_weighted(values)):
        assert low - 1e-9 <= estimate <= high + 1e-9
    assert list(estimators.alive(values)) == [
        sum(len(row) > at for row in rows) for at in range(values.shape[1])
    ]
    assert estimators.cohort(values, estimators.largest_cohort(values)).any()


def test_repetition() -> None:
    rates = estimators.repetition_rate([[1, 2, 3], list(range(40)), [7] * 40, [1, 2] * 30])
    assert math.isnan(rates[0])
    assert rates[1] == 0
    assert rates[2] == pytest.approx(36 / 37)
    assert rates[3] == pytest.approx(55 / 57)


# -- C6, C7: the martingale check --


@pytest.mark.parametrize("law", [NONE, SamplingLaw(0.7, "top_p", 0.9), SamplingLaw(1.5, "min_p", 0.2)])
def test_martingale_check_passes_on_our_record(law: SamplingLaw) -> None:
    runs = sample(Chain(MARKOV), n=1500, steps=30, law=law, stop_ids=[2], seed=2, rows=1500)
    assert abs(estimators.martingale_z(runs.entropy, runs.surprisal)) < 4


def test_martingale_check_flags_double_truncation() -> None:
    """The record that a second truncation of the truncated law gives, the drawn token appended (1.384271, 1.460507)."""
    probabilities = [0.40, 0.20, 0.12, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02]
    runs = sample(fixed(probabilities), n=1500, steps=20, law=SamplingLaw(1, "top_p", 0.9), rows=1500)
    assert runs.entropy == pytest.approx(np.full(runs.entropy.shape, 1.513915), abs=1e-5)
    once = np.array(probabilities[:6]) / sum(probabilities[:6])
    kept = int((np.cumsum(once) < 0.9).sum()) + 1
    entropy, surprisal = np.empty(runs.tokens.shape), np.empty(runs.tokens.shape)
    for token in range(6):
        members = sorted({*range(kept), token})
        again = once[members] / once[members].sum()
        drawn = runs.tokens == token
        entropy[drawn] = -(again * np.log(again)).sum()
        surprisal[drawn] = -np.log(again[members.index(token)])
    assert entropy.mean() == pytest.approx(1.384271, abs=0.005)
    assert surprisal.mean() == pytest.approx(1.460507, abs=0.02)
    assert estimators.martingale_z(entropy, surprisal) > 4
    assert abs(estimators.martingale_z(runs.entropy, runs.surprisal)) < 4


def test_martingale_check_on_constant_gaps() -> None:
    steps = np.full((5, 3), 1.0)
    assert estimators.martingale_z(steps, steps) == 0
    assert estimators.martingale_z(steps, steps + 0.5) == math.inf
    assert math.isnan(estimators.martingale_z(steps[:1], steps[:1]))


TEXTS = ["The cat", "Once there was a very small dog who", "Why?", "A B C D"]


def test_first_answer_ends_with_the_next_turn(tiny_llama: LanguageModel) -> None:
    ids = tiny_llama.tokenizer("Yes.\nUser: no", add_special_tokens=False)["input_ids"]
    table = np.array([ids])
    values = np.ones(table.shape)
    runs = Trajectories(
        np.array([0]), np.array([0]), np.array([False]), table, values, values, values, values
    )
    cut = Sampled(tiny_llama.tokenizer, runs, 0).first_answers
    kept = tiny_llama.tokenizer.decode(cut.tokens[0, : cut.lengths[0]].tolist())
    assert kept.startswith("Yes.\nUser:")
    assert cut.lengths[0] < len(ids)
    assert cut.ended.all()


# -- the study --


def wellformed(result: BranchingResult) -> None:
    written = result.to_dict()
    assert result_from_dict(written).to_dict() == written
    assert {"branching_factor", "ratios", "checks", "by_position"} <= {table.key for table in result.tables()}
    assert {"branching_factor", "by_position", "alive"} <= set(result.figures())
    assert all(sentence.endswith(".") for sentence in result.summary)


def test_random_pair_identifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use_smaller_amounts(monkeypatch, "_branching.parts")
    result = branching((tiny("llama", seed=1), tiny("llama", seed=2, chat=True)), datasets.open_prompts()[:8])
    wellformed(result)
    assert result.status == "not identified"
    assert any("untrained" in sentence for sentence in result.summary)
    assert result.steps < 48  # what the context leaves
    assert all(abs(one.martingale_z) < 4 for one in result.measured)


@pytest.mark.usefixtures("smaller_studies")
def test_a_model_against_itself_is_not_identified(shared: Path) -> None:
    model = load_model(shared / "models" / "stories260K")
    result = branching((model, model), [f"How do I hug a {thing}?" for thing in ("cat", "dog", "box")])
    wellformed(result)
    assert result.status == "not identified"
    assert result.contrasts[0].ratio.value == pytest.approx(1, abs=1e-9)


@pytest.mark.usefixtures("smaller_studies")
def test_stories_pair_narrows(shared: Path) -> None:
    base, post = (load_model(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local"))
    prompts = [f"How do I {verb} a {thing}?" for verb in ("hug", "find") for thing in ("cat", "dog", "box")]
    result = branching((base, post), prompts)
    wellformed(result)
    assert result.status == "done"
    assert result.headline is not None
    assert result.headline.value.low > 2
    base_row, post_row = result.measured[:2]
    assert (base_row.model, post_row.rendering) == ("base", "chat")
    assert post_row.ended.value > 0.9
    assert base_row.alive[-1] > 0.9


@pytest.mark.usefixtures("smaller_studies")
def test_same_seed_same_result(tiny_llama: LanguageModel) -> None:
    first, again, other = (branching((tiny_llama, tiny_llama), TEXTS[:2], seed=seed) for seed in (3, 3, 4))
    assert first.to_dict() == again.to_dict()
    assert first.to_dict() != other.to_dict()


@pytest.mark.usefixtures("smaller_studies")
def test_bundled_pair_narrows() -> None:
    from steerlab import zoo

    try:
        pair = load_model(zoo.path("small-base")), load_model(zoo.path("small-post"))
    except ModelError as error:
        pytest.skip(str(error))
    result = branching(pair, datasets.open_prompts()[:16])
    wellformed(result)
    assert result.status == "done"
    assert result.headline is not None
    assert result.headline.value.low > 1


@pytest.mark.usefixtures("smaller_studies")
def test_different_tokenizers_are_compared_per_byte(shared: Path) -> None:
    post = load_model(shared / "models" / "stories260K-chat-local")
    result = branching((tiny("gpt2", bos=False), post), ["How do I hug a cat?", "How do I wash a dog?"])
    wellformed(result)
    assert not result.same_tokenizer
    assert result.status == "not identified"
    assert any("per byte" in sentence for sentence in result.summary)


def test_large_models_get_less_of_everything_and_the_result_says_so(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tiny_llama, tiny("llama", seed=1))
    assert pair.n_parameters == max(model.model.num_parameters() for model in pair)
    assert (amounts_of("quick", pair), amounts_of("full", pair)) == ("quick", "full")
    monkeypatch.setattr(_pair, "_LARGE_FROM", pair.n_parameters - 1)
    assert (amounts_of("quick", pair), amounts_of("full", pair)) == (LARGE, "full")
    result = branching(pair, with_parts=False)
    wellformed(result)
    assert result.amounts == LARGE
    assert all(one.n_prompts == 16 and one.n_sequences == 64 for one in result.measured)
    assert any("models above 20 million parameters: 16 prompts, 4 samples" in one for one in result.summary)
    monkeypatch.undo()
    assert not any("20 million" in one for one in branching(pair, TEXTS[:2], with_parts=False).summary)


def test_no_prompt_is_an_error(tiny_llama: LanguageModel) -> None:
    with pytest.raises(PromptError, match="at least one prompt"):
        branching((tiny_llama, tiny_llama), [])
    with pytest.raises(PromptError, match="context"):
        branching((tiny_llama, tiny_llama), ["word " * 60])
