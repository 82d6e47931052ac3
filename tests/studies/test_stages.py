"""The study of stages: readings of one model, paired steps, and the control of contrasts that training left alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestCentroid

import steerlab as sl
from steerlab import studies
from steerlab.datasets import StudyData
from steerlab.errors import SteerlabError
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.results import result_from_dict
from steerlab.statistics import Estimate, holm, mcnemar
from steerlab.studies import StageReadings
from steerlab.studies._contrast.reading import Texts
from steerlab.studies._contrast.stage import class_gaps
from steerlab.studies._contrast.stage import stage as contrast_stage
from steerlab.studies._stages import readings as reading_module
from steerlab.studies._stages.changes import Change, _scaled, p_over, stabilised
from steerlab.studies._stages.pairing import Paired, paired
from steerlab.studies._stages.study import compare_stages

GAP = Quantity(study="refusal", of="refusal", measure="gap", unit="spreads")
SHARE = Quantity(study="refusal", of="harmful requests", measure="refused", share=True)
ENTROPY = Quantity(study="confidence", of="plain text", measure="entropy", unit="nats", per_token=True)
UNITS = [f"u{number}" for number in range(40)]


def stage_of(label: str, *readings: Reading, tokenizer: str = "t", **missing: str) -> StageReadings:
    return StageReadings(
        label=label,
        name=label,
        fingerprint=label,
        tokenizer=tokenizer,
        shape="tiny",
        sketch={},
        readings=readings,
        missing=missing,
    )


def controls(shift: Sequence[float], spread: float, rng: np.random.Generator) -> list[Reading]:
    """One control contrast a shift, its texts around it."""
    return [
        Reading.of(
            GAP.model_copy(update={"study": "contrast", "of": f"c{at}", "role": "control"}),
            UNITS,
            by + spread * rng.standard_normal(len(UNITS)),
        )
        for at, by in enumerate(shift)
    ]


# -- statistics --


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm([0.2, math.nan])[1])
    assert holm([0.2, math.nan])[0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_never_helps(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.asarray(p) - 1e-12).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_the_control_calls_one_of_the_controls_rarely_and_a_planted_change_always() -> None:
    rng = np.random.default_rng(0)
    drawn = [0.3 + 0.2 * rng.standard_normal(15) for _ in range(2000)]
    false = np.mean([p_over(row[0], 0.05, row[1:]) < 0.05 for row in drawn])
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert all(p_over(row[0] + 2, 0.05, row[1:]) < 0.01 for row in drawn[:100])


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(0.1, 2), st.integers(0, 100))
def test_without_noise_of_its_own_it_is_students_prediction_interval(
    value: float, spread: float, seed: int
) -> None:
    beside = spread * np.random.default_rng(seed).standard_normal(9)
    low, high = stats.t.interval(
        0.95, 8, loc=beside.mean(), scale=beside.std(ddof=1) * math.sqrt(1 + 1 / len(beside))
    )
    assert (p_over(value, 0.0, beside) < 0.05) == (not low <= value <= high)


def test_a_change_of_every_unit_has_noise() -> None:
    both = Paired(np.ones(24), np.zeros(24), np.arange(24), share=True)
    assert both.error == pytest.approx(math.sqrt(25 - 24**2 / 26) / 26)  # Agresti and Min, by hand
    assert Paired(np.ones(24), np.ones(24), np.arange(24), share=True).error == 0


# -- pairing --


def test_stages_are_paired_by_unit_in_whatever_order() -> None:
    values = np.arange(40.0)
    first = stage_of("base", Reading.of(GAP, UNITS, values))
    second = stage_of("sft", Reading.of(GAP, UNITS[::-1], values[::-1] + 1))
    both = paired(first, second, GAP)
    assert isinstance(both, Paired)
    assert both.differences == pytest.approx(np.ones(40))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (stage_of("sft"), "not measured in sft, which has no such quantity"),
        (stage_of("sft", confidence="No plain text fits."), "not measured in sft: No plain text fits."),
        (stage_of("sft", Reading.of(ENTROPY, UNITS, [1.0] * 40), tokenizer="other"), "other tokens"),
        (
            stage_of("sft", Reading.of(ENTROPY, UNITS, [1.0] * 40, how="0 labelled lines")),
            "0 labelled lines in sft",
        ),
        (stage_of("sft", Reading.of(ENTROPY, ["v", "u1"], [1.0, math.nan])), "0 of its units in common"),
    ],
)
def test_what_cannot_be_compared_has_a_reason(after: StageReadings, said: str) -> None:
    before = stage_of("base", Reading.of(ENTROPY, UNITS, np.linspace(0, 1, 40)))
    found = paired(before, after, ENTROPY)
    assert isinstance(found, str)
    assert said in found
    result = compare_stages([before, after], [], 0)
    assert result.status == "not identified"
    assert result.trajectories[0].steps[0].verdict == "not comparable"
    assert said in str(result.tables()[0].rows)


def test_other_tokenizers_compare_what_is_not_counted_in_tokens() -> None:
    asked = [Reading.of(SHARE, UNITS, [value] * 40) for value in (0.0, 1.0)]
    result = compare_stages(
        [stage_of("a", asked[0], tokenizer="x"), stage_of("b", asked[1], tokenizer="y")], [], 0
    )
    assert result[SHARE.name].steps[0].verdict == "changed"


# -- verdicts --


def three(target: tuple[float, float, float], beside: tuple[float, float, float]) -> list[StageReadings]:
    """Stages whose target and controls stand at these gaps."""
    rng = np.random.default_rng(1)
    own, noise = rng.standard_normal(40), rng.standard_normal((3, 40))
    single = 0.1 * rng.standard_normal((3, 12))
    return [
        stage_of(
            label,
            Reading.of(GAP, UNITS, target[at] + own + 0.2 * noise[at]),
            *controls(beside[at] + single[at], 0.2, rng),
        )
        for at, label in enumerate(("base", "sft", "dpo"))
    ]


def test_a_target_that_grows_alone_did_more_than_everything_else() -> None:
    found = compare_stages(three((1, 4, 4), (1, 1.1, 1.1)), [f"c{at}" for at in range(12)], 0)
    most = found[GAP.name].most
    assert most is not None
    assert most.step == "base → sft"
    assert most.verdict == "more than everything else"
    assert found[GAP.name].steps[1].verdict == "no change"
    assert found.headline is not None
    assert found.headline.control is not None
    assert any("more than everything else did" in said for said in found.summary)


def test_a_target_that_grows_as_the_others_do_grew_with_everything_else() -> None:
    found = compare_stages(three((1, 2, 2), (1, 2, 2)), [f"c{at}" for at in range(12)], 0)
    assert found[GAP.name].steps[0].verdict == "with everything else"
    assert any("it grew with everything else" in said for said in found.summary)


@pytest.mark.parametrize(
    ("value", "beside", "apart", "verdict"),
    [
        (3.0, 1.0, True, "more than everything else"),
        (-3.0, 2.0, True, "more than everything else"),
        (3.0, -0.1, True, "more than everything else"),
        (0.5, 2.0, True, "less than everything else"),
        (-0.5, 2.0, True, "against everything else"),
        (1.0, 0.8, False, "with everything else"),
        (1.0, -0.1, False, "not told apart"),
        (1.0, 0.0, False, "not told apart"),
    ],
)
def test_a_change_is_told_beside_the_controls_with_its_sign(
    value: float, beside: float, apart: bool, verdict: str
) -> None:
    change = Change(
        before="a",
        after="b",
        value=Estimate(value=value, low=value - 0.1, high=value + 0.1, n=40),
        noise=0.1,
        controls=Estimate(value=beside, low=beside, high=beside, n=12),
        scaled=value,
        scaled_controls=beside,
        p=0.001,
        p_adjusted=0.001,
        p_over=0.001 if apart else 0.5,
        p_over_adjusted=0.001 if apart else 0.5,
    )
    assert change.verdict == verdict
    assert change.moved


def test_a_target_that_grows_less_than_the_others_is_not_called_more() -> None:
    found = compare_stages(three((1, 1.5, 1.5), (1, 4, 4)), [f"c{at}" for at in range(12)], 0)
    assert found[GAP.name].steps[0].verdict == "less than everything else"
    assert any("it grew less than everything else" in said for said in found.summary)


def test_the_noise_of_a_gap_does_not_grow_on_the_scale_of_comparison() -> None:
    """Cohen's d of two samples: raw, its spread grows tenfold from d = 1 to d = 30; stabilised, it stays."""
    rng = np.random.default_rng(6)

    def spread(gap: float, scale: Callable[[float], float]) -> float:
        drawn = rng.standard_normal((400, 2, 30)) + np.array([gap / 2, -gap / 2])[None, :, None]
        pooled = np.sqrt(drawn.var(axis=2, ddof=1).mean(axis=1))
        return float(np.std([scale(one) for one in (drawn[:, 0].mean(1) - drawn[:, 1].mean(1)) / pooled]))

    assert spread(30, float) > 5 * spread(1, float)
    assert spread(30, stabilised) == pytest.approx(spread(1, stabilised), rel=0.25)
    step = 1e-6
    assert (stabilised(3 + step) - stabilised(3)) / step == pytest.approx(
        0.5 / math.sqrt(1 + 9 / 8), rel=1e-4
    )


