"""Parts of the truthfulness study: probes by sums, normalisations, answers of any words, joined statements, presets."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sklearn.base import clone
from studies import planted_models as planted
from tolerances import close

from steerlab import datasets
from steerlab.datasets import Statement, StatementSet
from steerlab.directions import (
    Ccs,
    DifferenceInMeans,
    InCoordinates,
    LogisticProbe,
    MassMean,
    PcaReader,
    Ttpd,
    dominance,
)
from steerlab.errors import DirectionError, PromptError, SiteError
from steerlab.models import LanguageModel, Last, Prompt, Site, Span, load_model
from steerlab.models.metering import metered
from steerlab.readouts.agreement import agreement_by_layer, centre
from steerlab.readouts.questions import ANSWER_SITE, QUESTION_END, plan, question
from steerlab.studies import truthfulness
from steerlab.studies._truthfulness.answers import Examinee, Words, choose_shots, label_accuracy, words_for
from steerlab.studies._truthfulness.geometry import refitted
from steerlab.studies._truthfulness.probes import AS_TRAINED, OWN, choose_layers, fitter, transfer
from steerlab.studies._truthfulness.steering import inside, normalised, vectors_of

study = importlib.import_module("steerlab.studies._truthfulness.study")


class Rowwise(DifferenceInMeans):
    """The difference in means under another name, so that it is fitted on rows like any estimator."""


def _states(used, layers: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((layers, len(used.statements), 12))
    states[-1, :, 0] += 2.0 * used.labels
    return states + 5.0 * rng.standard_normal(12)


# -- probes --


def test_probes_by_sums_equal_the_estimator_on_centred_rows() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    states = _states(used)
    labels = np.vstack([used.labels, np.random.default_rng(1).permutation(used.labels)])
    for layer in states:
        by_sums, by_rows = fitter(layer, used, labels), fitter(layer, used, labels, Rowwise())
        for fold in used.folds:
            fast, slow = by_sums(fold.train), by_rows(fold.train)
            for field in ("directions", "thresholds", "gaps", "origin"):
                np.testing.assert_allclose(getattr(fast, field), getattr(slow, field), atol=1e-10)
    assert choose_layers(states, used) == [1] * 6
    fast, slow = (
        transfer({"base": states}, used, {"base": [1] * 6}, seed=0, estimator=one)
        for one in (None, Rowwise())
    )
    assert [one.accuracy for one in fast] == [one.accuracy for one in slow]


def test_other_estimators_are_fitted_on_centred_topics() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    layer = _states(used)[1]
    train = used.folds[0].train
    rows = used.rows(train)
    for estimator in (LogisticProbe(), MassMean(tilt=True), InCoordinates(DifferenceInMeans())):
        probe = fitter(layer, used, None, estimator, "plain")(train)
        expected = clone(estimator).fit(centre(layer[rows], used.groups[rows]), used.labels[rows])
        np.testing.assert_allclose(probe.directions[0], expected.direction_)
        along = probe.projections(centre(layer[rows], used.groups[rows]))[:, 0]
        gap = along[used.labels[rows]].mean() - along[~used.labels[rows]].mean()
        assert gap == pytest.approx(1.0)


def test_probes_are_standardised_where_one_mean_dominates() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    layer = _states(used)[1] * np.logspace(0, 2, 12)
    plain = layer - layer.mean(axis=0)
    assert dominance(layer) > 0.95 > dominance(plain)
    train = used.folds[0].train
    for x, chosen in ((layer, "standardised"), (plain, "plain")):
        (automatic,) = fitter(x, used)(train).directions
        (named,) = fitter(x, used, None, None, chosen)(train).directions
        np.testing.assert_array_equal(automatic, named)
    for slow, coordinates in ((InCoordinates(Rowwise()), "plain"), (Rowwise(), "standardised")):
        by_rows = fitter(layer, used, None, slow, coordinates)(train)
        by_sums = fitter(layer, used)(train)
        for field in ("directions", "thresholds", "gaps"):
            np.testing.assert_allclose(getattr(by_sums, field), getattr(by_rows, field), rtol=1e-7, atol=1e-9)


def test_agreement_is_the_same_by_weights_and_by_refitting() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    stack = rng.standard_normal((1, 60, 8)) + labels[None, :, None]
    given = dict(clusters=np.arange(60), strata=np.zeros(60), layers=[0], seed=0, draws=10, splits=5)
    plain = agreement_by_layer(stack, stack[:, ::-1], labels, **given)
    again = agreement_by_layer(
        stack, stack[:, ::-1], labels, **given, fit=refitted(DifferenceInMeans(), np.ones(60, dtype=int))
    )
    for name in ("cosine", "crossed", "ceiling", "shuffled"):
        assert getattr(plain[0], name).value == pytest.approx(getattr(again[0], name).value, abs=1e-6)


def test_a_shift_between_the_models_shows_only_with_the_probe_as_trained() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    base = _states(used)
    post = base.copy()
    post[:, :, 0] += 30.0
    cells = transfer({"base": base, "post": post}, used, {"base": [1] * 6, "post": [1] * 6}, seed=0)
    found = {
        (one.probe, one.states, one.centred_by): one.accuracy.value
        for one in cells
        if one.statements == one.topic == "all"
    }
    assert found["base", "post", OWN] == found["base", "base", OWN] > 0.7
    assert found["base", "post", "training mean, this model"] > 0.7
    assert found["base", "post", AS_TRAINED] == pytest.approx(0.5)


@pytest.mark.usefixtures("smaller_studies")
def test_a_logistic_probe_carries_the_whole_study() -> None:
    pair = planted.planted(layers=2), planted.planted(layers=2, seed=1)
    result = truthfulness(pair, planted.statements(), estimator=LogisticProbe(), plain_text=[])
    assert result.setting.estimator == "LogisticProbe()"
    assert result.cell("base", "post").accuracy.low > 0.9
    assert not result.prices
    assert all(row.cosine.value > 0.8 for row in result.agreement)
    artefact = result.artefacts()["truthfulness_base"]
    assert artefact.estimator == "LogisticProbe"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("smaller_studies")
def test_truth_and_polarity_carry_the_study_and_paired_estimators_are_refused() -> None:
    pair = planted.planted(layers=2), planted.planted(layers=2, seed=1)
    result = truthfulness(pair, planted.statements(), estimator=Ttpd(), plain_text=[])
    assert result.cell("base", "post").accuracy.low > 0.9
    assert result.artefacts()["truthfulness_post"].estimator == "Ttpd"  # type: ignore[attr-defined]
    for estimator in (Ccs(), PcaReader()):
        with pytest.raises(DirectionError, match="reads pairs"):
            truthfulness(pair, planted.statements(), estimator=estimator)


def test_joined_statements_are_tested_on_and_never_trained_on() -> None:
    simple = planted.statements()
    joined = []
    for topic in planted.TOPICS:
        members = list(simple.topic(topic))
        true, false = ([one for one in members if one.label == kind] for kind in (True, False))
        for a, b, c in zip(true, true[1:], false, strict=False):
            for first, second, both in ((a, b, True), (c, a, False)):
                joined.append(Statement(f"{first.text} {second.text}", both, topic, form="conjunction"))
    used = plan(StatementSet([*simple, *joined]), per_topic=40, seed=0)
    assert {str(form) for form in used.forms} == {"simple", "conjunction"}
    for fold in used.folds:
        assert used.simple[used.rows(fold.train)].all()
        assert not used.simple[used.joined(fold.test)].any()
        assert set(used.groups[used.joined(fold.test)]) == set(fold.test)
    states = _states(used)
    cells = transfer({"base": states}, used, {"base": [1] * 6}, seed=0)
    row = next(one for one in cells if one.statements == "conjunction")
    assert row.accuracy.value > 0.7
    alone = plan(simple, per_topic=40, seed=0)
    spoiled = states.copy()
    spoiled[:, ~used.simple] = 1e3
    for name in alone.groups:
        np.testing.assert_allclose(
            fitter(states[1], used)((str(name),)).directions,
            fitter(spoiled[1], used)((str(name),)).directions,
        )
        break


# -- the published numbers --


def test_the_published_normalised_effects_come_out() -> None:
    """Du et al., `label_change_intervention_results.json`: PD on the grid of bfloat16, direction -> model."""
    labels = np.array([True, False])
    base, instruct = np.array([0.9453125, -0.90625]), np.array([0.97265625, -0.98828125])
    after = np.array([-0.90625, 0.441])
    assert normalised("to certainty", base, after, labels, "true") == 0.9518072289156626
    published = [
        (base, (-0.906, 0.441), (0.952, 0.707), 0.829, (1.000, 0.728)),
        (base, (-0.973, 0.348), (0.986, 0.658), 0.822, (1.036, 0.677)),
        (instruct, (-0.996, 0.590), (0.998, 0.794), 0.896, (1.004, 0.805)),
        (instruct, (-0.996, 0.516), (0.998, 0.756), 0.877, (1.004, 0.767)),
    ]
    for before, end, to_certainty, mean, to_other in published:
        end = np.array(end)
        for part, expected, other in zip(("true", "false"), to_certainty, to_other, strict=True):
            assert normalised("to certainty", before, end, labels, part) == pytest.approx(expected, abs=1e-3)
            assert normalised("to the other class", before, end, labels, part) == pytest.approx(
                other, abs=1e-3
            )
        assert normalised("to certainty", before, end, labels) == pytest.approx(mean, abs=1e-3)
    assert np.isnan(normalised("to certainty", base[:1], base[:1], labels[:1]))


# -- answers of any words --


@pytest.fixture(scope="module", params=["gpt2", "minimind3", "mistral-sp"])
def spoken(request: pytest.FixtureRequest, shared: Path) -> LanguageModel:
    """A tiny random model with a real tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "models" / "tokenizers" / request.param)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return load_model(transformers.LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


@pytest.mark.parametrize(
    "words",
    [(" TRUE", " FALSE"), (" yes", " no"), (" beyond any doubt", " not at all"), (" wahr", " falsch")],
)
def test_answers_are_scored_as_the_model_would_write_them(
    spoken: LanguageModel, words: tuple[str, str]
) -> None:
    statements = [datasets.statements()[n] for n in (0, 1, 130, 400)]
    prompts = [question(one, (), words) for one in statements]
    found = words_for(spoken, words, prompts)
    scores = Examinee("base", spoken, found, ()).answers(prompts)
    for prompt, (pd, odds) in zip(prompts, scores, strict=True):
        true, false = (_log_probability(spoken, prompt, word, words) for word in words)
        close(odds, true - false, scale=abs(true) + abs(false))
        close(pd, np.exp(true) - np.exp(false), scale=1.0)
    if found.scored == "single tokens":
        text = spoken.tokenizer.decode([found.tokens[0]])
        assert text.strip() == words[0].strip()
    elif words[0] == " beyond any doubt":
        assert found.tokens is None


def test_the_published_answers_are_single_tokens_in_some_tokenizers(spoken: LanguageModel) -> None:
    """Ids read off the tokenizers' own vocabularies: " TRUE" in GPT-2's, "▁TRUE" in Mistral's, four pieces else."""
    known = {"gpt2": (26751, 26563), "minimind3": None, "mistral-sp": (11905, 11221)}
    tokens = known[Path(spoken.tokenizer.name_or_path).name]
    found = words_for(
        spoken, (" TRUE", " FALSE"), [question(datasets.statements()[0], (), (" TRUE", " FALSE"))]
    )
    assert found.tokens == tokens
    assert found.scored == ("sequences" if tokens is None else "single tokens")


def test_answers_that_cannot_be_told_apart_are_said(spoken: LanguageModel) -> None:
    prompt = question(datasets.statements()[0], (), (" no", " no"))
    with pytest.raises(PromptError, match="begins with the other"):
        words_for(spoken, (" no", " no"), [prompt])


def test_a_habit_of_saying_true_is_calibrated_away() -> None:
    used = plan(planted.statements(), per_topic=40, seed=0)
    rows = used.rows(planted.TOPICS)
    truth = used.labels[rows]
    rng = np.random.default_rng(0)
    odds = {0: 6.0 + truth + 0.2 * rng.standard_normal(len(rows)), 4: rng.standard_normal(len(rows))}
    model = planted.planted(layers=1)
    words = words_for(model, (" TRUE", " FALSE"), [question(used.statements[0], (), (" TRUE", " FALSE"))])
    shots = choose_shots([odds], used, rows)
    assert shots == [0] * 6
    plain, calibrated = label_accuracy(Examinee("base", model, words, ()), odds, shots, used, rows)
    assert not plain.above_chance
    assert plain.accuracy.value == pytest.approx(0.5)
    assert calibrated.above_chance
    assert calibrated.calibrated
    assert calibrated.accuracy.value > 0.9


@pytest.mark.usefixtures("smaller_studies")
def test_a_biased_model_is_judged_by_its_calibrated_accuracy_and_steered() -> None:
    pair = []
    for seed in (0, 1):
        model = planted.planted(layers=2, seed=seed)
        head = model.model.lm_head
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features), requires_grad=False)
        head.bias[planted.WORDS.index("TRUE")] = 400.0
        pair.append(load_model(model.model, tokenizer=model.tokenizer))
    result = truthfulness(pair, planted.statements(), plain_text=[])
    for name in ("base", "post"):
        plain, calibrated = (one for one in result.labels if one.model == name and one.statements == "all")
        assert not plain.above_chance
        assert calibrated.above_chance
    assert "calibrated accuracy" in " ".join(result.summary)
    assert result.steering


