"""Pairs, maps, statistics, recovery and noise tracing, against closed forms, planted stores and published data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from smaller import use_smaller_amounts
from studies.planted_facts import LAYERS, fact_store, facts
from tolerances import close

import steerlab as sl
from steerlab import zoo
from steerlab.activations import Cost
from steerlab.alignment import Procrustes, Ridge
from steerlab.datasets import (
    Statement,
    StatementPair,
    StatementSet,
    match,
    read_pairs,
    read_statements,
    with_template,
)
from steerlab.errors import DatasetError, PromptError, SiteError, SteerlabError
from steerlab.models import Selector, Site, Span
from steerlab.results import result_from_dict
from steerlab.steering import Patch
from steerlab.studies import answer, compare_maps, facts_of, knowledge, noise_trace, trace, tracing_pairs
from steerlab.studies._knowledge.layouts import ROLES, roles_of
from steerlab.studies._knowledge.maps import PairAnswers, Traced, map_rows, of_one_layout
from steerlab.studies._knowledge.recovery import _Ratios, recover
from steerlab.studies._knowledge.result import KnowledgeResult
from steerlab.studies._knowledge.statistics import mean_map, published, quantised, shifted_down

ROOT = "statements/post-training-mechanistic-analysis"


def some_topics(*names: str) -> StatementSet:
    return StatementSet(item for item in zoo.known_statements() if item.topic in names)


# -- pairs --


def test_the_published_pairing_gives_the_published_list(shared: Path) -> None:
    """238 pairs made with Llama-3's tokenizer, element by element; its length filter is taken from the list itself."""
    folder = shared / "data" / ROOT
    expected = read_pairs(folder / "cities_paired.json")
    assert len(expected) == 238
    kept = {item.text for pair in expected for item in (pair.true, pair.false)}
    statements = [item for item in read_statements(folder / "cities.csv") if item.text in kept]
    found = match(statements, lambda item: item.text.split()[-1], matching="published")
    assert [(pair.true.text, pair.false.text) for pair in found] == [
        (pair.true.text, pair.false.text) for pair in expected
    ]
    assert len({pair.false.text for pair in found}) == 178


