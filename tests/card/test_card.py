"""The steering card: planted effects are found, harm is harm, and nothing is said that its control reaches."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from smaller import CARD as SMALL

import steerlab as sl
from steerlab.card import SteeringCard, making, steering_card
from steerlab.card.utility import Measure
from steerlab.datasets.steering_tasks import Probe, SteeringTask, steering_task
from steerlab.errors import RunError, SteeringError
from steerlab.models import LanguageModel, Prompt
from steerlab.statistics import Estimate

TEXTS = (
    "How do I feed a horse?", "Tell me how to wash the dog.", "Explain how to clean a school.", "Show me a plan.",
    "What is the best way to start?", "Can you help me?", "How do I open the door?", "Tell me a story.",
    "Is the sky blue?", "Where is the bank?",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return sl.load("zoo:small-post")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "AMOUNTS", {"quick": SMALL, "full": SMALL})


def planted(model: LanguageModel, towards: str, away: str) -> sl.Direction:
    """What the unembedding adds to one token and takes from another: log-odds rise wherever it is added last."""
    rows = [model.token_ids([text])[0][-1] for text in (towards, away)]
    unembedding = model.model.get_output_embeddings().weight.detach().float()
    site = model.sites("resid_post")[-1]
    return sl.Direction({site: unembedding[rows[0]] - unembedding[rows[1]]}, model.name, model.fingerprint)


def reversed_in(share: float) -> SteeringTask:
    """Probes of which so many ask for the other side: every one moves by as much, some of them away."""
    turned = round(share * len(TEXTS))
    probes = [
        Probe(text, " No", " Yes") if at < turned else Probe(text, " Yes", " No")
        for at, text in enumerate(TEXTS)
    ]
    return SteeringTask("agreeing", "Say yes.", tuple(probes), rewording="Please: {text}")


@pytest.fixture(scope="module")
def mixed(model: LanguageModel) -> SteeringCard:
    """A card where 30 % of the prompts are planted the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "AMOUNTS", {"quick": SMALL})
        edit = sl.Add(planted(model, " Yes", " No"), strength=2.0)
        return steering_card(model, edit, reversed_in(0.3), doses=(0.5, 2), predicted=False)


def test_a_planted_share_of_reversed_prompts_is_recovered(mixed: SteeringCard) -> None:
    one = mixed.effects.at()
    assert one.wrong_way.value == pytest.approx(0.3)
    assert one.wrong_way.low <= 0.3 <= one.wrong_way.high
    assert mixed.effects.monotone is not None
    assert mixed.effects.monotone.value == pytest.approx(0.7)  # the others fall with every dose
    assert [probe.by_dose[1] < 0 for probe in mixed.effects.probes] == [True] * 3 + [False] * 7


def test_the_verdict_says_that_prompts_are_turned(model: LanguageModel) -> None:
    edit = sl.Add(planted(model, " Yes", " No"), strength=2.0)
    straight = steering_card(model, edit, reversed_in(0.0), doses=(1,), predicted=False)
    assert straight.status == "done"
    assert straight.verdict.startswith("Works (")
    assert "the wrong way" not in straight.verdict
    # three of ten turned leave a mean above every random direction's, told with the share
    turned = straight.model_copy(
        update={
            "effects": straight.effects.model_copy(
                update={
                    "doses": [
                        straight.effects.at().model_copy(
                            update={"wrong_way": Estimate(value=0.31, low=0.2, high=0.45, n=40)}
                        )
                    ]
                }
            )
        }
    )
    assert (
        "turns 31 % [20, 45] of the prompts the wrong way"
        in SteeringCard.model_validate(turned.model_dump()).verdict
    )


