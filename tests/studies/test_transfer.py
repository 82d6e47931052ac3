"""Unlocking one model from another: the planted case, the published quirks, and the study with its controls."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from alignment import shared_latent
from families import tiny
from tolerances import close

from steerlab import alignment as al
from steerlab import zoo
from steerlab.activations import capture
from steerlab.datasets import Task
from steerlab.errors import AlignmentError, DatasetError, DirectionError, ModelError, SteerlabError
from steerlab.models import LanguageModel, Last, load_model
from steerlab.results import result_from_dict
from steerlab.statistics import paired_difference, proportion
from steerlab.steering import Add, Rotate
from steerlab.studies import transfer, unlock
from steerlab.studies._transfer import study
from steerlab.studies._transfer.capability import aggregated
from steerlab.studies._transfer.proxy import arithmetic, same_vocabulary
from steerlab.studies._transfer.reasons import sentence
from steerlab.studies._transfer.result import UNLOCK, TransferResult
from steerlab.studies._transfer.sharpening import log_probability
from steerlab.studies._transfer.strength import choose_strength
from steerlab.studies._transfer.writing import asked, repeated

WORDS = ("the", "cat", "a", "dog", "sat", "on", "mat", "is", "not", "true", "red", "run", "and", "of")


def questions(n: int = 200) -> tuple[list[str], list[str]]:
    """Texts, and the same with a wish at their end that changes the last token's context."""
    rng = np.random.default_rng(0)
    plain = [" ".join(rng.choice(WORDS, size=rng.integers(4, 9))) for _ in range(n)]
    return plain, [f"{text} not true" for text in plain]


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    return shared_latent.pair()


# -- unlock --


@pytest.mark.parametrize("aggregator", ["mean", "pca"])
def test_a_planted_direction_comes_back(pair: tuple[LanguageModel, LanguageModel], aggregator: str) -> None:
    narrow, wide = pair
    found = unlock((narrow, narrow), wide, questions(), aggregator=aggregator, aligner=al.Ridge(1e-9))  # type: ignore[arg-type]
    assert found.report.verdict == "reliable"
    assert found.native is not None
    for site in found.direction.sites:
        truth = found.source[site] @ shared_latent.turn()
        assert torch.cosine_similarity(found.direction[site], truth, dim=0) > 0.99
        assert torch.cosine_similarity(found.direction[site], found.native[site], dim=0) > 0.99
    assert min(found.stability.values()) > 0.8


def test_a_plain_list_of_questions_is_both_wordings(pair: tuple[LanguageModel, LanguageModel]) -> None:
    narrow, wide = pair
    models, texts = (narrow, planted_other(narrow)), list(questions()[0])
    alone = unlock(models, wide, texts, strength=0.5)
    assert alone.direction.hash == unlock(models, wide, (texts, texts), strength=0.5).direction.hash
    for wrong in ([texts], [texts, texts, texts], [texts, "one"]):
        with pytest.raises(AlignmentError, match="The prompts are questions, or a pair of lists"):
            unlock(models, wide, wrong, strength=0.5)


