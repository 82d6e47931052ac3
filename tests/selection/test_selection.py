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

from steerlab.datasets import ContrastSet
from steerlab.errors import DatasetError, PromptError, SteerlabError
from steerlab.models import LanguageModel, Site, load_model
from steerlab.readouts.refusals import Judge, odds_of, refusal_tokens
from steerlab.readouts.requests import Split, class_means, direction_at
from steerlab.selection.scores import Odds, Scorer, divergence
from steerlab.selection.select import Candidate, Selection, choose, read_scores, select_direction, survivors
from steerlab.steering import Ablate, Add

# Arditi et al.'s recorded runs, by the beginning of their names: layers, candidates, survivors, position and layer.
RECORDED = {
    "gemma-2b": (18, 90, 13, -2, 10),
    "llama-2-7b": (32, 192, 5, -1, 14),
    "meta-llama-3-8b": (32, 160, 25, -5, 12),
    "qwen-1_8b": (24, 120, 12, -2, 15),
    "yi-6b": (32, 192, 7, -5, 20),
}


def test_the_published_rule_chooses_what_was_recorded(shared: Path) -> None:
    folders = [path for path in sorted((shared / "data/refusal_direction_runs").iterdir()) if path.is_dir()]
    assert len(folders) >= 2
    for folder in folders:
        candidates = read_scores(folder / "direction_evaluations.json")
        recorded = json.loads((folder / "direction_metadata.json").read_text())
        n_layers, n, kept, *place = next(
            values for name, values in RECORDED.items() if folder.name.startswith(name)
        )
        assert len(candidates) == n
        for found in (survivors(candidates), survivors(candidates, n_layers), survivors(candidates[::-1])):
            assert len(found) == kept
            assert [found[0].position, found[0].layer] == place == [recorded["pos"], recorded["layer"]]