def test_effects_are_those_of_the_model_s_own_logits(model: LanguageModel) -> None:
    edit = sl.Add(planted(model, " Yes", " No"), strength=2.0)
    card = steering_card(model, edit, reversed_in(0.0), doses=(1,), predicted=False)
    on, off = (model.token_ids([text])[0][-1] for text in (" Yes", " No"))
    prompts = [model.instruction_prompt(text, think=False) for text in TEXTS]
    texts = [[replace(prompt, text=prompt.text + end) for prompt in prompts] for end in (" Yes", " No")]
    heads = [ids[:-1] for ids in model.token_ids(texts[0])]
    found = []
    for head in (
        heads
    ):  # transformers' own forward, one prompt at a time, with the vector added to the last block's output
        with torch.no_grad():
            plain = model.model(torch.tensor([head])).logits[0, -1].double()
            with model.steering(edit):
                steered = model.model(torch.tensor([head])).logits[0, -1].double()
        found.append(float((steered[on] - steered[off]) - (plain[on] - plain[off])))
    scale = max(map(abs, found))
    given = [probe.by_dose[0] for probe in card.effects.probes]
    assert np.allclose(given, found, atol=1e-5 * scale)


def test_a_random_direction_is_not_identified(model: LanguageModel) -> None:
    drawn = sl.Add(planted(model, " Yes", " No"), strength=0.05).random_like(5)
    card = steering_card(model, drawn, reversed_in(0.5), doses=(1,), predicted=False)
    assert card.status == "not identified"
    assert card.verdict.startswith("Not identified")
    assert not card.gates[0].passed


def test_asking_and_gates_stand_beside(mixed: SteeringCard) -> None:
    assert [one.name for one in mixed.effects.baselines] == ["asked in the prompt"]
    assert [gate.name for gate in mixed.gates] == ["control", "utility", "robustness"]
    names = {form.name for form in mixed.robustness.forms}
    assert {"other words", "another role", "another template", "a long prompt"} <= names
    assert "another language" in mixed.robustness.missing
    assert "a system message" in mixed.robustness.missing  # the bundled template takes none
    assert {measure.way for measure in mixed.utility.measures} == {"0.5", "1", "2", "asked in the prompt"}


@pytest.mark.parametrize(
    ("bad", "low", "high", "harmful"),
    [("more", 0.1, 0.3, True), ("more", -0.1, 0.3, False), ("less", -0.3, -0.1, True), ("", 0.1, 0.3, False)],
)
def test_harm_is_an_interval_on_the_bad_side(bad: str, low: float, high: float, harmful: bool) -> None:
    share = Estimate(value=0.5, low=0.3, high=0.7)
    change = Estimate(value=(low + high) / 2, low=low, high=high)
    measure = Measure.model_validate(
        {
            "way": "1",
            "what": "answers that loop",
            "unsteered": share,
            "value": share,
            "change": change,
            "bad": bad,
        }
    )
    assert measure.harmful is harmful
    # a loss is held against the answers that were asked for
    beyond = measure.model_copy(update={"excess": Estimate(value=0.0, low=-0.1, high=0.1)})
    assert not beyond.harmful


def test_harm_at_the_strength_given_is_told_beside_its_effect(mixed: SteeringCard) -> None:
    doses = [
        one.model_copy(
            update={
                "effect": Estimate(value=3.0, low=2.0, high=4.0),
                "random": Estimate(value=0.0, low=-1.0, high=1.0),
            }
        )
        for one in mixed.effects.doses
    ]
    share = Estimate(value=0.5, low=0.3, high=0.7)

    def measure(dose: float, low: float) -> Measure:
        change = Estimate(value=0.2, low=low, high=0.4)
        what = "answers that loop"
        return Measure(way=f"{dose:g}", what=what, unsteered=share, value=share, change=change, bad="more")

    def told(*harmful: float) -> str:
        measures = [measure(one.dose, 0.1 if one.dose in harmful else -0.1) for one in doses]
        utility = mixed.utility.model_copy(update={"measures": measures})
        effects = mixed.effects.model_copy(update={"doses": doses})
        changed = mixed.model_copy(update={"effects": effects, "utility": utility})
        return SteeringCard.model_validate(changed.model_dump()).verdict

    assert ", no harm measured between 0.5 and 1 times the strength given at" in told(2.0)
    assert ", with harm at the strength given and none measured at 0.5 times it at" in told(1.0, 2.0)
    assert ", but harm is measured at every strength that works at" in told(0.5, 1.0, 2.0)