def test_corrected_pairs_use_every_statement_once() -> None:
    statements = [Statement(f"s{n}", n % 3 == 0) for n in range(30)]
    found = match(statements, lambda item: "all", seed=1)
    assert len(found) == 10
    assert all(pair.true.label and not pair.false.label for pair in found)
    assert max(Counter(item.text for pair in found for item in (pair.true, pair.false)).values()) == 1
    again = match(statements, lambda item: "all", matching="published")
    assert [pair.false.text for pair in again] == [f"s{n}" for n in range(29, 0, -1) if n % 3][:10]
    few = match(statements[:5], lambda item: None if item.text == "s1" else "all", matching="published")
    assert [pair.false.text for pair in few] == ["s4", "s2"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("differ", ["subject", "object"])
def test_pairs_are_aligned_token_for_token(family: str, differ: str) -> None:
    model = tiny(family, max_position_embeddings=512) if family == "llama" else tiny(family, n_positions=512)
    statements = sl.datasets.statements(["cities", "animals", "numbers"])
    answers = (" a", ":")
    found = tracing_pairs([model], statements, answers=answers, differ=differ, shots=0, seed=3)  # type: ignore[arg-type]
    assert len(found) >= 10
    for pair in found.pairs:
        true, false = (model.tokenize([prompt]) for prompt in (pair.true, pair.false))
        assert true.lengths == false.lengths
        assert roles_of(model, pair.true) == roles_of(model, pair.false) == (pair.first, pair.roles)
        assert set(pair.roles) <= set(ROLES)
        assert pair.positions[-1] == true.lengths[0] - 1
        assert pair.roles[-1] == "last token"
        shared, other = ("object", "subject") if differ == "subject" else ("subject", "object")
        parts = [
            {name: prompt.text[slice(*prompt.spans[name])] for name in ("subject", "object")}
            for prompt in (pair.true, pair.false)
        ]
        assert parts[0][shared] == parts[1][shared]
        assert parts[0][other] != parts[1][other]
        # Only tokens of what differs are other tokens.
        changed = (true.input_ids != false.input_ids)[0].nonzero().flatten().tolist()
        assert changed
        assert {pair.roles[at - pair.first].split()[-1] for at in changed} == {other}


def test_labelled_lines_never_show_a_traced_statement() -> None:
    model = zoo.load_bundled("small-base")
    found = tracing_pairs([model], zoo.known_statements(), shots=4)
    assert found.shots == 4
    for pair in found.pairs:
        for prompt, item in ((pair.true, pair.statements.true), (pair.false, pair.statements.false)):
            lines = prompt.text[: prompt.spans["statement"][0]]
            assert lines.count("This statement is:") == 4
            subject = item.text[slice(*item.spans["subject"])]
            assert item.text not in lines
            assert f" {subject} " not in lines
        assert (
            pair.true.text[: pair.true.spans["statement"][0]]
            == pair.false.text[: pair.false.spans["statement"][0]]
        )


def test_statements_that_two_models_cut_otherwise_are_left_out() -> None:
    models = [zoo.load_bundled("small-base"), tiny("llama", max_position_embeddings=512)]
    with pytest.raises(DatasetError, match="equally many tokens"):
        tracing_pairs(models, some_topics("animals"), answers=(" a", ":"), shots=0)
    numbers = StatementSet(item for item in sl.datasets.statements(["verbs"]) if item.polarity == 1)
    alone = tracing_pairs(models[1:], numbers, answers=(" a", ":"), shots=0, differ="object")
    assert alone.pairs


def test_reused_statements_are_counted_and_share_a_cluster() -> None:
    model = fact_store(1)
    some = StatementSet([*list(facts())[:8], *list(facts())[12:14]])  # eight true ones, two false ones
    found = tracing_pairs([model], some, shots=0, matching="published")
    assert len(found) == 8
    assert found.reused == 1
    assert len(set(found.clusters.tolist())) == 2
    assert sorted(Counter(found.clusters.tolist()).values()) == [1, 7]
    assert found.left_out == {}


def test_wrong_pairs_are_refused_in_a_sentence(tmp_path: Path) -> None:
    model = fact_store(1)
    statements = facts()
    path = tmp_path / "pairs.jsonl"
    template = "The one {subject} is of kind {object}."

    def rows(*pairs: tuple[str, str]) -> list[StatementPair]:
        path.write_text("".join(json.dumps({"true": true, "false": false}) + "\n" for true, false in pairs))
        return read_pairs(path, template=template)

    good = rows(*(("The one yes1 is of kind thing1.", f"The one no{n} is of kind thing1.") for n in range(3)))
    assert len(tracing_pairs([model], good, shots=0)) == 3
    uneven = rows(("The one yes1 is of kind thing1.", "The one no1 no2 is of kind thing1."))
    with pytest.raises(DatasetError, match=r"Pair 1: .* have 12 and 13 tokens"):
        tracing_pairs([model], uneven, shots=0)
    with pytest.raises(DatasetError, match=r"no \{subject\}"):
        with_template(statements, "The one is of kind {object}.")
    with pytest.raises(DatasetError, match=r"field \{planet\}"):
        with_template(statements, "{subject} is of kind {planet}.")
    with pytest.raises(DatasetError, match="a field twice"):
        with_template(statements, "{subject} is {subject}.")
    with pytest.raises(DatasetError, match="the subject is the whole statement"):
        with_template(statements, "{subject}.")
    with pytest.raises(DatasetError, match="fits none of the"):
        with_template(statements, "A {subject} of {object}.")
    whole = StatementSet(
        Statement(item.text, item.label, spans={"subject": (0, len(item.text)), "object": (0, 3)})
        for item in statements
    )
    with pytest.raises(DatasetError, match="is the whole statement"):
        tracing_pairs([model], whole, shots=0)
    bare = StatementSet(Statement(item.text, item.label) for item in statements)
    with pytest.raises(DatasetError, match="says where its subject and object stand"):
        tracing_pairs([model], bare, shots=0)
    assert len(tracing_pairs([model], with_template(bare, template), shots=0)) == 96
    with pytest.raises(PromptError, match="are one token"):
        tracing_pairs([model], statements, answers=(" TRUE", "TRUE"), shots=0)
    with pytest.raises(PromptError, match=r"tokens"):
        tracing_pairs([model], statements, answers=(" TRUE FALSE", " FALSE"), shots=0)
    only_true = StatementSet(item for item in statements if item.label)
    with pytest.raises(DatasetError, match="have equally many tokens"):
        tracing_pairs([model], only_true, shots=0)
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"x_true_prompts": ["a", "b"], "x_false_prompts": ["c"]}))
    with pytest.raises(DatasetError, match="2 true but 1 false"):
        read_pairs(lists)
    lists.write_text(json.dumps({"true": ["a"]}))
    with pytest.raises(DatasetError, match="NAME_true_prompts"):
        read_pairs(lists)
    path.write_text(json.dumps({"true": "a", "false": "a"}) + "\n")
    with pytest.raises(DatasetError, match="both statements are the same"):
        read_pairs(path)
    mixed = tracing_pairs([zoo.load_bundled("small-base")], zoo.known_statements(), shots=0)
    with pytest.raises(SteerlabError, match="layouts of tokens"):
        trace(zoo.load_bundled("small-base"), mixed, columns="tokens")