def planted_other(model: LanguageModel) -> LanguageModel:
    """The same model with other weights in one block."""
    other = copy.deepcopy(model.model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    return load_model(other, tokenizer=model.tokenizer)


def test_interventions_are_the_published_ones(pair: tuple[LanguageModel, LanguageModel]) -> None:
    found = unlock((pair[0], pair[0]), pair[1], questions(), strength=0.3)
    (edit,) = found.interventions()
    assert isinstance(edit, Rotate)
    assert edit.positions == Last()
    assert (edit.strength, edit.unit) == (0.3, "alpha")
    assert "given" in found.sentence
    (added,) = found.interventions(0.1, kind="add")
    assert isinstance(added, Add)
    with pair[1].steering(added):
        pair[1].logits(["a cat"])


def test_the_published_preset_has_its_quirks(pair: tuple[LanguageModel, LanguageModel]) -> None:
    narrow, wide = pair
    plain, wished = questions()
    found = unlock((narrow, narrow), wide, (plain, wished), preset="published", rank=16)
    one = next(iter(found.alignment.aligners.values()))
    assert isinstance(one, al.SvdRegression)
    assert not one.center
    assert found.strength == 0.05
    assert found.pairs.splits["fit"].tolist() == list(range(50, 200))  # the last rows
    assert len(found.direction.sites) == wide.n_layers
    last = found.pairs.target.sites[-1]
    before = capture(wide, asked(wide, plain, "plain"), [last], positions=Last())[last]
    ln_final = wide.anatomy.ln_final
    assert ln_final is not None
    torch.testing.assert_close(found.pairs.target[last], ln_final(before).detach())  # behind the final norm
    assert not torch.allclose(found.pairs.target[last], before)
    signless = unlock((narrow, narrow), wide, (plain, wished), preset="published", aggregator="pca", rank=16)
    assert next(iter(signless.alignment.aligners.values())).center  # type: ignore[attr-defined]


def test_components_are_signed_and_uncentred_unless_published() -> None:
    rng = np.random.default_rng(0)
    mean, axis = np.eye(8)[0] * 5, np.eye(8)[1]
    rows = mean + rng.standard_normal((100, 1)) * 3 * axis + 0.1 * rng.standard_normal((100, 8))
    assert aggregated(rows, "pca")[0] > 0.9
    assert aggregated(-rows, "pca")[0] < -0.9
    assert (
        abs(aggregated(rows, "pca", published=True)[1]) > 0.9
    )  # the axis of most variation, without the mean
    np.testing.assert_allclose(aggregated(rows, "mean"), rows.mean(0))


def test_strengths_are_the_smallest_that_does_nearly_as_much() -> None:
    outcomes = {0.0: (0.0, 0.0), 0.1: (0.5, 0.0), 0.2: (0.9, 0.05), 0.5: (0.95, 0.0), 1.0: (1.0, 0.6)}
    chosen = choose_strength(outcomes.__getitem__, (0.1, 0.2, 0.5, 1.0))
    assert chosen.strength == 0.2  # 1.0 repeats itself; 0.2 comes within a tenth of 0.95
    nothing = choose_strength(lambda alpha: (0.0, 0.0), (0.1, 0.2))
    assert nothing.strength == 0.1
    assert "no strength did more than none" in nothing.how


def test_wrong_inputs_are_sentences(pair: tuple[LanguageModel, LanguageModel]) -> None:
    plain, wished = questions(20)
    with pytest.raises(AlignmentError, match="20 locked prompts came with 19"):
        unlock((pair[0], pair[0]), pair[1], (plain, wished[:19]))
    with pytest.raises(AlignmentError, match="fewer than four"):
        unlock((pair[0], pair[0]), pair[1], (plain[:4], wished[:4]))
    with pytest.raises(DirectionError, match="are the same"):
        unlock((pair[0], pair[0]), pair[1], (plain, plain))
    with pytest.raises(SteerlabError, match="no preset"):
        unlock((pair[0], pair[0]), pair[1], (plain, wished), preset="best")  # type: ignore[arg-type]
    with pytest.raises(AlignmentError, match="width or depth is another one"):
        unlock((pair[0], pair[0]), pair[1], (plain, wished), target_unlocked=tiny("llama"))
    task = Task("short", ("a",) * 9, ("b",) * 9, ("1",) * 9)
    with pytest.raises(DatasetError, match="has 9 questions"):
        transfer((pair[0], pair[0]), pair[1], task)
    with pytest.raises(SteerlabError, match="no size"):
        transfer((pair[0], pair[0]), pair[1], task, size="huge")  # type: ignore[arg-type]


# -- parts --


def test_repetition_is_the_share_of_windows_seen_before() -> None:
    assert repeated([1, 2, 3, 4, 5]) == 0
    assert repeated([7] * 13) == pytest.approx(9 / 10)
    assert repeated([1]) == 0


def test_log_probabilities_are_transformers_own() -> None:
    model = tiny("llama")
    prompts, answers = asked(model, ["the cat"], "plain"), [" sat on the mat"]
    found = log_probability(model, prompts, answers)
    ids = model.tokenize([replace(prompts[0], text=prompts[0].text + answers[0])]).input_ids
    before = model.tokenize(prompts).lengths[0]
    law = model.source(ids).logits[0, :, : model.vocab_size].detach().log_softmax(-1)  # without padded rows
    expected = sum(float(law[at - 1, ids[0, at]]) for at in range(before, ids.shape[1]))
    close(found[0], expected)


def test_logit_arithmetic_of_equal_sources_is_greedy_decoding() -> None:
    model, other = tiny("llama"), tiny("llama", seed=1)
    assert same_vocabulary(model, other)
    prompts = asked(model, ["the cat sat", "a dog"], "plain")
    greedy = model.generate(prompts, max_new_tokens=6)
    found = arithmetic(model, other, other, prompts, 6)
    assert [one.token_ids for one in found] == [one.token_ids for one in greedy]
    swapped = arithmetic(model, model, other, prompts, 6)  # T + (U − T) = U
    assert [one.token_ids for one in swapped] == [
        one.token_ids for one in other.generate(prompts, max_new_tokens=6)
    ]


# -- the study on the bundled models --


@pytest.fixture(scope="module")
def large_to_small() -> TransferResult:
    try:
        large, small = zoo.load_bundled("large-base"), zoo.load_bundled("small-base")
    except ModelError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        quick = study._AMOUNTS["quick"]
        fewer = replace(quick, dev=12, randoms=5, ranks=(1, 16), rows=(64,), samples=2)
        patch.setitem(study._AMOUNTS, "quick", fewer)
        return transfer((large, large), small, zoo.sums_task(400, count=5))


def test_the_study_unlocks_and_says_what_else_does(large_to_small: TransferResult) -> None:
    result = large_to_small
    assert result.condition("locked").right.value < 0.2
    assert result.condition(UNLOCK).right.value > 0.6
    assert result.condition("unlocked prompt").right.value > 0.9
    assert max(result.condition("random directions").draws) < 0.2
    assert result.condition("shuffled pairs").right.value < 0.2
    # rank one carries one bit a layer; that it does nearly as much is why the study does not call this identified
    assert result.condition("rank one").right.value > 0.5
    assert not result.beats_controls("right")
    assert result.status == "not identified"
    assert result.condition(UNLOCK).p_value < 1e-6
    assert {"first 1 forced", "first 4 forced", "another task", "negated"} <= {
        one.name for one in result.conditions
    }


@pytest.mark.parametrize(
    ("shares", "expected", "word"),
    [
        ({UNLOCK: 0.9}, "carried", "the aligner carries it"),
        ({"unlocked prompt": 0.05}, "capability", "nothing is found that a direction could unlock"),
        ({}, "direction", "so the aligner is not to blame"),
        ({"native, same layers": 0.9}, "aligner", "the carried one does not"),
        ({"native, all layers, own strength": 0.9}, "strength", "with a strength of its own"),
    ],
)
def test_what_is_missing_is_named(
    large_to_small: TransferResult, shares: dict[str, float], expected: str, word: str
) -> None:
    planted = {"unlocked prompt": 0.95} | shares
    found = planted_shares(
        large_to_small, {row.name: planted.get(row.name, 0.05) for row in large_to_small.conditions}
    )
    assert found.reason("behaves") == expected
    assert word in sentence(found, "behaves")


def test_without_a_native_direction_nothing_is_blamed(large_to_small: TransferResult) -> None:
    shares = {
        row.name: 0.95 if row.name == "unlocked prompt" else 0.05
        for row in large_to_small.conditions
        if not row.name.startswith("native")
    }
    assert planted_shares(large_to_small, shares).reason() == "unknown"


def planted_shares(result: TransferResult, shares: dict[str, float]) -> TransferResult:
    """The named conditions, each in the unlocked manner on such a share of a hundred questions, the same first ones."""
    locked = np.arange(100) < 100 * shares["locked"]
    rows = []
    for row in result.conditions:
        if row.name in shares:
            behaves = np.arange(100) < 100 * shares[row.name]
            change = paired_difference(behaves, locked, seed=0)
            rows.append(
                row.model_copy(update={"behaves": proportion(behaves), "behaves_change": change, "draws": ()})
            )
    return result.model_copy(update={"conditions": tuple(rows)})


def test_every_control_goes_through_the_same_map(large_to_small: TransferResult) -> None:
    names = {row.name for row in large_to_small.controls}
    assert {"random source direction", "shuffled pairs", "rank one", "negated"} <= names
    assert "another layer" not in names  # a change often points the same way there: no null, but worth a row
    assert large_to_small.condition("another layer").strength == large_to_small.condition(UNLOCK).strength


def test_a_map_fitted_on_word_ends_carries_as_well(pair: tuple[LanguageModel, LanguageModel]) -> None:
    narrow, wide = pair
    found = unlock(
        (narrow, narrow), wide, questions(), aligner=al.Ridge(1e-9), rule="end_of_word", strength=0.5
    )
    assert found.pairs.rule == "end_of_word"
    assert len(found.pairs.source) > 4 * len(questions()[0])
    for site in found.direction.sites:
        truth = found.source[site] @ shared_latent.turn()
        assert torch.cosine_similarity(found.direction[site], truth, dim=0) > 0.99


def test_the_result_reads_back_and_draws(large_to_small: TransferResult) -> None:
    again = result_from_dict(json.loads(json.dumps(large_to_small.to_dict())))
    assert again.to_dict() == large_to_small.to_dict()
    assert list(large_to_small.figures()) == ["conditions", "sweep", "alignment", "strength"]
    assert {table.key for table in large_to_small.tables()} == {
        "conditions",
        "alignment",
        "sweep",
        "sharpening",
    }
    assert set(large_to_small.artefacts()) == {"unlock_direction", "unlock_alignment"}
    text = " ".join(large_to_small.summary)
    assert "strongest: rank one" in text
    assert "Logit arithmetic was not run" in text
