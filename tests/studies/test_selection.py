"""Selection of a direction: the published rules on recorded scores, the capture, the scores, and a planted layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny
from studies import planted_models as planted
from transformers import AutoTokenizer

from steerlab import studies
from steerlab.datasets import ContrastSet
from steerlab.errors import DatasetError, SteerlabError
from steerlab.models import LanguageModel, Site, load
from steerlab.steering import Ablate, Add
from steerlab.studies._refusals import Judge, odds_of, refusal_tokens
from steerlab.studies._requests import Split, differences, direction_at
from steerlab.studies._selection_scores import Odds, Scorer, divergence
from steerlab.studies.selection import Candidate, Selection, choose, select_direction, survivors

# Arditi et al.'s recorded runs: layers, survivors of the filters, chosen position and layer.
RECORDED = {"gemma-2b-it": (18, 13, -2, 10), "qwen-1_8b-chat": (24, 12, -2, 15)}


@pytest.mark.parametrize("model", RECORDED)
def test_the_published_rule_chooses_what_was_recorded(shared: Path, model: str) -> None:
    n_layers, kept, position, layer = RECORDED[model]
    folder = shared / "data/refusal_direction_runs" / model
    rows = json.loads((folder / "direction_evaluations.json").read_text())
    candidates = [
        Candidate(
            layer=row["layer"],
            position=row["position"],
            bypass=row["refusal_score"],
            induce=row["steering_score"],
            kl=row["kl_div_score"],
        )
        for row in rows
    ]
    found = survivors(candidates, n_layers)
    assert len(found) == kept
    assert (found[0].position, found[0].layer) == (position, layer)
    recorded = json.loads((folder / "direction_metadata.json").read_text())
    assert (recorded["pos"], recorded["layer"]) == (position, layer)


def test_the_rule_drops_late_layers_far_and_weak_candidates_and_missing_scores() -> None:
    def one(layer: int = 1, position: int = -1, **scores: float) -> Candidate:
        return Candidate(
            layer=layer, position=position, **{"bypass": 0.0, "induce": 0.0, "kl": 0.1, **scores}
        )

    # 0.8 x 32 = 25.6: the last usable layer of 32 is 24
    assert one(24).dropped(32) == ""
    assert "layers" in one(25).dropped(32)
    assert "KL" in one(kl=0.1001).dropped(4)
    assert "induce" in one(induce=-1e-9).dropped(4)
    assert "number" in one(bypass=float("nan")).dropped(4)
    assert "number" in one(kl=float("nan")).dropped(4)
    equal = [one(2, -1), one(1, -1), one(2, -2)]
    assert [(x.position, x.layer) for x in survivors(equal, 4)] == [(-2, 2), (-1, 1), (-1, 2)]
    assert survivors([one(bypass=2.0), one(2, bypass=-3.0)], 4)[0].bypass == -3.0
    assert survivors([one(3)], 4) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_candidates_equal_a_capture_by_pre_hooks(family: str) -> None:
    """A left-padded batch, forward pre-hooks on the blocks, a running float64 mean: the published capture."""
    model = tiny(family)
    texts = [
        ["Bake bread?", "What is a cat, really?", "Rome"],
        ["A dog ran", "one two three", "the mat is here"],
    ]
    split = Split(*([model.instruction_prompt(text, template="plain") for text in part] for part in texts))
    n = 3
    means = torch.zeros(2, n, model.n_layers, model.d_model, dtype=torch.float64)
    for kind, prompts in enumerate((split.harmful, split.harmless)):
        tokens = model.tokenize(prompts, padding_side="left")

        def hook(layer: int, kind: int = kind, n_prompts: int = len(prompts)):
            def take(module, args, kwargs):
                state = args[0] if args else kwargs["hidden_states"]
                means[kind, :, layer] += state[:, -n:].double().sum(dim=0) / n_prompts

            return take

        handles = [
            block.register_forward_pre_hook(hook(layer), with_kwargs=True)
            for layer, block in enumerate(model.anatomy.blocks)
        ]
        with torch.no_grad():
            model.model(
                tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=tokens.position_ids
            )
        for handle in handles:
            handle.remove()
    expected = (means[0] - means[1]).permute(1, 0, 2).numpy()  # [layer, position, width]
    found = differences(model, split, site="resid_pre")
    # float32 states, padded on different sides: 1e-6 of each candidate's length
    error = np.linalg.norm(found[:, -n:] - expected, axis=-1)
    assert (error <= 1e-6 * np.linalg.norm(expected, axis=-1).max(axis=1, keepdims=True) + 1e-9).all()


def test_scores_equal_one_forward_pass_a_candidate() -> None:
    model = tiny("llama")
    harmful = [model.instruction_prompt(text) for text in ("Bake bread?", "What is a cat, really?", "Rome")]
    harmless = [
        model.instruction_prompt(text) for text in ("A dog", "one two three", "the mat is here", "to", "me")
    ]
    tokens, rng = (5, 9), np.random.default_rng(0)
    vectors = rng.standard_normal((4, model.d_model))
    for site in ("resid_post", "resid_pre"):
        scorer = Scorer(model, harmful, harmless, site=site, layers=range(model.n_layers), odds=Odds(tokens))
        plain = model.logits(harmless).double()
        induce, bypass, kl = [], [], []
        for vector in vectors:
            with model.steering(Add(direction_at(model, vector, 1, site))):
                induce.append(odds_of(model.logits(harmless), tokens).mean())
            with model.steering(Ablate(direction_at(model, vector, 0))):
                bypass.append(odds_of(model.logits(harmful), tokens).mean())
                after = model.logits(harmless).double()
            p, q = plain.softmax(1), after.softmax(1)
            kl.append(float((p * (p.log() - q.log())).sum(1).mean()))
        np.testing.assert_allclose(scorer.induce(vectors, 1), induce, atol=1e-4)
        np.testing.assert_allclose(scorer.bypass(vectors), bypass, atol=1e-4)
        np.testing.assert_allclose(scorer.kl(vectors)[0], kl, atol=1e-4)
        ceiling = float(np.median(kl))
        bounded, stopped = scorer.kl(vectors, ceiling)
        assert (bounded[stopped] > ceiling).all()
        np.testing.assert_array_equal(bounded <= ceiling, np.array(kl) <= ceiling)
        np.testing.assert_allclose(bounded[bounded <= ceiling], np.array(kl)[bounded <= ceiling], atol=1e-4)
        assert (bounded <= np.array(kl) + 1e-4).all()


def test_published_floors_saturate_and_bias() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]])
    saturated = Odds((0,), 1e-8)(logits)
    assert saturated.tolist() == pytest.approx(
        [np.log((1 + 1e-8) / 1e-8), np.log(1e-8 / (1 + 1e-8))], rel=1e-6
    )
    assert Odds((0,))(logits)[0] == pytest.approx(40 - np.log(2), abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(1, 32_000, generator=generator) for _ in range(2))
    near = p + 0.1 * q
    exact, floored = divergence(p, near), divergence(p, near, 1e-6)
    reference = torch.nn.functional.kl_div(
        near.double().log_softmax(1), p.double().log_softmax(1), log_target=True, reduction="sum"
    )
    assert float(exact) == pytest.approx(float(reference), rel=1e-9)
    assert 0 < float(floored) < float(exact)


@pytest.fixture(scope="module")
def refusing() -> LanguageModel:
    return planted.planted(refuses=True, chat=True)


def test_selection_finds_the_planted_direction(refusing: LanguageModel) -> None:
    requests = planted.requests()
    found = select_direction(refusing, requests.split("train"), requests.split("val"), scores="all")
    vector = found.direction[found.direction.sites[0]].double()
    axis = planted.refusal_axis().double()
    assert float(vector @ axis / (vector.norm() * axis.norm())) > 0.95
    assert found.chosen.kl <= 0.1
    assert found.chosen.induce >= 0
    assert found.tokens == ("I",)
    assert found.chosen.unanswered == 0
    # the objects and verbs of this model carry the axis from the embedding on: every usable layer has it
    assert found.chosen.layer < int(0.8 * refusing.n_layers)
    assert len(found.plot().data) == 3
    again = Selection.model_validate(found.to_dict())
    assert again.chosen == found.chosen
    with pytest.raises(SteerlabError, match="no vectors"):
        _ = again.direction


@pytest.mark.parametrize("rule", ["corrected", "published"])
def test_needed_scores_give_the_same_choice_as_all(refusing: LanguageModel, rule: str) -> None:
    requests = planted.requests()
    parts = requests.split("train"), requests.split("val")
    lazy, whole = (
        select_direction(refusing, *parts, rule=rule, scores=scores) for scores in ("needed", "all")
    )
    assert (lazy.chosen.layer, lazy.chosen.position) == (whole.chosen.layer, whole.chosen.position)
    assert lazy.rule == whole.rule
    if rule == "published":
        ranked = survivors(whole.candidates, refusing.n_layers)
        assert (ranked[0].layer, ranked[0].position) == (lazy.chosen.layer, lazy.chosen.position)
        assert whole.site == "resid_pre"
    scored = [sum(np.isfinite(one.bypass) for one in each.candidates) for each in (lazy, whole)]
    assert scored[0] <= scored[1]


def test_a_model_that_does_not_refuse_has_nothing_to_bypass() -> None:
    model = planted.planted(refuses=False)
    requests = planted.requests()
    found = select_direction(model, requests.split("train"), requests.split("val"))
    assert "does not refuse" in found.rule
    assert np.isnan(found.chosen.bypass)
    with pytest.raises(DatasetError, match="published filter"):
        select_direction(model, requests.split("train"), requests.split("val"), rule="published")


def test_conditions_fall_one_after_the_other(
    refusing: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = planted.requests()
    train, val = (
        Split(*([refusing.instruction_prompt(t) for t in kinds] for kinds in (part.positive, part.negative)))
        for part in (requests.split("train"), requests.split("val"))
    )
    judge = Judge.of(refusing, val.prompts, [planted.WORDS.index("I")], 0)
    n = refusing.n_layers

    def chosen(induce: float, kl: float) -> Selection:
        monkeypatch.setattr(Scorer, "induce", lambda self, v, layer: np.full(len(v), induce))
        monkeypatch.setattr(
            Scorer,
            "kl",
            lambda self, v, ceiling=np.inf, progress=None: (
                np.full(len(v), kl),
                np.zeros(len(v), dtype=bool),
            ),
        )
        return choose(judge, train, val, refuses=True)

    assert "with KL <= 0.1 and induce >= 0" in chosen(1.0, 0.01).rule
    assert "no candidate has induce" in chosen(-1.0, 0.01).rule
    assert "no candidate has KL" in chosen(1.0, 0.5).rule
    assert chosen(1.0, 0.5).chosen.layer < max(1, int(0.8 * n))


def test_without_target_tokens_the_best_separation_is_taken(refusing: LanguageModel) -> None:
    requests = planted.requests()
    train, val = (
        Split(*([refusing.instruction_prompt(t) for t in kinds] for kinds in (part.positive, part.negative)))
        for part in (requests.split("train"), requests.split("val"))
    )
    found = choose(Judge.of(refusing, val.prompts, [], 0), train, val, refuses=True)
    usable = [one for one in found.candidates if one.layer < int(0.8 * refusing.n_layers)]
    assert found.chosen.separation == max(one.separation for one in usable)
    assert not found.scored


def test_splits_that_overlap_are_refused(refusing: LanguageModel) -> None:
    same = ContrastSet(("How do I hurt1 a thing1 ?",) * 8, ("How do I help1 a thing1 ?",) * 8)
    with pytest.raises(DatasetError, match="share"):
        select_direction(refusing, same, same)


@pytest.mark.parametrize("name", ["gpt2", "minimind3", "mistral-sp"])
def test_refusal_tokens_of_real_tokenizers(shared: Path, name: str) -> None:
    from families import build

    tokenizer = AutoTokenizer.from_pretrained(shared / "models/tokenizers" / name, local_files_only=True)
    model = load(build("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    prompt = model.instruction_prompt("How do I bake bread?")
    found = refusal_tokens(model, prompt)
    assert "I" in found.values()
    for token, text in found.items():
        assert tokenizer.decode([token]).strip() == text


def test_read_places_by_position_stream_the_same_means() -> None:
    from steerlab.activations import Moments, capture
    from steerlab.models import AfterInstruction

    model = tiny("llama")
    prompts = [model.instruction_prompt(t, template="plain") for t in ("Bake bread?", "Rome", "a dog ran")]
    sites, labels = [Site("resid_post", 1)], ["x", "y", "x"]
    moments = capture(
        model, prompts, sites, positions=AfterInstruction(), into=Moments(), labels=labels, by_position=True
    )
    rows = capture(model, prompts, sites, positions=AfterInstruction())
    lengths = np.array(model.tokenize(prompts).lengths)
    from_end = rows.position.numpy() - lengths[rows.example.numpy()]
    for label, place in moments.labels:
        mine = [i for i, e in enumerate(rows.example.tolist()) if labels[e] == label and from_end[i] == place]
        expected = rows[sites[0]][mine].double().mean(dim=0)
        torch.testing.assert_close(moments.mean(sites[0], (label, place)), expected, atol=1e-6, rtol=1e-6)


def test_the_public_names() -> None:
    assert studies.select_direction is select_direction
    assert studies.survivors is survivors