# -- maps --


def test_a_map_is_what_patching_one_state_at_a_time_gives() -> None:
    """`Patch` of captured states by the intervention runtime, which knows nothing of sweeps."""
    model = zoo.load_bundled("small-base")
    pairs = tracing_pairs([model], zoo.known_statements(), shots=0, limit=4)
    found = trace(model, pairs)
    own = answer(model, pairs)
    true, false = (model.token_id(word) for word in pairs.answers)
    assert [str(site) for site, _ in found.rows] == ["embed", *map(str, model.sites("resid_post"))]
    for number, pair in enumerate(pairs.pairs):
        logits = model.logits([pair.true, pair.false])
        scale = float(logits.abs().max())
        close(own.true[number], logits[0, true] - logits[0, false], scale=scale)
        close(own.false[number], logits[1, true] - logits[1, false], scale=scale)
        for row, (site, _) in enumerate(found.rows):
            for column, role in enumerate(found.columns):
                places = [p for p, name in zip(pair.positions, pair.roles, strict=True) if name == role]
                if not places:
                    assert np.isnan(found.raw[number, row, column])
                    continue
                values = []
                for place in places:
                    at = _At(place)
                    states = sl.capture(model, [pair.true], site, positions=at)
                    with model.steering(Patch(states, positions=at)):
                        patched = model.logits([pair.false])[0]
                    values.append(float(patched[true] - patched[false]))
                close(found.raw[number, row, column], np.mean(values), scale=scale)


class _At(Selector):
    """One token, counted from 0."""

    def __init__(self, place: int) -> None:
        self.place = place

    def resolve(self, tokens: object, row: int) -> list[int]:
        return [self.place]


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_planted_fact_store_is_found_at_its_layer(layer: int) -> None:
    model = fact_store(layer)
    pairs = tracing_pairs([model], facts(2), shots=0)
    own = answer(model, pairs)
    assert own.right.all()
    stream = trace(model, pairs, answers=own)
    outputs = trace(model, pairs, kind="mlp_out", answers=own)
    subject, last = stream.columns.index("last subject"), stream.columns.index("last token")
    means = mean_map(outputs.nie)
    assert np.unravel_index(np.nanargmax(means), means.shape) == (layer, subject)
    assert means[layer, subject] == pytest.approx(1.0, abs=1e-3)
    others = means.copy()
    others[layer, subject] = 0
    assert np.nanmax(np.abs(others)) < 1e-3
    # The stream: at the subject up to the last layer's attention, then at the last token.
    means = mean_map(stream.nie)
    np.testing.assert_allclose(means[:LAYERS, subject], 1.0, atol=1e-3)
    assert abs(means[LAYERS, subject]) < 1e-3
    assert means[LAYERS, last] == pytest.approx(1.0, abs=1e-3)
    assert np.abs(means[:LAYERS, last]).max() < 1e-3


def test_heads_and_single_tokens() -> None:
    model = fact_store(1)
    pairs = tracing_pairs([model], facts(), shots=0, limit=6)
    heads = trace(model, pairs, kind="heads")
    assert len(heads.rows) == LAYERS * 2
    means = mean_map(heads.nie)
    # Only the first head of the last layer copies, at the last token.
    assert np.unravel_index(np.nanargmax(means), means.shape) == (
        2 * (LAYERS - 1),
        heads.columns.index("last token"),
    )
    assert np.nanmax(means) == pytest.approx(1.0, abs=1e-3)
    tokens = trace(model, pairs, columns="tokens")
    assert tokens.columns[:2] == ("1 before", "2 before")
    assert len(tokens.columns) == len(pairs[0].roles)
    roles = trace(model, pairs)
    mean = tokens.raw[:, :, [at for at, name in enumerate(tokens.columns) if name.endswith("question")]].mean(
        axis=2
    )
    np.testing.assert_allclose(mean, roles.raw[:, :, roles.columns.index("question")], atol=1e-5)
    assert {tokens.columns[at] for at in tokens.knowledge} == {"last subject", "last object"}
    assert map_rows(model)[0] == (Site("embed"), ())


