"""Calibration, alarms and their assessment on planted scores and on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab.directions import ScoreCalibration
from steerlab.errors import DatasetError, DirectionError, SteeringError
from steerlab.monitoring import assess, read_chats
from steerlab.monitoring.alarm import losses

WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "and", "slept", "while", "birds", "sang", "in", "trees", "near"),
    *("old", "stone", "walls", "of", "small", "quiet", "towns"),
)


def chats(count: int, seed: int, extra: str = "") -> list[tuple[str, str]]:
    """Questions and answers of random words; `extra` stands in every answer."""
    rng = np.random.default_rng(seed)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(least, most)))

    return [(f"{text(2, 6)}?", f"{text(2, 8)} {extra} {text(1, 3)}".replace("  ", " ")) for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", chat=True, max_position_embeddings=512)


@pytest.fixture(scope="module")
def direction(model: Any) -> sl.Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return sl.Direction({"resid_post.1": vector}, model.name, model.fingerprint)


@pytest.fixture(scope="module")
def probe(model: Any, direction: sl.Direction) -> sl.Direction:
    return sl.calibrate(direction, model, without=chats(60, 0))


def known(scores: list[list[float]], conversations: list[int] | None = None) -> ScoreCalibration:
    flat = torch.tensor([score for answer in scores for score in answer])
    owner = torch.tensor([row for row, answer in enumerate(scores) for _ in answer])
    return ScoreCalibration(flat, owner, torch.tensor(conversations or list(range(len(scores)))))


def test_calibration_holds_every_tokens_projection(
    model: Any, direction: sl.Direction, probe: sl.Direction
) -> None:
    pairs, held = chats(60, 0), probe.calibration
    assert held is not None
    assert held.n_answers == held.n_conversations == 60
    assert held.dataset_hash
    prompt = model.instruction_prompt(pairs[3][0], response=pairs[3][1])
    states = sl.capture(model, prompt, "resid_post.1", positions=sl.Span("response"))
    unit = direction["resid_post.1"].double() / direction["resid_post.1"].double().norm()
    right = states["resid_post.1"].double() @ unit
    found = held.scores[held.answers == 3].double()
    assert float((found - right).abs().max()) <= 1e-5 * float(right.abs().max())


def test_a_file_keeps_the_calibration_and_arithmetic_drops_it(probe: sl.Direction, tmp_path: Path) -> None:
    probe.save(tmp_path / "probe.safetensors")
    back = sl.Direction.load(tmp_path / "probe.safetensors")
    assert back.calibration is not None
    assert probe.calibration is not None
    for name, tensor in probe.calibration.tensors().items():
        assert torch.equal(back.calibration.tensors()[name], tensor)
    assert back.calibration.dataset_hash == probe.calibration.dataset_hash
    assert (2.0 * probe).calibration is None
    assert (-probe).calibration is None
    assert probe.at("resid_post.1").calibration is probe.calibration
    assert sl.Alarm(rate=0.1).threshold(back) == sl.Alarm(rate=0.1).threshold(probe)


def test_thresholds_by_hand() -> None:
    answers = known([[float(i), -1.0] for i in range(19)])
    assert sl.Alarm(rate=0.05).limit(answers) == 18.0
    assert sl.Alarm(rate=0.1).limit(answers) == 17.0
    # Half of each answer's tokens are low, so a tenth of the tokens of an answer are above at lower thresholds.
    assert sl.Alarm(rate=0.1, per="token").limit(answers) == 16.0
    assert losses(answers, "answer", 16.5).tolist() == [0.0] * 17 + [1.0] * 2
    assert losses(answers, "token", 16.5).tolist() == [0.0] * 17 + [0.5] * 2
    two = known([[float(i)] for i in range(400)], [i // 2 for i in range(400)])
    assert sl.Alarm(rate=0.05, per="conversation").limit(two) == 381.0


def test_answers_of_one_conversation_are_one_unit() -> None:
    """By hand: two answers of a chat share its loss; and twenty alike answers support what one does."""
    two = known([[float(i)] for i in range(40)], [i // 2 for i in range(40)])
    # 20 chats with the answers (0, 1), (2, 3), …: (loss + 1) / 21 <= 0.1 allows a loss of 1.1
    assert sl.Alarm(rate=0.1).limit(two) == 37.0
    assert losses(two, "answer", 36.5).tolist() == [0.0] * 18 + [0.5, 1.0]
    with pytest.raises(SteeringError, match="1 chat cannot support"):
        sl.Alarm(rate=0.05).limit(known([[float(i)] for i in range(20)], [0] * 20))


def test_the_promise_holds_where_answers_of_a_conversation_are_alike() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        chats_ = np.repeat(rng.standard_normal(30), 5) + 0.1 * rng.standard_normal(150)
        learnt = known([[float(score)] for score in chats_[:145]], [i // 5 for i in range(145)])
        rates.append(float((chats_[145:] > sl.Alarm(rate=0.1).limit(learnt)).mean()))
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / np.sqrt(len(rates))


def test_indices_of_a_calibration_are_checked() -> None:
    scores = torch.zeros(2)
    for answers, conversations in (
        (torch.tensor([0, -1]), torch.tensor([0])),
        (torch.tensor([0, 1]), torch.tensor([0, -1])),
        (torch.tensor([0.0, 0.5]), torch.tensor([0])),
        (torch.tensor([0, 1]), torch.tensor([0])),
    ):
        with pytest.raises(DirectionError, match="one answer for each score"):
            ScoreCalibration(scores, answers, conversations)


def test_alarms_sound_where_the_running_maximum_passes(model: Any, probe: sl.Direction) -> None:
    questions = [question for question, _ in chats(30, 7)]
    for per in ("token", "answer"):
        alarm = sl.Alarm(rate=0.3, per=per)
        with model.watch(probe, alarm=alarm) as seen:
            model.generate([model.instruction_prompt(q) for q in questions], max_new_tokens=8)
        limit = alarm.threshold(probe)
        assert seen.threshold == limit
        right = []
        for number, scores in enumerate(seen.scores):
            above = [place for place, score in enumerate(scores) if score > limit]
            right += [(number, place) for place in (above if per == "token" else above[:1])]
        assert [(at.text, at.place) for at in seen.alarms] == right
        assert right
        assert all(at.token == seen.scores[at.text].tokens[at.place] for at in seen.alarms)
        assert "alarm" in repr(seen)
        assert "Alarms" in seen._repr_html_()
        figure = seen.plot()
        assert figure.data[0].y.tolist() == seen.scores[seen.alarms[0].text].values.tolist()
        assert seen.coloured(seen.alarms[0].text).plain


def test_a_conversation_goes_on_from_its_maximum(model: Any, direction: sl.Direction) -> None:
    scores = known([[0.0]] * 200)
    from dataclasses import replace

    low = replace(direction, calibration=replace(scores, scores=scores.scores - 1e6))
    talk = [{"role": "user", "content": "the cat?"}]
    with model.watch(low, alarm=sl.Alarm(rate=0.05, per="conversation")) as seen:
        first = model.generate(model.conversation_prompt(talk), max_new_tokens=5)
        cut = seen.scores[0].text  # what was read
        talk += [{"role": "assistant", "content": cut}, {"role": "user", "content": "a mat?"}]
        model.generate(model.conversation_prompt(talk), max_new_tokens=5)
        model.generate(model.instruction_prompt("birds?"), max_new_tokens=5)
    assert first.text
    assert [at.text for at in seen.alarms] == [0, 2]


def test_an_alarm_gates_an_intervention(model: Any, probe: sl.Direction) -> None:
    prompts = [model.instruction_prompt(question) for question, _ in chats(12, 3)]
    added = 50.0 * torch.ones(model.d_model)
    alarm = sl.Alarm(rate=0.4)
    with model.watch(probe, alarm=alarm) as seen:
        plain = model.generate(prompts, max_new_tokens=10)
    first = {at.text: at.place for at in seen.alarms}
    edit = sl.Add(added, sites="resid_post.1", condition=alarm.condition(probe))
    with model.steering(edit):
        gated = model.generate(prompts, max_new_tokens=10)
    assert 0 < len(first) < len(prompts)
    for row, (a, b) in enumerate(zip(plain, gated, strict=True)):
        same = first.get(row, 10**6) + 1  # the token behind the alarmed one is the first that may differ
        assert a.token_ids[:same] == b.token_ids[:same]
        if row not in first:
            assert a.token_ids == b.token_ids
    assert any(plain[row].token_ids != gated[row].token_ids for row in first)
    one = sl.Add(added, sites="resid_post.1", condition=sl.Alarm(rate=0.4, per="token").condition(probe))
    with model.steering(one):
        model.generate(prompts, max_new_tokens=4)
    data = edit.to_dict()
    assert data["condition"]["latched"] is True
    with pytest.raises(SteeringError, match="num_beams"), model.steering(edit):
        model.generate(prompts, max_new_tokens=4, num_beams=2)


def test_an_alarm_keeps_its_promise_and_its_baselines_are_what_they_are(
    model: Any, direction: sl.Direction
) -> None:
    """The thing is a word of its own, which the words alone tell; the direction is fitted to it."""
    quiet, loud = chats(120, 1), chats(60, 2, extra="volcano")

    def prompts(pairs: list[tuple[str, str]]) -> list[Any]:
        return [model.instruction_prompt(question, response=answer) for question, answer in pairs]

    states = sl.capture(
        model, [*prompts(chats(60, 5)), *prompts(chats(60, 6, "volcano"))], "resid_post.1",
        positions=sl.Span("response"),
    )  # fmt: skip
    mean = torch.stack([states["resid_post.1"][states.example == row].mean(0) for row in range(120)])
    fitted = sl.Direction(
        {"resid_post.1": mean[60:].mean(0) - mean[:60].mean(0)}, model.name, model.fingerprint
    )
    alarm = sl.Alarm(rate=0.1, per="token")
    found = assess(
        fitted, model, alarm, without=quiet, having=loud, shifted={"other answers": chats(40, 9)}, splits=20
    )
    assert found.units == 120
    assert found.keeps_promise
    assert found.auroc is not None
    assert found.auroc.low > 0.5
    assert found.text_auroc is not None
    assert found.text_auroc.value > 0.99
    assert found.shuffled_auroc is not None
    assert found.shuffled_auroc.low < 0.5 < found.shuffled_auroc.high
    assert abs(found.shuffled_auroc.value - 0.5) < 0.15
    assert found.shifted["other answers"].low <= 0.1
    assert len(found.summary) == 3
    assert "keeps its promise" in found.summary[0]
    assert next(row[0] for row in found.table().rows) == "promised rate"
    assert found.plot().data
    assert "promised" in found._repr_html_()
    again = assess(fitted, model, alarm, without=quiet, having=loud, shifted={"other answers": chats(40, 9)})
    assert again == found


def test_the_promise_holds_for_random_directions_on_average(model: Any, direction: sl.Direction) -> None:
    """Conformal thresholds promise nothing of the direction: the mean over splits keeps the rate for any of them."""
    found = assess(direction, model, sl.Alarm(rate=0.1), without=chats(200, 11), splits=40)
    assert found.false_alarms.value <= 0.11
    assert found.false_alarms.low < found.false_alarms.value < found.false_alarms.high


def test_chats_in_every_form(model: Any, direction: sl.Direction, tmp_path: Path) -> None:
    pairs = chats(3, 4)
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in pairs
    ]
    rows = [{"prompt": question, "answer": answer} for question, answer in pairs]
    import json

    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    (tmp_path / "c.csv").write_text("prompt,answer\n" + "\n".join(f'"{q}","{a}"' for q, a in pairs))
    files = [read_chats(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.csv")]
    scores = [
        sl.calibrate(direction, model, without=given).calibration for given in (pairs, rows, talks, *files)
    ]
    first = scores[0]
    assert first is not None
    for other in scores[1:]:
        assert other is not None
        torch.testing.assert_close(other.scores, first.scores, rtol=0, atol=1e-4)
    long = [*talks[0], *talks[1]]
    both = sl.calibrate(direction, model, without=[long]).calibration
    assert both is not None
    assert (both.n_answers, both.n_conversations) == (2, 1)


def test_bad_input_gets_a_sentence(
    model: Any, direction: sl.Direction, probe: sl.Direction, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "broken.jsonl").write_text("{")
    calls: list[tuple[Any, type[Exception], str]] = [
        (lambda: sl.calibrate(direction, model, without=[]), SteeringError, "no chats"),
        (lambda: sl.calibrate(direction, model, without="a.jsonl"), SteeringError, "list of chats"),
        (lambda: sl.calibrate(direction, model, without=["a"]), SteeringError, "Chat 0"),
        (lambda: sl.calibrate(direction, model, without=[("a", " ")]), SteeringError, "is empty"),
        (
            lambda: sl.calibrate(direction, model, without=[[{"role": "user", "content": "a"}]]),
            SteeringError, "does not end with an assistant",
        ),
        (lambda: sl.calibrate(model, direction, without=[("a", "b")]), SteeringError, "calibrate_strength"),
        (lambda: sl.calibrate(direction, tiny("gpt2"), without=[("a", "b")]), DirectionError, "was made in"),
        (lambda: sl.Alarm(rate=1.5), SteeringError, "between 0 and 1"),
        (lambda: sl.Alarm(per="word"), SteeringError, "per token, answer, conversation"),
        (lambda: sl.Alarm(rate=0.01).threshold(probe), SteeringError, "at least 99"),
        (lambda: sl.Alarm(rate=0.5, per="conversation").threshold(probe), SteeringError, "at least 200"),
        (lambda: sl.Alarm().threshold(direction), SteeringError, "no calibration"),
        (lambda: sl.Alarm(per="conversation").condition(probe), SteeringError, "no conversation"),
        (lambda: read_chats(tmp_path / "none.jsonl"), DatasetError, "cannot be read"),
        (lambda: read_chats(tmp_path / "bad.jsonl"), SteeringError, "neither prompt and answer"),
        (lambda: read_chats(tmp_path / "broken.jsonl"), DatasetError, "broken.jsonl"),
        (lambda: assess(probe, model, sl.Alarm(), without=chats(20, 0)), SteeringError, "at least 38"),
    ]  # fmt: skip
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()