@pytest.mark.usefixtures("smaller_studies")
def test_words_of_several_tokens_work_throughout() -> None:
    pair = planted.planted(layers=2), planted.planted(layers=2, seed=1)
    words = (" TRUE thing1", " FALSE thing1")
    result = truthfulness(pair, planted.statements(), answers=words, plain_text=[])
    assert {one.scored for one in result.labels} == {"sequences"}
    assert any(one.above_chance for one in result.labels)
    assert "scored as sequences" in " ".join(result.summary)


# -- options --


def test_the_published_preset_fixes_layers_dose_and_lines() -> None:
    models = {"base": planted.planted(layers=8), "post": planted.planted(layers=8, seed=1)}
    used = plan(planted.statements(), per_topic=40, seed=0)
    fixed = study._fixed_layers(models, None, "published")
    assert fixed == {"base": (2, 3), "post": (2, 3)}
    rule = study._rule(models, used, study.AMOUNTS["quick"], fixed, "published", None, 0)
    assert (rule.windows, rule.strengths, rule.shots) == (((2, 3),), (1.0,), (4,))
    assert list(rule.places) == ["object and full stop"]
    words = Words((" TRUE", " FALSE"), "single tokens", (0, 1))
    rng = np.random.default_rng(0)
    base, post = (
        Examinee(
            name,
            model,
            words,
            tuple(fitter(x, used, None, None, "plain") for x in _states(used, 8, seed=int(rng.integers(99)))),
        )
        for name, model in models.items()
    )
    groups = used.folds[0].train
    published = inside(vectors_of(base, post, groups, rule), (2, 3), rule)
    own = np.stack([fit(groups).directions[0] for fit in base.fits])
    np.testing.assert_allclose(published, own[[3, 3]])
    corrected = study._rule(models, used, study.AMOUNTS["quick"], {}, "corrected", None, 0)
    moved = inside(vectors_of(base, post, groups, corrected), (2, 3), corrected)
    lengths = [np.linalg.norm(fit(groups).directions[0]) for fit in post.fits[2:4]]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), lengths)