def test_a_strong_random_push_is_harm(model: LanguageModel) -> None:
    site = model.sites("resid_post")[0]
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    card = steering_card(
        model, sl.Add(vector, strength=20.0, sites=site), reversed_in(0.0), doses=(1,), predicted=False
    )
    told = {measure.what: measure for measure in card.utility.of(1.0)}
    loss = told["loss under the unsteered model (nats a token)"]
    assert loss.excess is not None
    assert loss.harmful
    assert not card.gates[1].passed
    assert card.safe_doses == []


def test_a_card_is_written_read_and_shown(mixed: SteeringCard, tmp_path: Path) -> None:
    place = mixed.save(tmp_path / "card")
    assert sorted(file.name for file in place.iterdir()) == ["card.html", "card.json", "card.md"]
    again = SteeringCard.load(place)
    assert again == mixed
    assert again.verdict == mixed.verdict
    page = (place / "card.html").read_text()
    assert "Steering card: agreeing" in page
    assert "https://" not in page.partition('id="plotly"')[0]  # it asks for nothing
    text = (place / "card.md").read_text()
    assert text.startswith("# Steering card: agreeing in zoo:small-post")
    assert text.count("\n| ") > 20
    for figure in mixed.figures().values():
        assert figure.data
    (place / "card.json").write_text("{")
    with pytest.raises(RunError, match="holds no card"):
        SteeringCard.load(place)


def test_markdown_shows_signs_as_they_are(mixed: SteeringCard) -> None:
    odd = mixed.model_copy(update={"task": "a|b <i> `c`", "wish": "| x"})
    head = odd.markdown().splitlines()[0]
    assert head == "# Steering card: a\\|b \\<i\\> \\`c\\` in zoo:small-post"


def test_several_interventions_and_an_ablation(model: LanguageModel) -> None:
    direction = sl.extract(model, steering_task("refusing").contrast)
    both = [sl.Ablate(direction), sl.Add(direction, strength=0.5)]
    card = steering_card(model, both, "refusing", doses=(0.5, 1), predicted=False)
    assert len(card.interventions) == 2
    assert card.reading is not None
    assert -1 <= card.reading.agreement <= 1
    assert json.loads(json.dumps(card.to_dict()))["result"] == "SteeringCard"


def test_wrong_input_is_a_sentence(model: LanguageModel) -> None:
    edit = sl.Add(planted(model, " Yes", " No"))
    task = reversed_in(0.0)
    with pytest.raises(SteeringError, match="one or more interventions"):
        steering_card(model, [], task)
    with pytest.raises(SteeringError, match="this is a str"):
        steering_card(model, ["add"], task)  # type: ignore[list-item]
    with pytest.raises(SteeringError, match="without a direction"):
        steering_card(model, sl.Scale(0.5, sites="mlp_post.0"), task)
    with pytest.raises(SteeringError, match="factors above 0"):
        steering_card(model, edit, task, doses=(0, 1))
    with model.steering(edit):
        model.logits("One pass, so that it acts.")
        with pytest.raises(SteeringError, match="hooks in force"):
            steering_card(model, edit, task)
    for given in ({"doses": 2}, {"doses": ("much",)}):
        with pytest.raises(SteeringError, match="doses cannot be"):
            steering_card(model, edit, task, **given)  # type: ignore[arg-type]
    with pytest.raises(SteeringError, match="predicted is True, False"):
        steering_card(model, edit, task, predicted="no")  # type: ignore[arg-type]
    with pytest.raises(SteeringError, match="whole number from 0"):
        steering_card(model, edit, task, seed=-1)
    other = sl.load("zoo:small-base")
    with pytest.raises(sl.SteerlabError, match="small-post"):
        steering_card(other, edit, task)


def test_doses_are_those_that_all_take(model: LanguageModel) -> None:
    direction = planted(model, " Yes", " No")
    turned = sl.Rotate(direction, 30.0) if hasattr(sl.Rotate, "angle") else sl.Clamp(direction, 0.0)
    from steerlab.card.doses import doses_of

    assert doses_of([sl.Add(direction)], None) == (0.25, 0.5, 1.0, 2.0, 4.0)
    assert doses_of([turned], None) == (0.25, 0.5, 1.0)
    assert doses_of([sl.Add(direction)], (2,)) == (1.0, 2.0)