def test_a_control_with_a_huge_gap_hides_no_target() -> None:
    rng = np.random.default_rng(7)
    own = rng.standard_normal(40)
    gaps = (1.5, 2, 2.5, 3, 3.5, 4, 4.5, 50)

    def stage(label: str, target: float, moved: float) -> StageReadings:
        beside = [
            Reading.of(
                GAP.model_copy(update={"study": "contrast", "of": f"c{at}", "role": "control"}),
                UNITS,
                gap * (1 + moved * sign) + own,
            )
            for at, (gap, sign) in enumerate(zip(gaps, itertools.cycle((1, -1)), strict=False))
        ]
        return stage_of(label, Reading.of(GAP, UNITS, target + own), *beside)

    found = compare_stages([stage("sft", 2, 0.0), stage("safe", 5, 0.05)], [f"c{at}" for at in range(8)], 0)
    assert found[GAP.name].steps[0].verdict == "more than everything else"


def test_a_slow_drift_is_told_from_first_to_last() -> None:
    rng = np.random.default_rng(3)
    own = rng.standard_normal(40)
    stages = [
        stage_of(f"s{at}", Reading.of(ENTROPY, UNITS, own + 0.12 * at + 0.5 * rng.standard_normal(40)))
        for at in range(5)
    ]
    found = compare_stages(stages, [], 0)
    one = found[ENTROPY.name]
    assert one.whole is not None
    assert one.whole.moved
    assert one.most is None
    assert found.status == "done"
    assert any("no single step is identified; from s0 to s4 it changed by" in said for said in found.summary)


