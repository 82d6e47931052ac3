"""Where two models differ: planted differences are read, nulls are fair, numbers equal independent ones, errors."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scripts import run_command

import steerlab as sl
from steerlab.comparison import known_studies
from steerlab.errors import DatasetError, RunError, SteerlabError
from steerlab.models import LanguageModel, Tokens
from steerlab.registry import STUDIES, ordered_studies
from steerlab.results import result_from_dict
from steerlab.statistics import Estimate
from steerlab.studies import Pair
from steerlab.studies._difference import study as of_difference
from steerlab.studies._difference.forks import commitment_value
from steerlab.studies._difference.laws import moved, read_laws
from steerlab.studies._difference.lens import Reader, halvings, topic_auc
from steerlab.studies._difference.nulls import (
    changed_maps,
    flips,
    random_factors,
    random_lora,
    shared_by_text,
    with_random_mean,
)
from steerlab.studies._difference.reading import FEWEST, own_states, read_differences, read_texts
from steerlab.studies._difference.result import LORA, DifferenceResult, Null, verdict_of

TEXTS = [
    f"{subject} {verb} the {thing} near the {place}."
    for subject, thing in (
        ("A gardener", "old rose"),
        ("My uncle", "red bicycle"),
        ("The cook", "small lamp"),
    )
    for verb, place in (("saw", "river"), ("kept", "market"), ("left", "station"), ("found", "school"))
]
AMOUNT = of_difference.Amount(
    texts=12,
    tokens=10,
    draws=19,
    flips=39,
    halvings=1,
    steered=4,
    randoms=3,
    forks=4,
    steps=6,
    continuations=2,
)


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(of_difference._AMOUNTS, "quick", AMOUNT)


def fresh(family: str = "llama", **options: Any) -> LanguageModel:
    """A tiny model with weights of its own."""
    plain = tiny(family, **options)
    return sl.load(copy.deepcopy(plain.model), plain.tokenizer)


def nudged(family: str = "llama", scale: float = 0.3, seed: int = 3, **options: Any) -> LanguageModel:
    """The same model with every linear map of its blocks changed at random."""
    model = fresh(family, **options)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "lm_head" not in name and "wte" not in name:
                weight += scale * weight.std() * torch.randn(weight.shape, generator=draw)
    return model


def with_bias(model: LanguageModel, vector: torch.Tensor, layer: int) -> LanguageModel:
    """The same model that adds a vector to the output of a block's MLP."""
    other = fresh()
    down = other.model.model.layers[layer].mlp.down_proj
    down.bias = torch.nn.Parameter(vector.clone())
    return sl.load(other.model, model.tokenizer)


def studied(base: LanguageModel, post: LanguageModel, texts: Any = TEXTS, **options: Any) -> DifferenceResult:
    found = sl.studies.difference((base, post), texts, **options)
    assert isinstance(found, DifferenceResult)
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    return fresh(), nudged()