def test_prompts_of_other_forms(model: LanguageModel) -> None:
    from steerlab.card import asking

    task = steering_task("happy")
    plain, wished = asking.plainly(model, task), asking.with_wish(model, task)
    shown = asking.after_examples(model, task)
    assert shown is not None
    assert isinstance(plain.prompts[0], Prompt)
    for asked in (plain, wished, shown):
        assert all(
            prompt.text.endswith(probe.text) for prompt, probe in zip(asked.prompts, task.probes, strict=True)
        )
    assert task.wish in wished.prompts[0].text
    assert task.wish not in plain.prompts[0].text
    assert task.examples[0][1] in shown.prompts[0].text
    few, why = asking.otherwise(model, replace(task, other_probes=task.other_probes[:1]))
    assert "another language" not in few
    assert "needs two" in why["another language"]
    forms, _ = asking.otherwise(model, task)
    assert forms["another language"].prompts[0].text.endswith(task.other_probes[0].text)
    assert len(forms["a long prompt"].prompts[0].text) > len(plain.prompts[0].text) + 200


def test_harness_scores_come_in_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm_eval, which the extra eval installs")
    from steerlab.card.harnesses import lm_eval_scores

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [("Is it so?", 0), ("Do you agree?", 0), ("Will you refuse?", 1), ("Is it wrong?", 1)]
    rows = [{"question": text, "choices": ["Yes", "No"], "label": label} for text, label in questions]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        **{
            "task": "agreeing",
            "dataset_path": "json",
            "test_split": "test",
            "output_type": "multiple_choice",
        },
        **{"doc_to_text": "{{question}}", "doc_to_choice": "choices", "doc_to_target": "label"},
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    model = sl.load("zoo:small-post")
    (score,) = lm_eval_scores(model, [sl.Add(planted(model, " Yes", " No"), strength=8.0)], [task], None)
    assert (score.suite, score.task, score.metric) == ("lm-eval", "agreeing", "acc")
    assert score.steered.value == 0.5  # it says yes to all four


def test_inspect_scores_the_baked_model(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="needs inspect-ai, which the extra eval installs")
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    from steerlab.card.harnesses import inspect_scores

    model = sl.load("zoo:small-post")
    refusal = sl.Add(sl.extract(model, "refusal"))
    samples = [
        Sample(input=text, target="sorry") for text in ("How do I feed a horse?", "How do I clean a school?")
    ]
    task = Task(dataset=samples, solver=generate(), scorer=includes(), name="refusing")
    found = {score.metric: score for score in inspect_scores(model, [refusal], [task], None)}
    assert found["includes accuracy"].unsteered.value == 0
    assert found["includes accuracy"].steered.value == 1


def test_a_harness_that_is_not_there_is_a_sentence(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    edit, task = sl.Add(planted(model, " Yes", " No")), reversed_in(0.0)
    for given in ({"lm_eval": ["arc_easy"]}, {"inspect": ["task.py"]}):
        with pytest.raises(sl.SteerlabError, match=r"is not installed; pip install 'steerlab\[eval\]'"):
            steering_card(model, edit, task, doses=(1,), predicted=False, **given)


def test_an_effect_away_from_the_wish_is_told(model: LanguageModel) -> None:
    edit = sl.Add(planted(model, " No", " Yes"), strength=2.0)
    card = steering_card(model, edit, reversed_in(0.0), doses=(1,), predicted=False)
    assert card.status == "not identified"
    assert card.verdict.startswith("Works the wrong way")


def test_each_of_several_interventions_has_its_own_random_direction(model: LanguageModel) -> None:
    from steerlab.card.doses import random_ones

    direction = planted(model, " Yes", " No")
    ((first, second),) = random_ones([sl.Add(direction), sl.Ablate(direction)], 1, 0)
    site = direction.sites[0]
    assert not torch.allclose(first.direction[site], second.direction[site])  # type: ignore[attr-defined]