def test_many_stages_leave_room_for_the_smallest_p() -> None:
    own = np.random.default_rng(4).standard_normal(40)
    measured = [ENTROPY.model_copy(update={"of": f"text {at}"}) for at in range(6)]
    stages = [
        stage_of(
            f"s{number}",
            *[
                Reading.of(one, UNITS, own * (1 + 0.01 * number * at) + 5 * (number > 4))
                for at, one in enumerate(measured)
            ],
        )
        for number in range(30)
    ]
    found = compare_stages(stages, [], 0)
    assert all(one.most is not None and one.most.step == "s4 → s5" for one in found.trajectories)


def test_a_copy_of_a_quantity_is_told_once() -> None:
    own, plain = (
        SHARE.model_copy(update={"of": of}) for of in ("requests in its own format", "requests, plain")
    )
    stages = [
        stage_of(label, *(Reading.of(one, UNITS, [value] * 40) for one in (own, plain)))
        for label, value in (("a", 0.0), ("b", 1.0))
    ]
    assert [one.quantity for one in compare_stages(stages, [], 0).trajectories] == [own]


def test_strangers_are_told() -> None:
    rng = np.random.default_rng(5)
    weights = rng.standard_normal(2000)

    def of(label: str, numbers: np.ndarray, shape: str = "tiny") -> StageReadings:
        reading = Reading.of(GAP, UNITS, np.arange(40.0))
        return stage_of(label, reading).model_copy(update={"sketch": {"w": tuple(numbers)}, "shape": shape})

    base, tuned = of("base", weights), of("sft", weights + 0.3 * rng.standard_normal(2000))
    other, larger = of("other", rng.standard_normal(2000)), of("larger", weights, "large")
    said = " ".join(compare_stages([base, tuned, other, larger], [], 0).summary)
    assert "base and sft" not in said
    assert "The weights of sft and other do not correlate" in said
    assert "other and larger differ in shape" in said