# -- statistics --


def test_the_quantiser_gives_the_published_values() -> None:
    """Llama-3.1-8B-Instruct on cities: mean logit differences, their range, and the published bins of them."""
    low, high = -6.9493, 5.1549
    subject = [3.91, 3.98, 3.60, 3.41, 3.31, 2.89, 1.18]
    object_ = [1.36, 1.56, 1.95, 4.01]
    found = quantised(np.array([[low, high, *subject, *object_, 0.0, -3.0]]))[0]
    np.testing.assert_allclose(
        found[2:-2], [0.8, 0.9, 0.8, 0.8, 0.7, 0.7, 0.4, 0.4, 0.5, 0.5, 0.9], atol=1e-12
    )
    np.testing.assert_allclose(found[[0, 1, -1]], [0.0, 1.0, 0.0])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_quantiser_is_twenty_bins_of_which_the_lower_ten_are_zero(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(7, 9))
    edges = np.linspace(values.min() - 1e-5, values.max() + 1e-5, 21)
    bins = np.digitize(values, edges)  # 1 to 20
    np.testing.assert_allclose(quantised(values), np.clip(bins - 10, 0, 10) / 10, atol=1e-12)


def test_published_statistics_hardly_see_erased_knowledge() -> None:
    """Three bands as in the published map; erasing subject and object leaves a large correlation over all cells."""
    values = np.full((32, 14), -6.9)
    values[1:8, 3], values[8:12, 6] = np.linspace(3.9, 1.2, 7), np.linspace(1.4, 4.0, 4)
    values[15:, 13] = np.linspace(3.5, 5.15, 17)
    erased = values.copy()
    erased[:, [3, 6]] = -6.9
    same, without = published(values, values, (3, 6)), published(values, erased, (3, 6))
    assert same.correlation == pytest.approx(1.0)
    assert same.largest == 0
    assert 0.8 < without.correlation < 0.95
    assert without.largest_knowledge >= 0.8
    one, other = quantised(values), quantised(erased)
    assert without.correlation == pytest.approx(stats.pearsonr(one.ravel(), other.ravel())[0])
    moved = published(values, shifted_down(values), (3, 6))
    assert moved.largest_knowledge >= 0.8


def synthetic(effects: np.ndarray) -> Traced:
    """A sweep with these normalised effects: LO_F = -1, LO_T = 1."""
    n, rows, _ = effects.shape
    return Traced(
        rows=((Site("embed"), ()), *((Site("resid_post", layer), ()) for layer in range(rows - 1))),
        columns=("before", "last subject", "last object", "last token"),
        raw=2 * effects - 1,
        answers=PairAnswers(np.ones(n), -np.ones(n)),
        cost=Cost(),
        mode="suffix",
    )


def test_comparison_finds_the_cell_that_differs_and_no_other() -> None:
    rng = np.random.default_rng(0)
    shape = (40, 6, 4)
    profile = rng.uniform(0, 1, size=shape[1:])
    base = profile + 0.05 * rng.normal(size=shape)
    post = profile + 0.05 * rng.normal(size=shape)
    post[:, 3, 1] += 0.3
    found = compare_maps(synthetic(base), synthetic(post), np.arange(40))
    significant = [(one.row, one.column) for one in found.cells if one.significant]
    assert significant == [(3, 1)]
    cell = next(one for one in found.cells if (one.row, one.column) == (3, 1))
    np.testing.assert_allclose(cell.difference.value, (post - base)[:, 3, 1].mean(), atol=1e-12)
    assert found.largest.value == pytest.approx(cell.difference.value)
    assert found.largest_p < 0.001
    assert all(one.row > 0 for one in found.cells)  # the embedding is left out
    expected = stats.pearsonr(base.mean(0)[1:, 1:3].ravel(), post.mean(0)[1:, 1:3].ravel())[0]
    assert found.correlation.value == pytest.approx(expected)
    assert found.ceilings["base"].value > 0.99
    assert found.crossed.value < found.ceilings["base"].value
    same = compare_maps(synthetic(base), synthetic(base), np.arange(40))
    assert not any(one.significant for one in same.cells)
    assert same.correlation.value == pytest.approx(1.0)
    assert same.largest_p == 1.0