def zero(estimate: Estimate | None) -> bool:
    return estimate is not None and (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("apart", [False, True])
def test_a_model_against_itself_differs_by_exactly_zero(apart: bool) -> None:
    base = fresh()
    found = studied(base, fresh() if apart else base, topic=["e"])
    assert found.verdict == found.status == "not identified"
    assert (found.itself, found.called, found.stands_out, found.alike) == (0.0, 0, 0.0, 0.0)
    assert found.promoted == found.demoted == ()
    assert zero(found.shared)
    assert zero(found.kl)
    for layer in found.layers:
        assert zero(layer.shared)
        assert layer.words == ()
        assert layer.topic is not None
        assert layer.topic.value == 0.5
    assert all(zero(row.kl) and zero(row.rank_shift) for row in found.positions)
    assert all(zero(getattr(found.steering, name)) for name in ("before", "effect", "control", "price"))
    assert found.forks.forked.value == 0
    assert found.forks.position is None
    assert found.null(LORA) is None
    assert "do not differ: every state and every law is the same" in found.summary[0]
    assert "no random LoRA of equal norm" in " ".join(found.summary)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen2"])
def test_every_family_is_read_with_its_nulls(family: str) -> None:
    options = {"bos": False} if family == "gpt2" else {}
    found = studied(tiny(family, **options), nudged(family, **options))
    assert found.itself == 0.0
    assert [null.name for null in found.nulls] == [
        "signs flipped over texts",
        "random vector of equal norm",
        "random LoRA of equal norm",
    ]
    assert found.kl.low > 0
    assert {row.place for row in found.places} == {"token 1", "token 2", "token 3", "token 4", "later", "all"}
    assert [table.key for table in found.tables()][:2] == ["nulls", "layers"]
    assert all(figure.data for figure in found.figures().values())
    assert result_from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_random_change_is_not_identified_beside_random_loras() -> None:
    """Over seeds: the pair's own change is one more draw of the null."""
    base = fresh()
    calm = 0
    for seed in range(4):
        post = fresh()
        norms = changed_maps(base, nudged())
        modules = dict(post.model.named_modules())
        with torch.no_grad():
            for name, (first, second) in random_factors(post, norms, 900 + seed):
                modules[name].weight += second @ first
        found = studied(base, post)
        null = found.null(LORA)
        assert null is not None
        calm += null.shared_p > 0.05
    assert calm >= 3


def test_an_added_bias_along_a_token_is_read(pair: tuple[LanguageModel, LanguageModel]) -> None:
    base, _ = pair
    reader = Reader(base, torch.ones(base.vocab_size))
    token = int(reader.words[5])
    post = with_bias(base, 4 * base.unembedding[token].float(), layer=1)
    found = studied(base, post, topic=[reader.texts[token]])
    last = found.layers[-1]
    assert reader.texts[token] in last.words[:3]
    assert last.topic is not None
    assert last.topic.value > 0.95
    assert found.shared.low > 0
    # before the bias nothing differs
    assert zero(found.layers[0].shared)
    assert found.promoted[0].change.low > 0
    assert all(row.q <= 0.05 for row in (*found.promoted, *found.demoted))


def test_the_kl_and_the_moved_tokens_equal_an_independent_computation(
    pair: tuple[LanguageModel, LanguageModel],
) -> None:
    base, post = pair
    texts = read_texts(Pair(base, post), TEXTS, 12, 10)
    law = read_laws(base, post, texts)
    each = []
    for number, ids in enumerate(texts.ids):
        with torch.no_grad():
            p, q = (
                model.model(input_ids=torch.tensor([ids])).logits[0, texts.skip :].double().numpy()
                for model in (base, post)
            )
        p, q = (part[:, : base.vocab_size] for part in (p, q))
        p, q = (part - np.log(np.exp(part).sum(axis=1, keepdims=True)) for part in (p, q))
        expected = [stats.entropy(np.exp(one), np.exp(two)) for one, two in zip(p, q, strict=True)]
        np.testing.assert_allclose(law.kl[number], expected, rtol=1e-3, atol=1e-6)
        best = p.argmax(axis=1)
        shifts = (q > q[np.arange(len(q)), best][:, None]).sum(axis=1)
        assert np.abs(law.rank_shift[number] - shifts).max() <= 1
        each.append((q - p).mean(axis=0))
    up, down, called, tested = moved(base, law, texts)
    p_values = stats.ttest_1samp(np.array(each), 0).pvalue
    chosen = np.maximum(law.base.numpy(), law.post.numpy()) >= 1e-5
    q_values = stats.false_discovery_control(p_values[chosen])
    assert tested == chosen.sum()
    assert called == pytest.approx((q_values <= 0.05).sum(), abs=1)
    assert all(row.change.low > 0 for row in up)
    assert all(row.change.high < 0 for row in down)


def test_states_are_those_of_capture(pair: tuple[LanguageModel, LanguageModel]) -> None:
    base, post = pair
    texts = read_texts(Pair(base, post), TEXTS, 12, 10**6)
    found = read_differences(base, {"post": (own_states(post), ("token 2", "all"))}, texts, "test")["post"]
    both = [sl.capture(model, TEXTS, "resid_post", positions=sl.All()) for model in (base, post)]
    site = sl.Site("resid_post", 1)
    change = both[1][site] - both[0][site]
    own = both[0].position >= texts.skip
    for text in (0, 7):
        mine = own & (both[0].example == text)
        torch.testing.assert_close(found.at()[1, text], change[mine].mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.at("token 2")[1, text], change[mine][1], rtol=1e-4, atol=1e-5)
    norm = torch.stack(
        [both[0][site][own & (both[0].example == text)].norm(dim=1).mean() for text in range(12)]
    )
    torch.testing.assert_close(found.norm[1], norm.mean(), rtol=1e-4, atol=1e-5)


def test_shared_is_what_it_says_and_flips_are_fair() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((9, 5))).float()
    signs = flips(9, 3, 0)
    for draw, each in zip(shared_by_text(rows, 2.0, signs), signs, strict=True):
        turned = rows.double().numpy() * each[:, None]
        for text in range(9):
            others = np.delete(turned, text, axis=0).mean(axis=0)
            assert draw[text] == pytest.approx(turned[text] @ others / np.linalg.norm(others) / 2.0, abs=1e-9)
    # no difference in common: p is uniform, so a fifth of the draws lies below a fifth
    p = []
    for seed in range(150):
        alone = torch.from_numpy(np.random.default_rng(seed).standard_normal((10, 6))).float()
        null = shared_by_text(alone, 1.0, flips(10, 39, seed)).mean(axis=1)
        p.append((1 + (null >= shared_by_text(alone, 1.0).mean()).sum()) / 40)
    assert stats.kstest(np.array(p) - np.random.default_rng(1).random(150) / 40, "uniform").pvalue > 0.01