def test_what_one_model_cannot_be_asked_is_a_reason() -> None:
    absent = Reading.absent(ENTROPY, "No word fits.")
    found = compare_stages(
        [stage_of("a", Reading.of(ENTROPY, UNITS, np.arange(40.0))), stage_of("b", absent)], [], 0
    )
    assert found[ENTROPY.name].steps[0].reason == "It was not measured in b: No word fits."
    assert math.isnan(found[ENTROPY.name].at[1].value)


def test_names_of_studies_and_tables_are_taken(post: sl.LanguageModel) -> None:
    pairs = sl.datasets.contrasts()["past"]
    with pytest.raises(SteerlabError, match="called 'truth', as the direction"):
        studies.controls_of(StudyData(contrasts={"truth": pairs}))
    with pytest.raises(SteerlabError, match="called 'refusal', as the direction"):
        studies.controls_of(StudyData(), {"refusal": pairs})
    with pytest.raises(SteerlabError, match="cannot be called 'unit'"):
        studies.require_stages(["base", "unit"])
    with pytest.raises(SteerlabError, match="cannot be called ' '"):
        studies.require_stages(["base", " "])
    assert studies.known_stages("confidence") == ["confidence"]
    assert studies.known_stages(["contrast"]) == []


def test_equal_stages_are_exactly_zero() -> None:
    one = three((1, 1, 1), (1, 1, 1))[0]
    same = [one.model_copy(update={"label": label}) for label in ("a", "b", "c")]
    found = compare_stages(same, ["c0"], 0)
    assert found.status == "not identified"
    assert found.headline is None
    for change in found[GAP.name].changes:
        assert (change.value.value, change.value.low, change.value.high) == (0.0, 0.0, 0.0)
        assert change.verdict == "no change"
        assert change.in_noise == 0.0
    assert found[GAP.name].from_first == (0.0, 0.0, 0.0)
    assert any("a and b and c have the same weights" in said for said in found.summary)
    assert "no step is identified" in found.summary[0]


def test_a_result_reads_back_and_draws() -> None:
    found = compare_stages(three((1, 4, 4), (1, 1, 1)), [f"c{at}" for at in range(12)], 0)
    assert result_from_dict(found.to_dict()) == found
    assert {"changes", "values", "controls"} <= {table.key for table in found.tables()}
    assert next(iter(found.figures())) == "stages"
    assert all(figure.data for figure in found.figures().values())
    assert found.captions().keys() == found.figures().keys()


def test_p_values_are_adjusted_over_the_changes_of_a_study() -> None:
    found = compare_stages(three((1, 1.2, 1.3), (1, 1, 1)), [f"c{at}" for at in range(12)], 0)
    changes: Sequence[Change] = found[GAP.name].changes
    assert [one.p_adjusted for one in changes] == pytest.approx(holm([one.p for one in changes]).tolist())


def test_few_changed_units_of_a_share_are_no_change() -> None:
    before, after = np.zeros(40), np.zeros(40)
    after[:4] = 1
    found = compare_stages(
        [stage_of("a", Reading.of(SHARE, UNITS, before)), stage_of("b", Reading.of(SHARE, UNITS, after))],
        [],
        0,
    )
    assert found[SHARE.name].steps[0].p == pytest.approx(stats.binomtest(0, 4).pvalue)