def test_layers_and_places_can_be_given() -> None:
    pair = planted.planted(), planted.planted(seed=1)
    result = truthfulness(
        pair,
        planted.statements(),
        layers=(0, 1),
        places={"last": Last()},
        plain_text=["a thing1 is here ."] * 2,
    )
    assert set(result.chosen["post"]) == {1}
    assert {(one.place, one.layers) for one in result.steering} == {("last", ((0, 1),) * 3)}
    assert {one.layers for one in result.prices} == {(0, 1)}
    assert all(one.random_kl.n == 20 for one in result.prices)
    with pytest.raises(SiteError, match="layers 2 to 3"):
        truthfulness(pair, planted.statements(), layers=(2, 3))


@pytest.mark.usefixtures("smaller_studies")
def test_few_topics_are_said() -> None:
    few = StatementSet(one for one in planted.statements() if one.topic in planted.TOPICS[:4])
    result = truthfulness((planted.planted(), planted.planted(seed=1)), few, plain_text=[])
    assert "Only 4 topics" in result.missing["topics"]
    assert result.setting.topics == planted.TOPICS[:4]


# -- private --


def _log_probability(model: LanguageModel, prompt: Prompt, word: str, words: tuple[str, str]) -> float:
    """By transformers alone: the tokens of prompt + word from where the two words part."""
    ids, other = (
        model.tokenizer(prompt.text + one, add_special_tokens=True)["input_ids"]
        for one in (word, next(one for one in words if one != word))
    )
    same = next(n for n in range(len(ids)) if ids[: n + 1] != other[: n + 1])
    with torch.no_grad():
        law = model.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(law[place - 1, ids[place]] for place in range(same, len(ids))))