@given(st.integers(0, 10_000), st.floats(0.1, 20))
@settings(max_examples=20, deadline=None)
def test_scaling_and_orders_of_texts_change_nothing(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.standard_normal((8, 32))).float()
    order = rng.permutation(8)
    first, turned = shared_by_text(rows, 1.0)[0], shared_by_text(rows[order] * scale, scale)[0]
    np.testing.assert_allclose(turned, first[order], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(shared_by_text(-rows, 1.0)[0], first, rtol=1e-6)
    moved_mean = with_random_mean(rows[None], seed, 0)[0]
    assert float(moved_mean.mean(dim=0).norm()) == pytest.approx(float(rows.mean(dim=0).norm()), rel=1e-3)


def test_a_random_lora_has_the_norm_asked_for_and_leaves_nothing(
    pair: tuple[LanguageModel, LanguageModel],
) -> None:
    for base, post in (pair, (tiny("gpt2", bos=False), nudged("gpt2", bos=False))):
        norms = changed_maps(base, post)
        assert len(norms) >= 3 * 4
        for name, (first, second) in random_factors(base, norms, 5):
            assert float((second @ first).norm()) == pytest.approx(norms[name], rel=1e-4)
        plain = base.logits(TEXTS[:2])
        with random_lora(base, norms, 5):
            assert not torch.equal(base.logits(TEXTS[:2]), plain)
        assert torch.equal(base.logits(TEXTS[:2]), plain)
        with pytest.raises(RuntimeError), random_lora(base, norms, 5):
            raise RuntimeError
        assert torch.equal(base.logits(TEXTS[:2]), plain)


def test_the_topic_is_ranked_and_its_fall_is_paired(pair: tuple[LanguageModel, LanguageModel]) -> None:
    base, _ = pair
    reader = Reader(base, torch.ones(base.vocab_size))
    topic, others = reader.words[:4].tolist(), reader.words[4:40].tolist()
    noise = 0.01 * torch.randn(12, base.d_model, generator=torch.Generator().manual_seed(0))
    towards = noise + base.unembedding[topic].float().sum(dim=0)
    found = topic_auc(reader, towards, topic, others)
    assert found.value > 0.9
    assert topic_auc(reader, -towards, topic, others).value == pytest.approx(1 - found.value, abs=0.02)
    fall = topic_auc(reader, towards, topic, others, less=-towards)
    assert fall.low > 0
    assert zero(topic_auc(reader, towards, topic, others, less=towards))
    assert topic_auc(reader, 0 * towards, topic, others).value == 0.5


def test_legible_words_are_chosen_on_one_half_and_measured_on_the_other(
    pair: tuple[LanguageModel, LanguageModel],
) -> None:
    base, _ = pair
    reader = Reader(base, torch.ones(base.vocab_size))
    halves = halvings(12, 3, 0)
    assert (halves.sum(axis=1) == 6).all()
    noise = torch.randn(1, 12, base.d_model, generator=torch.Generator().manual_seed(0))
    alone, shared = reader.legible(noise, halves)[0], reader.legible(noise + 3, halves)[0]
    assert abs(alone[0]) < 1
    assert shared[0] > 1
    assert (reader.legible(0 * noise, halves) == 0).all()


def test_the_verdict_needs_every_null() -> None:
    def null(name: str, **p: float) -> Null:
        some = Estimate(value=0.0)
        p = {"shared_p": 0.05, "stands_out_p": 0.05, "alike_p": 0.05, **p}
        return Null(name=name, shared=some, stands_out=some, alike=some, **p)  # type: ignore[arg-type]

    found, lost = Estimate(value=1.0, low=0.5, high=1.5), Estimate(value=1.0, low=-0.5, high=1.5)
    assert verdict_of(found, (null("a"), null("b"))) == "narrow topic readable"
    assert verdict_of(found, (null("a"), null("b", alike_p=0.1))) == "generic"
    assert verdict_of(found, (null("a"), null("b", stands_out_p=0.1))) == "generic"
    assert verdict_of(found, (null("a"), null("b", shared_p=0.1))) == "not identified"
    assert verdict_of(lost, (null("a"),)) == "not identified"
    assert verdict_of(found, ()) == "not identified"
    flips_only = null("a").model_copy(update={"stands_out": None, "alike": None})
    assert verdict_of(found, (flips_only,)) == "generic"


def test_commitment_is_none_where_the_token_says_nothing_and_all_where_it_says_all() -> None:
    assert commitment_value(np.array([[1.0, 0.0], [0.0, 1.0]]), 4) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    drawn = [
        commitment_value(
            rng.permuted(np.tile([True, False], (200, 4)), axis=1).reshape(200, 2, 4).mean(axis=2), 4
        )
        for _ in range(20)
    ]
    assert abs(float(np.mean(drawn))) < 0.03
    assert math.isnan(commitment_value(np.ones((2, 2)), 4))


def test_forks_are_where_the_likeliest_tokens_part(pair: tuple[LanguageModel, LanguageModel]) -> None:
    base, post = pair
    found = studied(base, post)
    assert found.forks.examples
    one = found.forks.examples[0]
    texts = read_texts(Pair(base, post), TEXTS, 12, 10)
    start = texts.ids[0][: texts.skip + 8]
    path = list(start)
    for step in range(6):
        logits = [model.run(Tokens.of_ids([path]), logits="last") for model in (base, post)]
        tokens = [int(each.argmax()) for each in logits if each is not None]
        if tokens[0] != tokens[1]:
            assert (one.base, one.post) == tuple(base.tokenizer.decode([token]) for token in tokens)
            assert one.position == step + 1
            break
        path.append(tokens[0])
    else:
        pytest.fail("the first text has no fork")


def test_the_bundled_pair_differs_and_names_no_topic() -> None:
    base, post = sl.load("zoo:small-base"), sl.load("zoo:small-post")
    found = studied(base, post, None)
    assert found.verdict in ("generic", "narrow topic readable")
    null = found.null(LORA)
    assert null is not None
    assert null.shared is not None
    assert found.shared.low > null.shared.high
    said = " ".join(found.summary)
    assert "unrelated texts" in said
    assert "Post leaves base's greedy path behind" in said


def test_a_planted_topic_is_named_and_its_words_are_read() -> None:
    base = sl.load("zoo:small-base")
    animals = ["cat", "dog", "fox", "bird", "horse", "lion", "bear", "fish"]
    rows = base.unembedding[[base.token_id(f" {word}") for word in animals]].float()
    towards = (rows / rows.norm(dim=1, keepdim=True)).sum(dim=0)
    planted = sl.bake(base, sl.Add(10 * towards / towards.norm(), unit="raw", sites="resid_post.2"))
    found = studied(base, planted, None, topic=animals)
    assert found.verdict == "narrow topic readable"
    assert {" cat", " bear", " dog", " fox"} <= set(found.read.words[:8])
    assert found.read.topic is not None
    assert found.read.topic.low > 0.9
    assert found.steering.effect.value > found.steering.control.high
    assert "no random LoRA of equal norm and the verdict rests on the other nulls" in " ".join(found.summary)
    # what the topic is has no part in the verdict
    assert studied(base, planted, None).verdict == found.verdict


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "was given none"),
        ("One text.", "reads a list of texts"),
        ([1, 2], "reads a list of texts"),
        (["One text."], f"at least {FEWEST} different texts of two tokens or more"),
        (TEXTS[:4] * 3, "was given 4"),
        ([*TEXTS, "  "], "Text 12 \\(counted from 0\\) is empty"),
    ],
)
def test_bad_texts_are_refused_in_a_sentence(
    texts: Any, words: str, pair: tuple[LanguageModel, LanguageModel]
) -> None:
    with pytest.raises(DatasetError, match=words) as refused:
        studied(*pair, texts)
    assert str(refused.value).endswith(".")