def test_nearly_all_units_of_a_share_changing_is_a_change() -> None:
    """A bootstrap draw of changed units alone has no spread, so a bootstrap of t would call this nothing."""
    before, after = np.zeros(24), np.ones(24)
    after[:2] = 0
    units = UNITS[:24]
    step = compare_stages(
        [stage_of("a", Reading.of(SHARE, units, before)), stage_of("b", Reading.of(SHARE, units, after))],
        [],
        0,
    )[SHARE.name].steps[0]
    assert step.p == pytest.approx(stats.binomtest(22, 22).pvalue)
    assert step.value.high <= 1


def test_flips_of_clusters_are_mcnemar_where_clusters_are_units() -> None:
    rng = np.random.default_rng(8)
    before, after = rng.random(60) < 0.5, rng.random(60) < 0.75
    twice = [UNITS[at % 40] + str(at) for at in range(60)] + ["still", "too"]
    values = [np.concatenate([part.astype(float), [0.0, 0.0]]) for part in (before, after)]
    clusters = [*range(60), 60, 60]  # two units that never change share one, so that the flips are taken
    step = compare_stages(
        [
            stage_of(label, Reading.of(SHARE, twice, part, clusters))
            for label, part in zip("ab", values, strict=True)
        ],
        [],
        0,
    )[SHARE.name].steps[0]
    assert step.p == pytest.approx(mcnemar(after, before).p_value, abs=0.015)


# -- what is measured of one model --


def test_units_that_are_alike_are_told_apart() -> None:
    names = unit_names(["a", "b", "a"], [1, 1, 1])
    assert len(set(names)) == 3
    assert unit_names(["a", "b", "a"], [1, 1, 1]) == names


def test_gaps_are_right_where_the_nearest_class_mean_is() -> None:
    rng = np.random.default_rng(2)
    labels, groups = np.tile([1, 0], 30), np.repeat(np.arange(30), 2)
    stack = rng.standard_normal((2, 60, 5)) + labels[None, :, None] * np.array([2.0, 0, 0, 0, 0])
    folds = [(np.flatnonzero(groups % 5 != part), np.flatnonzero(groups % 5 == part)) for part in range(5)]
    texts = Texts(SimpleNamespace(), labels, groups, folds)  # type: ignore[arg-type]
    states = SimpleNamespace(stack=stack.astype(np.float32), layers=(0, 1, 0, 1, 0))
    gaps = class_gaps(states, texts)  # type: ignore[arg-type]
    for (train, test), layer in zip(folds, states.layers, strict=True):
        known = NearestCentroid().fit(stack[layer][train], labels[train]).predict(stack[layer][test])
        assert ((gaps[test] > 0) == (known == labels[test])).all()
    # two spreads of one apart along the first axis: the others add noise
    assert gaps.mean() == pytest.approx(2.0, abs=0.5)


@pytest.fixture(scope="module")
def post() -> sl.LanguageModel:
    return sl.load("zoo:small-post")


def test_the_share_of_a_contrast_is_that_of_its_study(post: sl.LanguageModel) -> None:
    data = StudyData(contrasts={"past": "past"})
    accuracy = contrast_stage(post, data)[0].estimate(seed=0)
    with pytest.MonkeyPatch.context() as patch:
        from smaller import use_smaller_amounts

        use_smaller_amounts(patch, "_contrast.study")
        known = studies.contrast((post, post), data)["past"].own("post").accuracy
    assert (accuracy.value, accuracy.low, accuracy.high) == (known.value, known.low, known.high)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_every_family_is_measured_or_says_why(family: str, smaller_studies: None) -> None:
    model = tiny(family)
    read = studies.read_stage(
        model,
        StudyData(),
        {},
        ["truthfulness", "refusal", "confidence", "branching"],
        label="a",
        size="quick",
        seed=0,
    )
    measured = {reading.quantity.study for reading in read.readings}
    assert {"truthfulness", "refusal", "confidence", "branching"} <= measured | set(read.missing)
    assert {"confidence", "branching"} <= measured
    assert StageReadings.model_validate_json(read.model_dump_json()) == read
    assert not any(text in read.model_dump_json() for text in StudyData().requests.positive)