def test_p_values_of_alike_models_are_not_small_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlab.studies._knowledge.statistics._DRAWS", 1000)
    rng = np.random.default_rng(1)
    small = 0
    for seed in range(40):
        base, post = (rng.normal(size=(20, 4, 4)) for _ in range(2))
        found = compare_maps(synthetic(base), synthetic(post), np.repeat(np.arange(10), 2), seed=seed)
        small += found.largest_p <= 0.1
    assert stats.binomtest(int(small), 40, 0.1, alternative="greater").pvalue > 0.01


# -- recovery --


def test_a_store_that_both_have_carries_over_and_another_store_does_not() -> None:
    """Two models with one code and their stores in different layers; a third with another code for truth."""
    base, post, foreign = fact_store(1), fact_store(2), fact_store(1, seed=5)
    pairs = tracing_pairs([base, post, foreign], facts(), shots=0)
    own = trace(post, pairs)
    found, crossed = recover(base, post, pairs, own, names=("base", "post"))
    by_place = {one.place: one for one in found}
    assert set(by_place) == {"subject and object", "last token"}
    # Behind layer 1 base has written the fact, post not yet: there it writes it a second time.
    knowledge_cells = by_place["subject and object"]
    assert knowledge_cells.recovered.low > 0.8
    # Any right subject's state makes any of these statements true, so another pair's does as much.
    assert knowledge_cells.shuffled is not None
    assert knowledge_cells.shuffled.value == pytest.approx(knowledge_cells.recovered.value, abs=0.3)
    assert not knowledge_cells.above_controls
    assert knowledge_cells.random is not None
    assert abs(knowledge_cells.random.value) < 0.3
    assert crossed.raw.shape == own.raw.shape
    there, _ = recover(foreign, post, pairs, own, names=("foreign", "post"))
    assert all(abs(one.recovered.value) < 0.5 for one in there), there
    again, _ = recover(post, post, pairs, own, names=("post", "post"))
    assert all(one.recovered.value == pytest.approx(1.0, abs=1e-4) for one in again)


def test_a_ratio_needs_two_pairs() -> None:
    """A dozen pairs may leave none that has both an effect at the peaks and another pair of its layout."""
    model = fact_store(1)
    pairs = tracing_pairs([model], facts(2), shots=0, limit=8)
    own = trace(model, pairs)
    peaks = {half: np.isfinite(own.nie).all(axis=0) for half in (0, 1)}
    halves = [np.arange(4), np.arange(4, 8)]
    ratios = _Ratios(own, halves, pairs, seed=0)
    for rows, has_ratio in ((0, False), (1, False), (2, True)):
        found = ratios.of(own, np.arange(8) < rows, peaks)
        assert (found is not None) == has_ratio
        assert found is None or found.value == pytest.approx(1.0)


@pytest.mark.usefixtures("smaller_studies")
def test_an_aligner_carries_a_store_into_another_basis() -> None:
    """The same store in a rotated stream: nothing carries over plainly, everything through a rotation."""
    post = fact_store(2)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1))).Q
    base = fact_store(2)
    with torch.no_grad():
        model = base.model
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)
        model.lm_head.weight.copy_(model.lm_head.weight @ turn)
        for layer in model.model.layers:
            for module in (layer.self_attn.v_proj, layer.self_attn.q_proj, layer.self_attn.k_proj):
                module.weight.copy_(module.weight @ turn)
            for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
                module.weight.copy_(module.weight @ turn)
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight.copy_(turn.T @ module.weight)
    plain = knowledge((base, post), facts(3), shots=0, noise=False)
    aligned = knowledge((base, post), facts(3), shots=0, noise=False, aligner=Procrustes())
    read = {
        name: {(one.source, one.place): one.recovered.value for one in result.recovery}
        for name, result in (("plain", plain), ("aligned", aligned))
    }
    key = ("base", "subject and object")
    assert abs(read["plain"][key]) < 0.3
    assert read["aligned"][key] > 0.7


# -- noise --