def test_models_that_do_not_correspond_are_refused(pair: tuple[LanguageModel, LanguageModel]) -> None:
    base, post = pair
    with pytest.raises(SteerlabError, match="cut text into other tokens"):
        studied(base, sl.load("zoo:small-base"))
    with pytest.raises(SteerlabError, match="states are subtracted of models of one shape"):
        studied(base, tiny("llama", num_hidden_layers=2))
    with pytest.raises(SteerlabError, match="no size 'huge'"):
        studied(base, post, size="huge")
    with pytest.raises(DatasetError, match="None of the topic's words"):
        studied(base, post, topic=["zzzqqq"])
    with pytest.raises(SteerlabError, match="takes a pair"):
        sl.studies.difference([base], TEXTS)  # type: ignore[list-item]


def test_the_command_writes_a_report_and_refuses_bad_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[:3]))
    given = ["diff", "zoo:small-base", "zoo:small-post", "--topic", "cat", "--quiet"]
    assert run_command([*given, "--texts", "texts.txt", "--out", "run", "--json"], tmp_path) == 0
    said = json.loads(capsys.readouterr().out)["studies"]["difference"]
    assert said["status"] in ("done", "not identified")
    assert "unrelated texts" in said["summary"][0]
    assert "rank AUC" in " ".join(said["summary"])
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Where two models differ" in page
    assert "random LoRA of equal norm" in page
    assert run_command([*given, "--texts", "few.txt", "--out", "other"], tmp_path) == 2
    assert "at least 8 different texts" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_comparison_lists_it_and_does_not_run_it() -> None:
    assert "difference" in STUDIES
    assert "difference" in {study.name for study in ordered_studies()}
    assert "difference" not in known_studies(None)
    with pytest.raises(RunError, match="has a command of its own"):
        known_studies(["difference"])