def test_bad_input_is_a_sentence(post: sl.LanguageModel) -> None:
    with pytest.raises(SteerlabError, match="at least two, not 1"):
        studies.stages({"post": post})
    with pytest.raises(
        SteerlabError, match="measures nothing of one model by itself; choose from truthfulness"
    ):
        studies.stages({"a": post, "b": post}, studies=["transfer"])
    with pytest.raises(SteerlabError, match="No study is named"):
        studies.stages({"a": post, "b": post}, studies=[])
    with pytest.raises(SteerlabError, match="size 'huge'"):
        studies.stages({"a": post, "b": post}, size="huge")  # type: ignore[arg-type]


# -- base, post, refusal ablated, restored --


def along(model: sl.LanguageModel, q: torch.Tensor, share: float) -> sl.LanguageModel:
    """A copy whose blocks write W + share q q^T W."""
    copy = deepcopy(model.model)
    for name, weight in copy.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data += share * torch.outer(q, q @ weight.data)
    return sl.load(copy, model.tokenizer)


@pytest.fixture(scope="module")
def planted(post: sl.LanguageModel) -> Iterator[list[StageReadings]]:
    """Base, post, post with its refusal direction nearly removed from the weights, and the same undone."""
    direction = sl.extract(post, "refusal")
    q = torch.nn.functional.normalize(direction[sl.Site("resid_post", 3)].float(), dim=0)
    share = 0.95
    baked = along(post, q, -share)
    restored = along(baked, q, share / (1 - share))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reading_module.GROUPS, "quick", 20)
        data = StudyData.of(None, "statements", post.topics)
        beside = studies.controls_of(data)
        models = {"base": sl.load("zoo:small-base"), "post": post, "baked": baked, "restored": restored}
        yield [
            studies.read_stage(model, data, beside, ["refusal"], label=label, size="quick", seed=0)
            for label, model in models.items()
        ]


def test_planted_steps_are_found_and_the_undone_one_is_none(planted: list[StageReadings]) -> None:
    found = compare_stages(planted, ["past"], 0)
    gap = next(one for one in found.trajectories if one.quantity.measure.startswith("gap"))
    assert [step.verdict for step in gap.steps] == ["more than everything else"] * 3
    refused = found["refused: harmful requests in its own format"]
    assert [step.verdict for step in refused.steps] == ["changed"] * 3
    assert refused.steps[1].value.value < -0.8
    assert refused.steps[2].value.value > 0.8
    back = compare_stages([planted[1], planted[3]], ["past"], 0)
    assert back.status == "not identified"
    assert all(abs(one.steps[0].value.value) < 1e-3 for one in back.trajectories)


def test_an_unplanted_step_is_flagged_seldom(planted: list[StageReadings]) -> None:
    """Contrasts that nobody aimed at, each in turn as the target, on 200 resamplings of texts and controls."""
    before, after = planted[1], planted[2]
    quantities = [
        one.quantity
        for one in after.readings
        if one.quantity.role == "control" and one.quantity.measure.startswith("gap")
    ]
    rows = {one.of: paired(before, after, one) for one in quantities}
    assert len(rows) == 14
    assert all(isinstance(one, Paired) for one in rows.values())
    rng = np.random.default_rng(0)
    flagged = []
    for draw in range(200):
        target = list(rows)[draw % len(rows)]
        others = [name for name in rows if name != target]
        moved = {name: _scaled(_resampled(rows[name], rng), gaps=True) for name in rows}  # type: ignore[arg-type]
        drawn = [moved[name][0] for name in rng.permutation(others)[:12]]
        flagged.append(p_over(*moved[target], drawn) < 0.05)
    assert np.mean(flagged) <= 0.08


def _resampled(both: Paired, rng: np.random.Generator) -> Paired:
    """As many clusters drawn with replacement."""
    names = np.unique(both.clusters)
    drawn = rng.choice(names, len(names))
    rows = [np.flatnonzero(both.clusters == name) for name in drawn]
    picked = np.concatenate(rows)
    clusters = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    return Paired(both.before[picked], both.after[picked], clusters, both.share)