@pytest.mark.parametrize("place", [ANSWER_SITE, QUESTION_END])
def test_steering_from_the_first_shifted_token_on_is_steering_of_the_whole_prompt(
    spoken: LanguageModel, place: str
) -> None:
    """Against whole passes with the vectors added by a hook; statements of several lengths behind labelled lines."""
    statements = [datasets.statements()[n] for n in (0, 1, 130, 400, 401)]
    prompts = [question(one, tuple(statements[:2]), (" TRUE", " FALSE")) for one in statements]
    words = words_for(spoken, (" TRUE", " FALSE"), prompts)
    examinee = Examinee("base", spoken, words, ())
    generator = torch.Generator().manual_seed(0)
    variants = [
        {
            Site("resid_post", layer): torch.randn(len(prompts), spoken.d_model, generator=generator)
            for layer in layers
        }
        for layers in ((0, 1), (1,), (0,))
    ]
    with metered({"model": spoken}) as spent:
        plain, found = examinee.steered(prompts, [(shifts, Span(place)) for shifts in variants])
    with metered({"model": spoken}) as whole:
        right = np.stack([examinee.answers(prompts, shifts, Span(place))[:, 0] for shifts in variants])
    close(plain, examinee.answers(prompts)[:, 0], rtol=1e-3)
    assert np.abs(right - plain).max() > 1e-3 * np.abs(plain).max()
    close(found, right, rtol=1e-3)
    if words.scored == "sequences":
        return  # these are scored whole
    assert (
        spent["model"].patched + spent["model"].read * spoken.n_layers < whole["model"].read * spoken.n_layers
    )