def test_noise_traces_have_the_effects_that_must_be() -> None:
    model = zoo.load_bundled("small-base")
    known = facts_of(model, zoo.known_statements())
    found = noise_trace(model, known, limit=6, copies=3)
    assert found.facts == 6
    assert found.total.value == pytest.approx(found.clean.value - found.corrupted.value, abs=1e-9)
    assert found.total.value > 0.2
    stream = found.by("resid_post")
    # The last token behind the last block is the clean run.
    last = stream.effects[-1][found.roles.index("last token")]
    assert last.value == pytest.approx(found.total.value, abs=1e-4)
    assert found.severed["whole"][0].value == pytest.approx(
        stream.effects[0][found.roles.index("last subject")].value, abs=1e-4
    )
    assert set(found.severed) == {"whole", "MLPs severed", "attention severed"}
    silent = noise_trace(model, known, limit=4, copies=2, level=0.0)
    assert silent.total.value == pytest.approx(0.0, abs=1e-5)
    assert (
        max(abs(cell.value) for row in silent.by("mlp_out").effects for cell in row if cell.has_interval)
        < 1e-5
    )
    states = sl.capture(model, [fact.prompt for fact in known[:6]], Site("embed"), positions=Span("subject"))
    assert found.noise == pytest.approx(3 * float(states[Site("embed")].std(correction=0)), rel=1e-5)


def test_facts_end_before_their_object() -> None:
    model = zoo.load_bundled("small-base")
    known = facts_of(model, zoo.known_statements())
    texts = {fact.prompt.text for fact in known}
    assert len(texts) == len(known)
    for fact in known:
        assert fact.prompt.spans["subject"][1] <= len(fact.prompt.text)
        word = model.tokenizer.decode([fact.answer])
        assert any(
            item.label and item.text.startswith(fact.prompt.text + word.rstrip())
            for item in zoo.known_statements()
        ), (fact.prompt.text, word)
    with pytest.raises(DatasetError, match="a fact whose object stands at its end"):
        facts_of(model, StatementSet([Statement("Rome is a town.", True)]))
    with pytest.raises(DatasetError, match="says the right word of none"):
        noise_trace(tiny("llama"), facts_of(tiny("llama"), zoo.known_statements())[:3])


# -- the study --


@pytest.fixture(scope="module")
def bundled() -> KnowledgeResult:
    """The study of the large bundled pair on a dozen pairs."""
    with pytest.MonkeyPatch.context() as patch:
        use_smaller_amounts(patch)
        pair = zoo.load_bundled("large-base"), zoo.load_bundled("large-post")
        return knowledge(pair, some_topics("cities"), sites=("mlp_out",), seed=1)


def test_the_study_of_the_bundled_pair(bundled: KnowledgeResult) -> None:
    result = bundled
    assert result.status == "done"
    assert {gate.model for gate in result.gates} == {"base", "post"}
    assert all(gate.both.low > 0.5 for gate in result.gates)
    assert {(one.source, one.target, one.kind) for one in result.maps} == {
        ("base", "base", "resid_post"),
        ("post", "post", "resid_post"),
        ("base", "base", "mlp_out"),
        ("post", "post", "mlp_out"),
        ("base", "post", "resid_post"),
        ("post", "base", "resid_post"),
    }
    own = result.map("base", "base")
    last = own.columns.index("last token")
    assert own.effects[-1][last].value == pytest.approx(1.0, abs=1e-4)
    assert result.comparison is not None
    assert result.recovery
    assert result.noise
    assert result.spent["base"].mode == "suffix"
    assert result.spent["base"].saving > 1
    assert result_from_dict(result.to_dict()).to_dict() == result.to_dict()
    assert {"maps", "maps_mlp_out", "crossed", "recovery"} <= set(result.figures())
    for table in result.tables():
        assert table.rows or table.key == "cells"
    assert "resid" not in " ".join(result.summary)


def test_a_pair_that_cannot_be_asked_is_refused_before_anything_is_read() -> None:
    base = tiny("llama", max_position_embeddings=512)
    with pytest.raises(PromptError, match="None of the answers TRUE or FALSE, true or false"):
        knowledge((base, base), sl.datasets.statements(["cities"]))
    with pytest.raises(PromptError, match="true or b cannot be asked for"):
        knowledge((base, base), sl.datasets.statements(["cities"]), answers=(" true", " b"))


