"""One meaning of a strength: class gaps where the direction knows them, raw where it does not, and said so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steerlab as sl
from steerlab.errors import DirectionError, SteeringError
from steerlab.models import LanguageModel
from steerlab.steering import edit_from_dict

PROMPTS = ["a cat", "two dogs sit", "a cat sleeps", "dogs run"]


def fitted(model: LanguageModel) -> sl.Direction:
    return sl.fit_direction(sl.capture(model, PROMPTS, "resid_post"), [1, 0, 1, 0])


def given(model: LanguageModel) -> sl.Direction:
    return sl.Direction({sl.Site("resid_post", 1): torch.arange(1.0, 33.0)}, model.name, model.fingerprint)


def test_a_strength_counts_class_gaps_where_they_are_known(tiny_llama: LanguageModel) -> None:
    known, site = fitted(tiny_llama), sl.Site("resid_post", 1)
    state = torch.zeros(1, 1, 32)
    default, named = sl.Add(known, 2, layers="all"), sl.Add(known, 2, unit="class_gap", layers="all")
    assert (default.unit, named.unit) == ("class_gap", "class_gap")
    assert torch.equal(default.apply(state, site), named.apply(state, site))
    assert float(default.apply(state, site).norm()) == pytest.approx(2 * known.class_gap[site], rel=1e-4)
    assert repr(default) == "Add: adds 2 class gaps of DifferenceInMeans at resid_post.0 to 2, every token"
    assert (-known).class_gap == known.class_gap
    assert sl.Add(-known, layers="all").unit == "class_gap"


def test_what_knows_no_gap_is_added_raw_and_says_so(tiny_llama: LanguageModel) -> None:
    unknown, site = given(tiny_llama), sl.Site("resid_post", 1)
    edit = sl.Add(unknown, 2)
    assert edit.unit == "raw"
    assert torch.equal(edit.apply(torch.zeros(32), site), 2 * unknown[site])
    assert "raw (no class gap is known)" in repr(edit)
    assert "no class gap" not in repr(sl.Add(fitted(tiny_llama), unit="raw", layers="all"))
    with pytest.raises(DirectionError, match=r"class means at resid_post\.1 are not known"):
        sl.Add(unknown, unit="class_gap")
    with pytest.raises(SteeringError, match="no unit 'gaps'; choose from raw, class_gap, norm"):
        sl.Add(unknown, unit="gaps")  # type: ignore[arg-type]


def test_what_was_stored_keeps_its_meaning(tiny_llama: LanguageModel) -> None:
    known, site = fitted(tiny_llama), sl.Site("resid_post", 1)
    data = sl.Add(known, 2, layers="all").to_dict()
    assert data["unit"] == "class_gap"
    assert edit_from_dict(data, [known]).to_dict() == data
    without = {key: value for key, value in data.items() if key != "unit"}
    before = edit_from_dict(without, [known])
    assert isinstance(before, sl.Add)
    assert torch.equal(
        before.apply(torch.zeros(32), site),
        sl.Add(known, 2, unit="raw", layers="all").apply(torch.zeros(32), site),
    )


@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_a_raw_tensor_with_a_site(tiny_llama: LanguageModel, kind: str) -> None:
    vector = torch.arange(1.0, 33.0)
    raw = {"tensor": vector, "array": np.asarray(vector), "list": vector.tolist()}[kind]
    with tiny_llama.steering(sl.Add(given(tiny_llama), 0.5)):
        wanted = tiny_llama.logits("a cat")
    edit = sl.Add(raw, 0.5, sites="resid_post.1")
    with tiny_llama.steering(edit):
        assert torch.equal(tiny_llama.logits("a cat"), wanted)
    assert (
        repr(edit)
        == "Add: adds 0.5 times a raw vector, raw (no class gap is known), at resid_post.1, every token"
    )


def test_a_raw_tensor_goes_into_any_model_of_its_width(
    tiny_llama: LanguageModel, tiny_gpt2: LanguageModel
) -> None:
    edit = sl.Add(torch.arange(1.0, 33.0), sites="resid_post")
    for model in (tiny_llama, tiny_gpt2):
        before = model.logits("a cat")
        with model.steering(edit):
            assert not torch.equal(model.logits("a cat"), before)
    with (
        pytest.raises(DirectionError, match="has width 3 but"),
        tiny_llama.steering(sl.Add(torch.ones(3), sites="resid_post.1")),
    ):
        pass


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: sl.Add(torch.ones(32), 2), "sites='resid_post.5'"),
        (lambda: sl.Add(torch.ones(32), 2, layers=1), "sites='resid_post.5'"),
        (lambda: sl.Add("refusal", 2), "cannot be 'refusal'"),
        (lambda: sl.Ablate({"resid_post.1": 1}), "a sl.Direction, or a tensor"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_direction_says_what_to_type(wrong: object, words: str) -> None:
    with pytest.raises(SteeringError, match=words):
        wrong()  # type: ignore[operator]


def test_interventions_say_what_they_do(tiny_llama: LanguageModel) -> None:
    one = given(tiny_llama)
    for edit, words in [
        (sl.Ablate(one), "Ablate: removes given everywhere in the residual stream, every token"),
        (
            sl.Rotate(one, 10, "angle"),
            "Rotate: turns states towards given by 10 degrees at resid_post.1, every token",
        ),
        (
            sl.Clamp(one, 3.0, "floor"),
            "Clamp: raises the component along given to 3.0 at resid_post.1, every token",
        ),
        (sl.Scale(0.5, heads=[0, 2], sites="z.1"), "Scale: multiplies heads 0, 2 by 0.5 at z.1, every token"),
        (
            sl.Patch(sites="embed", positions=sl.Last()),
            "Patch: puts zeros in at embed, the last token of the prompt",
        ),
        (
            sl.Project(one, sites="resid_post"),
            "Project: keeps only the part along given at every resid_post, every token",
        ),
        (sl.Add(one), "Add: adds 1 times given, raw"),
    ]:
        assert repr(edit).startswith(words)
        assert edit._repr_html_().startswith("<p>")