def test_recorded_scores_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    good = '{"layer": 1, "position": -1, "refusal_score": NaN, "steering_score": 1.0, "kl_div_score": null}'
    path.write_text(f"[{good}]")
    one = read_scores(path)[0]
    assert (one.layer, one.position, one.induce) == (1, -1, 1.0)
    assert np.isnan([one.bypass, one.kl]).all()
    assert survivors([one], 4) == []
    for text, sentence in (
        ("{", "cannot be read"),
        ("{}", "no list"),
        (f"[{good}, {{}}]", "row 1: no 'layer'"),
        (f"[{good}]".replace("1.0", '"x"'), "row 0, 'steering_score': 'x' is not a number"),
        (f"[{good}]".replace("1,", "1.5,", 1), "'layer': 1.5"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match=sentence):
            read_scores(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_scores(tmp_path / "missing.json")


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
    assert "missing" in one(bypass=float("nan")).dropped(4)
    assert "missing" in one(kl=float("nan")).dropped(4)
    equal = [one(2, -1), one(1, -1), one(2, -2)]
    assert [(x.position, x.layer) for x in survivors(equal, 4)] == [(-2, 2), (-1, 1), (-1, 2)]
    assert survivors([one(bypass=2.0), one(2, bypass=-3.0)], 4)[0].bypass == -3.0
    assert survivors([one(3)], 4) == []
    assert "equal means" in one(gap=0.0).dropped(4)


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
    found = class_means(model, split, site="resid_pre").differences
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
        change = scorer.everywhere(vectors)
        np.testing.assert_allclose(scorer.bypass(change), bypass, atol=1e-4)
        every, bounds = scorer.kl(change)
        np.testing.assert_allclose(every, kl, atol=1e-4)
        assert not bounds.any()
        ceiling = float(np.median(kl))
        bounded, _ = scorer.kl(change, ceiling)
        early, bounds = scorer.kl(change, 1e-9)
        assert bounds.all()
        assert (early > 1e-9).all()
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
    exact, floored = divergence(p, near), divergence(p, near, floor=1e-6)
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
    assert again.to_dict() == found.to_dict()
    verdicts = [again.verdict(place) for place in again.candidates]
    assert verdicts == [found.verdict(place) for place in found.candidates]
    assert sum(verdict.startswith("chosen") for verdict in verdicts) == 1
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
    assert all(np.isnan(place.bypass) for place in found.candidates)
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
            lambda self, change, ceiling=np.inf, progress=None: (
                np.full(len(change), kl),
                np.zeros(len(change), dtype=bool),
            ),
        )
        return choose(judge, train, val, refuses=True)

    assert chosen(1.0, 0.01).rule.endswith("with KL <= 0.1")
    assert "no candidate has induce" in chosen(-1.0, 0.01).rule
    assert "with KL <= 0.5" in chosen(1.0, 0.4).rule
    assert "no candidate has KL" in chosen(1.0, 0.6).rule
    assert chosen(1.0, 0.6).chosen.layer < max(1, int(0.8 * n))


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


def test_splits_are_strict(refusing: LanguageModel) -> None:
    requests = planted.requests()
    train, val = requests.split("train"), requests.split("val")
    whole, apart = select_direction(refusing, requests), select_direction(refusing, train, val)
    assert whole.to_dict() == apart.to_dict()
    same = ContrastSet(("How do I hurt1 a thing1 ?",) * 8, ("How do I help1 a thing1 ?",) * 8)
    spaced = ContrastSet(("How do I  hurt1 a thing1 ?",), ("How do I help2 a thing1 ?",))
    for parts, sentence in (
        ((same, same), "share 2 prompts"),
        ((same, spaced), "share 1 prompts"),
        ((requests, val), "training prompts hold several splits"),
        ((train, requests), "validation prompts hold several splits"),
        ((train, ContrastSet((), ("x",))), "validation prompts are 0 harmful and 1 harmless"),
        ((train,), "have no splits"),
    ):
        with pytest.raises(DatasetError, match=sentence):
            select_direction(refusing, *parts)


def test_a_contrast_of_ones_own_goes_by_its_words() -> None:
    """A model that says TRUE after good objects: the words are the answer, no phrase of a refusal occurs."""
    model = planted.planted()
    texts = [
        [f"{subject} is {thing} ." for subject, thing in zip(planted.SUBJECTS, things, strict=False)]
        for things in (planted.GOOD, planted.BAD)
    ]
    kinds = [[f"{text} This statement is :" for text in part] for part in texts]
    train, val = (
        ContrastSet(*(tuple(part[rows]) for part in kinds), positive_name="true", negative_name="false")
        for rows in (slice(0, 10), slice(10, None))
    )
    found = select_direction(model, train, val, tokens=["TRUE"], template="none", scores="all")
    vector = found.direction[found.direction.sites[0]].double()
    assert float(vector @ planted.truth_axis().double() / vector.norm()) > 0.9
    assert found.tokens == ("TRUE",)
    assert "refus" not in found.rule
    assert found.chosen.bypass < 0 < found.chosen.induce
    assert "bypass (ablated, true: low is good)" in {each.text for each in found.plot().layout.annotations}
    with pytest.raises(PromptError, match="choose a word"):
        select_direction(model, train, val, tokens=["TRUE FALSE"], template="none")


def test_the_published_preset_is_the_published_code(refusing: LanguageModel) -> None:
    """Every score from a loop written down anew: filter, left padding, hooks on modules, floors in the logarithms."""
    requests = planted.requests()
    found = select_direction(refusing, requests, rule="published", scores="all")
    module, token = refusing.model, planted.WORDS.index("I")
    blocks = module.model.layers

    @torch.no_grad()
    def logits(prompts, hooks=()):
        handles = [place(hook) for place, hook in hooks]
        tokens = refusing.tokenize(prompts, padding_side="left")
        try:
            return module(tokens.input_ids, attention_mask=tokens.attention_mask).logits[:, -1].double()
        finally:
            for handle in handles:
                handle.remove()

    def score(values: torch.Tensor) -> torch.Tensor:
        p = values.softmax(-1)[:, token]
        return torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)

    def kept(part: ContrastSet):
        harmful, harmless = (
            [refusing.instruction_prompt(text) for text in texts] for texts in (part.positive, part.negative)
        )
        return [
            [
                prompt
                for prompt, right in zip(prompts, sign * score(logits(prompts)) > 0, strict=True)
                if right
            ]
            for prompts, sign in ((harmful, 1), (harmless, -1))
        ]

    def states(prompts):
        seen: list[torch.Tensor] = []
        take = lambda module, args: seen.append(args[0][:, -3:].double().mean(0))  # noqa: E731
        logits(prompts, [(block.register_forward_pre_hook, take) for block in blocks])
        return torch.stack(seen)

    def ablated(unit: torch.Tensor):
        def without(x: torch.Tensor) -> torch.Tensor:
            return x - (x @ unit)[..., None] * unit

        hooks = []
        for block in blocks:
            hooks.append((block.register_forward_pre_hook, lambda m, a: (without(a[0]), *a[1:])))
            hooks.append((block.self_attn.register_forward_hook, lambda m, a, o: (without(o[0]), *o[1:])))
            hooks.append((block.mlp.register_forward_hook, lambda m, a, o: without(o)))
        return hooks

    train, val = kept(requests.split("train")), kept(requests.split("val"))
    assert found.kept == (*map(len, train), *map(len, val))
    differences = states(train[0]) - states(train[1])
    plain = logits(val[1]).softmax(-1)
    assert {one.position for one in found.candidates} == {-3, -2, -1}
    compared = 0
    for one in found.candidates:
        r = differences[one.layer, one.position].float()
        assert one.gap == pytest.approx(float(r.norm()), rel=1e-4)
        if one.gap < 1e-4:  # equal means: the published code scores a direction made of rounding
            continue
        compared += 1
        unit = r / (r.norm() + 1e-8)
        assert one.bypass == pytest.approx(float(score(logits(val[0], ablated(unit))).mean()), abs=1e-3)
        after = logits(val[1], ablated(unit)).softmax(-1)
        kl = (plain * (torch.log(plain + 1e-6) - torch.log(after + 1e-6))).sum(-1).mean()
        assert one.kl == pytest.approx(float(kl), abs=1e-4)
        add = (blocks[one.layer].register_forward_pre_hook, lambda m, a, r=r: (a[0] + r, *a[1:]))
        assert one.induce == pytest.approx(float(score(logits(val[1], [add])).mean()), abs=1e-3)
    assert compared >= 6
    assert found.chosen == survivors(found.candidates, refusing.n_layers)[0]
    assert found.site == "resid_pre"


def test_the_published_rule_needs_tokens(refusing: LanguageModel) -> None:
    requests = planted.requests()
    with pytest.raises(SteerlabError, match="goes by nothing else"):
        select_direction(refusing, requests, rule="published", tokens=[])
    with pytest.raises(SteerlabError, match="no rule 'best'"):
        select_direction(refusing, requests, rule="best")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt2", "minimind3", "mistral-sp"])
def test_refusal_tokens_of_real_tokenizers(shared: Path, name: str) -> None:
    from families import build

    tokenizer = AutoTokenizer.from_pretrained(shared / "models/tokenizers" / name, local_files_only=True)
    model = load_model(build("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
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