def test_models_at_chance_are_not_mapped() -> None:
    base, post = (tiny("llama", seed=seed, max_position_embeddings=512) for seed in (0, 1))
    statements = sl.datasets.statements(["cities", "animals", "numbers"])
    result = knowledge((base, post), statements, answers=(" a", ":"), shots=0)
    assert result.status == "not identified"
    assert "no knowledge" in result.summary[0]
    assert not result.maps
    assert [table.key for table in result.tables()] == ["gate"]


def test_pairs_that_are_answered_wrong_are_left_out() -> None:
    """A third of the subjects is of the other kind than the model has it."""
    model = fact_store(1)
    swapped = StatementSet(
        Statement(item.text, not item.label, item.topic, 1, item.spans)
        if item.text.split()[2].removeprefix("yes").removeprefix("no") in {"0", "1", "2"}
        else item
        for item in facts(3)
    )
    result = knowledge((model, fact_store(2)), swapped, shots=0, noise=False)
    assert result.setting.traced == min(64, result.gates[0].right)
    assert result.gates[0].right < result.gates[0].pairs
    fewer = StatementSet(item for n, item in enumerate(swapped) if item.label or n % 3)
    kept = knowledge((model, fact_store(2)), fewer, shots=0, noise=False, preset="published")
    assert kept.setting.traced == min(64, kept.setting.made)
    assert kept.gates[0].right < kept.gates[0].pairs
    assert kept.setting.columns == "tokens"
    assert kept.setting.reused > 0


def test_other_sites_may_be_missing_but_not_the_residual_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(*mapped: str) -> None:
        def trace_or_refuse(*given: Any, kind: str, **options: Any) -> Traced:
            if kind not in mapped:
                raise SiteError(f"There is no {kind} here.")
            return trace(*given, kind=kind, **options)

        monkeypatch.setattr("steerlab.studies._knowledge.study.trace", trace_or_refuse)

    pair, few = (fact_store(1), fact_store(2)), facts(3)
    only("resid_post")
    result = knowledge(pair, few, shots=0, noise=False, sites=("mlp_out",))
    assert "There is no mlp_out here" in result.missing["mlp_out base"]
    assert result.comparison is not None
    only("mlp_out")
    with pytest.raises(SiteError, match="There is no resid_post here"):
        knowledge(pair, few, shots=0, noise=False, sites=("mlp_out",))


@pytest.mark.usefixtures("smaller_studies")
def test_what_a_pair_cannot_take_is_said() -> None:
    small, large = zoo.load_bundled("small-base"), zoo.load_bundled("large-base")
    result = knowledge((small, large), some_topics("cities"), noise=False)
    assert "no common rows" in result.missing["comparison"]
    assert "were not put across" in result.missing["recovery"]
    with pytest.raises(SteerlabError, match="no size 'huge'"):
        knowledge((small, small), zoo.known_statements(), size="huge")  # type: ignore[arg-type]
    with pytest.raises(SteerlabError, match="no preset 'none'"):
        knowledge((small, small), zoo.known_statements(), preset="none")  # type: ignore[arg-type]
    few = StatementSet(list(facts())[:24])
    model = fact_store(1)
    with pytest.raises(SteerlabError, match="left to fit the aligner"):
        knowledge((model, model), few, shots=0, noise=False, aligner=Ridge())


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    model = fact_store(1)
    kept = tmp_path / "kept"
    first = knowledge((model, fact_store(2)), facts(2), shots=0, noise=False, kept_in=kept)
    stored = sorted(path.name for path in kept.glob("*.npz"))
    assert stored
    again = knowledge((model, fact_store(2)), facts(2), shots=0, noise=False, kept_in=kept)
    assert sorted(path.name for path in kept.glob("*.npz")) == stored
    one, other = first.to_dict(), again.to_dict()
    del one["spent"], other["spent"]
    assert one == other
    # What was finished did not run again.
    assert again.spent["base"].token_layers < first.spent["base"].token_layers


def test_one_layout_keeps_the_commonest() -> None:
    model = zoo.load_bundled("small-base")
    pairs = tracing_pairs([model], zoo.known_statements(), shots=0)
    one = of_one_layout(pairs)
    counts = Counter(pair.roles for pair in pairs.pairs)
    assert len(one) == counts.most_common(1)[0][1]
    assert len({pair.roles for pair in one.pairs}) == 1
