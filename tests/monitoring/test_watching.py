"""A watch's scores are those of a re-read, whatever way the text is written; and nothing it does is left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab.errors import DirectionError, SteeringError
from steerlab.models import LanguageModel
from steerlab.monitoring import Seen

PROMPTS = ["The capital of France is", "Is a cat", "One two three four five six seven eight nine", "Hello"]
FAMILIES = ["llama", "gpt2", "gemma3", "opt", "mixtral", "falcon", "mamba"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny(request.param)


def direction(model: LanguageModel, site: str, seed: int = 0) -> sl.Direction:
    vector = torch.randn(model.width(sl.Site.parse(site)), generator=torch.Generator().manual_seed(seed))
    return sl.Direction({site: vector}, model.name, model.fingerprint)


def again(model: LanguageModel, written: Any, probe: sl.Direction) -> list[np.ndarray]:
    """The projections of a re-read: of each text its written tokens but the last one."""
    (site,) = probe.sites
    states = sl.capture(model, written, site, positions=sl.Generated())
    unit = probe[site].double() / probe[site].double().norm()
    scores = states[site].double() @ unit
    ends = {tuple(each.token_ids): int(each.finished) for each in written}
    assert ends
    return [scores[states.example == row][:-1].numpy() for row in range(len(written))]


def require_same(seen: Seen, right: list[np.ndarray]) -> None:
    assert len(seen.scores) == len(right)
    for found, wanted in zip(seen.scores, right, strict=True):
        scale = float(np.abs(wanted).max(initial=1e-3))
        np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5 * scale)


def test_scores_are_those_of_a_reread_in_every_way(model: LanguageModel) -> None:
    probe = direction(model, "resid_post.1")
    before = [len(module._forward_hooks) for module in model.model.modules()]
    for options in ({}, {"token_budget": 24}, {"do_sample": True, "seed": 3}):
        with model.watch(probe) as seen:
            written = model.generate(PROMPTS, max_new_tokens=9, **options)  # type: ignore[call-overload]
        require_same(seen, again(model, written, probe))
        for scores, each in zip(seen.scores, written, strict=True):
            assert scores.token_ids == each.token_ids[:-1]
            assert scores.prompt.text == each.prompt.text
    with model.watch(probe) as seen:
        stream = model.stream(PROMPTS[2], max_new_tokens=9)
        while True:
            try:
                next(stream)
            except StopIteration as stop:
                whole = stop.value
                break
    require_same(seen, again(model, [whole], probe))
    assert [len(module._forward_hooks) for module in model.model.modules()] == before


def test_prompt_scores_are_those_of_capture(model: LanguageModel) -> None:
    probe = direction(model, "resid_post.1")
    with model.watch(probe) as seen:
        model.generate(PROMPTS, max_new_tokens=3)
    states = sl.capture(model, PROMPTS, "resid_post.1", positions=sl.All())
    unit = torch.nn.functional.normalize(probe["resid_post.1"], dim=0)
    for row, scores in enumerate(seen.scores):
        right = (states["resid_post.1"] @ unit)[states.example == row].numpy()
        np.testing.assert_allclose(scores.prompt_values, right, atol=1e-5 * np.abs(right).max())
        assert len(scores.prompt_tokens) == len(scores.prompt_values)


@pytest.mark.parametrize("outside", ["watch", "steering"])
def test_a_watch_stands_behind_the_edits_whichever_was_entered_first(
    model: LanguageModel, outside: str
) -> None:
    probe, added = direction(model, "resid_post.1"), direction(model, "resid_post.1", 1)
    edit = sl.Add(
        added, 3.0, unit="raw", positions=sl.Last() | sl.Generated(), schedule=lambda step: 1 / (1 + step)
    )
    if outside == "watch":
        with model.watch(probe) as seen, model.steering(edit):
            written = model.generate(PROMPTS, max_new_tokens=6)
    else:
        with model.steering(edit), model.watch(probe) as seen:
            written = model.generate(PROMPTS, max_new_tokens=6)
    with model.steering(edit):  # positions and steps are those of the writing, not of a longer prompt
        require_same(seen, again(model, written, probe))
    plain = again(model, written, probe)
    assert any(
        np.abs(np.asarray(a) - b).max(initial=0) > 1e-3 for a, b in zip(seen.scores, plain, strict=True)
    )


def test_several_probes_at_several_sites(model: LanguageModel) -> None:
    probes = [
        direction(model, "resid_post.0"),
        direction(model, "resid_pre.1"),
        direction(model, "resid_post.0", 5),
    ]
    with model.watch(*probes) as seen:
        written = model.generate(PROMPTS, max_new_tokens=5)
    for place, probe in enumerate(probes):
        require_same(seen.of(place), again(model, written, probe))
        require_same(seen.of(probe), again(model, written, probe))
    with pytest.raises(SteeringError, match="3 probes; take one"):
        seen.scores  # noqa: B018
    with pytest.raises(SteeringError, match="none of them"):
        seen.of(7)


def test_several_calls_and_a_rerun_in_halves() -> None:
    model = tiny("llama")
    probe = direction(model, "resid_post.1")
    with model.watch(probe) as seen:
        first = model.generate(PROMPTS, max_new_tokens=4)
        model.generate(PROMPTS[1], max_new_tokens=4)
    assert [scores.prompt.text for scores in seen.scores] == [*PROMPTS, PROMPTS[1]]
    fails = [True]

    def no_room(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] == 1 and fails:
            fails.clear()
            raise torch.OutOfMemoryError("out of memory")

    handle = model.anatomy.base.register_forward_pre_hook(no_room, with_kwargs=True)
    with model.watch(probe) as seen:
        again_written = model.generate(PROMPTS, max_new_tokens=4)
    handle.remove()
    assert not fails
    assert [each.text for each in again_written] == [each.text for each in first]
    assert [scores.prompt.text for scores in seen.scores] == PROMPTS
    require_same(seen, again(model, again_written, probe))


def test_an_assistants_proposals_leave_no_trace() -> None:
    model, other = tiny("llama"), tiny("llama", seed=1)
    probe = direction(model, "resid_post.1")
    with model.watch(probe) as seen:
        written = model.generate(PROMPTS[:2], max_new_tokens=8, assistant=other)
    for scores, each, right in zip(seen.scores, written, again(model, written, probe), strict=True):
        count = min(len(scores), len(right))
        assert count >= len(each.token_ids) - 2
        np.testing.assert_allclose(np.asarray(scores)[:count], right[:count], atol=1e-5 * np.abs(right).max())


def test_a_watch_goes_on_behind_a_steering_context_that_ended() -> None:
    model = tiny("llama")
    probe, added = direction(model, "resid_post.1"), direction(model, "resid_post.1", 1)
    with model.watch(probe) as seen:
        model.generate(PROMPTS[0], max_new_tokens=4)
        with model.steering(sl.Add(added, unit="raw")):
            model.generate(PROMPTS[1], max_new_tokens=4)
        with pytest.raises(KeyError), model.steering(sl.Add(added, unit="raw")):
            raise KeyError
        last = model.generate(PROMPTS[2:], max_new_tokens=4)
    assert [scores.prompt.text for scores in seen.scores] == PROMPTS
    for scores, right in zip(seen.scores[2:], again(model, last, probe), strict=True):
        np.testing.assert_allclose(np.asarray(scores), right, atol=1e-5 * np.abs(right).max())
    assert not any(module._forward_hooks for module in model.model.modules())


def test_a_reread_inside_a_watch_has_no_padding() -> None:
    model = tiny("llama")
    probe = direction(model, "resid_post.1")
    written = [
        model.generate(text, max_new_tokens=count) for text, count in zip(PROMPTS, (6, 2, 4, 1), strict=True)
    ]
    with model.watch(probe) as seen:
        states = model.reread(written, "resid_post.1", positions=sl.Generated())
    assert [scores.token_ids for scores in seen.scores] == [each.token_ids for each in written]
    unit = torch.nn.functional.normalize(probe["resid_post.1"], dim=0)
    right = (states["resid_post.1"] @ unit).numpy()
    found = np.concatenate([np.asarray(scores) for scores in seen.scores])
    np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


def test_a_prompt_without_room_keeps_its_number() -> None:
    model = tiny("llama")
    context = model.context
    full = next(text for count in range(1, 400) if model.lengths([text := "a " * count])[0] == context)
    with model.watch(direction(model, "resid_post.1")) as seen:
        written = model.generate([full, PROMPTS[0]], max_new_tokens=4)
    assert next(len(each.token_ids) for each in written) == 0
    assert [len(scores) for scores in seen.scores] == [0, len(written[1].token_ids) - 1]


def test_the_view_of_one_probe_is_live_and_known_by_what_was_given() -> None:
    model = tiny("llama")
    vectors = {site: torch.randn(model.d_model) for site in ("resid_post.0", "resid_post.1")}
    given = sl.Direction(vectors, model.name, model.fingerprint, best=sl.Site.parse("resid_post.1"))
    with model.watch(given, direction(model, "resid_post.0")) as seen:
        first, second = seen.of(given), seen.of(1)
        model.generate(PROMPTS, max_new_tokens=3)
        assert len(first) == len(second) == len(PROMPTS)
    assert first.probes[0].sites == (sl.Site.parse("resid_post.1"),)


def test_interleaved_streams_have_latches_of_their_own() -> None:
    from steerlab.steering import Condition

    model = tiny("llama")
    probe = direction(model, "resid_post.1")
    with model.watch(probe) as seen:
        model.generate(PROMPTS, max_new_tokens=10)
    limit = float(np.median([max(scores) for scores in seen.scores]))  # half of the texts pass it
    gate = Condition(probe, threshold=limit, positions=None, latched=True)
    edit = sl.Add(5 * torch.ones(model.d_model), sites="resid_post.1", condition=gate)
    with model.steering(edit):
        alone = ["".join(model.stream(text, max_new_tokens=10)) for text in PROMPTS]
        streams = [model.stream(text, max_new_tokens=10) for text in PROMPTS]
        told = [""] * len(PROMPTS)
        going = set(range(len(PROMPTS)))
        while going:
            for number in sorted(going):
                piece = next(streams[number], None)
                if piece is None:
                    going.discard(number)
                else:
                    told[number] += piece
    assert told == alone


def test_raw_calls_are_watched_too() -> None:
    model = tiny("llama")
    probe = direction(model, "resid_post.1")
    ids = model.tokenize(PROMPTS[0]).input_ids
    with model.watch(probe) as seen, torch.inference_mode():
        model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
    (scores,) = seen.scores
    assert len(scores.prompt_values) == ids.shape[1]
    assert len(scores) == 4


def test_thinking_is_told_from_the_answer() -> None:
    from steerlab.monitoring.segments import segments

    class Words:
        """One character a token."""

        def decode(self, ids: list[int], **options: Any) -> str:
            return "".join(map(chr, ids))

    def told(prompt: str, text: str) -> str:
        return "".join(part[0] for part in segments(Words(), prompt, [*map(ord, text)]))

    assert told("Q", "yes") == "aaa"
    assert told("Q<think>\n", "hm</think>yes") == "t" * 10 + "aaa"
    assert told("Q", "<think>h</think>ye") == "t" * 16 + "aa"
    assert told("Q", "<think>hm") == "t" * 9
    assert told("Q<think>\n\n</think>\n\n", "yes") == "aaa"


def test_bad_input_gets_a_sentence() -> None:
    model, other = tiny("llama"), tiny("gpt2")
    probe = direction(model, "resid_post.1")
    two = sl.Direction(
        {s: torch.ones(model.d_model) for s in ("resid_post.0", "resid_post.1")},
        model.name,
        model.fingerprint,
    )
    many = sl.Direction({"resid_post.0": torch.eye(model.d_model)[:2]}, model.name, model.fingerprint)
    for given, error, words in (
        ((), SteeringError, "needs a probe"),
        ((two,), SteeringError, "2 sites and no best one"),
        ((many,), SteeringError, "2 vectors"),
        (("mood",), SteeringError, "A probe is a direction"),
        ((direction(other, "resid_post.1"),), DirectionError, "was made in"),
    ):
        with pytest.raises(error, match=words), model.watch(*given):
            pass
    with pytest.raises(SteeringError, match="no calibration"), model.watch(probe, alarm=sl.Alarm()):
        pass
    with pytest.raises(SteeringError, match=r"An alarm is sl\.Alarm"), model.watch(probe, alarm=0.05):
        pass
    with pytest.raises(SteeringError, match="num_beams"), model.watch(probe):
        model.generate(PROMPTS, max_new_tokens=4, num_beams=2)
    with model.watch(probe) as seen:
        pass
    assert len(seen) == 0
    with pytest.raises(SteeringError, match="Nothing was written"):
        seen.plot()
    with pytest.raises(SteeringError, match="has no alarm"):
        seen.alarms  # noqa: B018
