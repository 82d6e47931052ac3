"""What newcomers type first: either it works, or one sentence says what to type instead.

Each row is code and what it gives: `True` where the code says whether it worked, or the class of the error and words of
its sentence. No row may end in a raw TypeError, AttributeError or KeyError (but for a missing name, which Python wants
as an AttributeError).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families import build, tiny, tiny_tokenizer

import steerlab as sl
from steerlab.errors import (
    DatasetError,
    DirectionError,
    ModelError,
    PromptError,
    RunError,
    SiteError,
    SteeringError,
    SteerlabError,
)

TEXTS, LABELS = ["a cat", "two dogs", "a horse", "three cats"], [1, 0, 1, 0]

GUESSES: list[tuple[str, Any, str]] = [
    # Sites.
    ('sl.capture(model, T, "resid_post.2").sites == (sl.Site("resid_post", 2),)', True, ""),
    ('len(sl.capture(model, T, "resid_post").sites) == 3', True, ""),
    ('sl.capture(model, T, "blocks.1.hook_resid_post").sites == (sl.Site("resid_post", 1),)', True, ""),
    ('len(sl.capture(model, T, ["resid_post", "embed", sl.Site("z", 0)]).sites) == 5', True, ""),
    ('sl.capture(model, T, "resid_pst.2")', SiteError, "did you mean 'resid_post'"),
    ('sl.capture(model, T, "resid_post2")', SiteError, "did you mean 'resid_post'"),
    ('sl.capture(model, T, "resid_post.9")', SiteError, "layers 0 to 2"),
    ('sl.capture(model, T, "resid_post.-1")', SiteError, r"model\.sites\('resid_post', \[-1\]\)"),
    ('sl.capture(model, T, "hidden_states")', SiteError, "written like 'resid_post.12'"),
    ('sl.capture(model, T, "blocks.1.hook_resid")', SiteError, r"blocks\.0\.hook_resid_post"),
    ("sl.capture(model, T, 2)", SiteError, "write 'resid_post.12' for one layer, 'resid_post' for all"),
    ("sl.capture(model, T, None)", SiteError, "None is not a site"),
    ("sl.capture(model, T, [])", SteerlabError, "at least one site"),
    ('sl.Site("resid_post.2")', SiteError, r"Site\.parse\('resid_post\.2'\)"),
    ('sl.Site("resid_post", "2")', SiteError, "a number counted from 0"),
    ("sl.Site.parse(2)", SiteError, "not as an int"),
    ('model.sites("resid_post", 1) == model.sites("resid_post.1")', True, ""),
    ('model.sites("resid_post", -1) == [sl.Site("resid_post", 2)]', True, ""),
    ('model.width("resid_post.1") == 32', True, ""),
    # Prompts and positions.
    ('sl.capture(model, "a cat", "resid_post.1").n_prompts == 1', True, ""),
    ('sl.capture(model, pd.DataFrame({"text": T})["text"], "resid_post.1").n_prompts == 4', True, ""),
    ('sl.capture(model, pd.DataFrame({"text": T}), "resid_post.1")', PromptError, "give one column"),
    ('sl.capture(model, {"text": T}, "resid_post.1")', PromptError, r"table \('text'\); give one column"),
    ('sl.capture(model, ["a", None], "resid_post.1")', PromptError, "Prompt 1 is None"),
    ('sl.capture(model, [{"role": "user", "content": "a"}], "embed").n_prompts == 1', True, ""),
    ('sl.capture(model, None, "resid_post.1")', PromptError, "not as None"),
    ('sl.capture("zoo:small-post", T, "resid_post.1")', ModelError, r"sl\.load"),
    ('sl.capture(model, T, "resid_post.1", positions="last")', PromptError, r"give sl\.Last\(\)"),
    ('sl.capture(model, T, "resid_post.1", positions=-1)', PromptError, r"give sl\.Index\(-1\)"),
    ('sl.capture(model, T, "resid_post.1", positions=sl.Last)', PromptError, r"the class Last.*Last\(\)"),
    ('sl.capture(model, T, "resid_post.1", positions=sl.Index(9))', PromptError, "choose a nearer one"),
    ('sl.capture(model, T, "resid_post.1", into=sl.Moments)', SteerlabError, r"into=sl\.Moments\(\)"),
    ('sl.Index("last")', PromptError, "whole numbers"),
    ("sl.Window(0.5)", PromptError, "whole numbers"),
    ("sl.Prompt(5)", PromptError, "give a string"),
    # Fitting.
    ('sl.fit_direction(states, L).estimator == "DifferenceInMeans"', True, ""),
    ('sl.fit_direction(states, L, "lda").estimator == "Lda"', True, ""),
    ("sl.fit_direction(states, [True, False, True, False]).hash == direction.hash", True, ""),
    ("sl.fit_direction(states, pd.Series(L)).hash == direction.hash", True, ""),
    ("sl.fit_direction(states, torch.tensor(L)).hash == direction.hash", True, ""),
    ('sl.fit_direction(states, ["true", "false"] * 2, positive="true").hash == direction.hash', True, ""),
    ('sl.fit_direction(states, ["true", "false"] * 2)', DirectionError, r"name it with positive="),
    ('sl.fit_direction(states, ["yes", "no"] * 2, positive="true")', DirectionError, "No label is 'true'"),
    ('sl.fit_direction(states, L, "ldaa")', DirectionError, "choose from .*lda"),
    ("sl.fit_direction(states, L, sl.directions.Lda)", DirectionError, r"Lda\(\)"),
    ("sl.fit_direction(states, L, 5)", DirectionError, "give a name"),
    ("sl.fit_direction(states, L[:3])", DirectionError, "4 prompts came with 3 labels"),
    ("sl.fit_direction(states, [1, 1, 1, 1])", DirectionError, "needs two classes"),
    ("sl.fit_direction(states)", DirectionError, "needs labels"),
    ('sl.fit_direction(states, "1010")', DirectionError, "give a list"),
    (
        'sl.fit_direction(sl.capture(model, T[:2] * 2, "embed"), [1, 0, 0, 0])',
        DirectionError,
        "0 and 2 are one text",
    ),
    ('sl.fit_direction(states, pd.DataFrame({"label": L}))', DirectionError, "give one column"),
    ('sl.extract(model, pd.DataFrame({"t": T}), T)', DatasetError, "give one column"),
    ('sl.fit_direction(states["resid_post.1"], L)', DirectionError, r"sl\.capture.*not on a Tensor"),
    ("sl.fit_direction(model, T, L)", DirectionError, "not on a LanguageModel"),
    # Directions.
    ('direction["resid_post.1"] is direction[1]', False, ""),
    ('torch.equal(direction["resid_post.1"], direction[1])', True, ""),
    ("direction[9]", DirectionError, "it has resid_post.0"),
    ("direction[-1]", SiteError, "count from 0"),
    ('direction["mlp_out.1"]', DirectionError, "no vector at mlp_out.1"),
    ('direction.at("resid_post.9")', DirectionError, "no vector at resid_post.9"),
    (
        'sl.Direction({"resid_post.1": torch.ones(32)}, "m", "f").sites == (sl.Site("resid_post", 1),)',
        True,
        "",
    ),
    ('sl.Direction(torch.ones(32), "m", "f")', DirectionError, "{'resid_post.5': vector}"),
    ("direction + 1", DirectionError, "added to a direction"),
    ('direction * "2"', DirectionError, "with a number"),
    ('sl.Direction.load("nothing.safetensors")', DirectionError, "check the path"),
    # Interventions.
    ("sl.Add(direction, 2, layers=1).sites == (sl.Site('resid_post', 1),)", True, ""),
    ("len(sl.Add(direction, 2, layers=(0, 2)).sites) == 3", True, ""),
    ("sl.Add(direction, 2).sites == (sl.Site('resid_post', 1),)", True, ""),
    ('steered(model.edit("resid_post.1", lambda x: x))', SteeringError, "entered by itself"),
    ("sl.Add(unsure, 2)", SteeringError, "layers=1, or layers='all'"),
    ("sl.Add(direction, 2, layers=-1)", SteeringError, "count from 0"),
    ('sl.Add(direction, 2, layers="1")', SteeringError, "write layers=18"),
    ("sl.Add(direction, 2, layers=9)", DirectionError, "no vector at resid_post.9"),
    ('sl.Add(direction, "2")', SteeringError, "give a number"),
    ("sl.Add(direction, None)", SteeringError, "give a number"),
    ('sl.Add(direction, {"1": 2.0})', SteeringError, "write layers=18"),
    ('sl.Add(direction, 2, unit="gaps")', SteeringError, "choose from raw, class_gap, norm"),
    ('sl.Add(direction, 2, positions="last")', SteeringError, r"give sl\.Last\(\)"),
    ("sl.Add(torch.ones(32), 2)", SteeringError, "sites='resid_post.5'"),
    ('sl.Add("refusal", 2)', SteeringError, r"takes as its direction a sl\.Direction"),
    ("sl.Ablate(direction).direction.sites == (sl.Site('resid_post', 1),)", True, ""),
    ("sl.Ablate(unsure)", SteeringError, "layers=1, or layers='all'"),
    ("sl.Add(direction, 2, layers=np.int64(1)).sites == (sl.Site('resid_post', 1),)", True, ""),
    ("sl.Add(direction.at(1), 2, sites=2).sites == (sl.Site('resid_post', 2),)", True, ""),
    ("sl.Add(torch.ones(32), 2, sites=5)", SiteError, "write 'resid_post.5'"),
    ('sl.Scale(0.5, layers="all")', SteeringError, "sites='resid_post.3'"),
    ('sl.Patch(states, layers="all", positions=sl.Last()).sites == states.sites', True, ""),
    ('bool(steered(sl.Patch(torch.ones(32), sites="resid_post.1")).isfinite().all())', True, ""),
    ('steered(replace(sl.Add(torch.ones(32), sites="resid_post.1"), strength=3.0)) is not None', True, ""),
    ("sl.steering.edit_from_dict(sl.Ablate(direction).to_dict(), [direction]).everywhere", True, ""),
    (
        'sl.Direction({"resid_post.1": torch.ones(4)}, "m", "f", best="resid_post.1").best.layer == 1',
        True,
        "",
    ),
    (
        'sl.Direction({"resid_post.1": torch.ones(4)}, "m", "f", best="resid_post.2")',
        DirectionError,
        "none of",
    ),
    ("sl.Scale(0.5)", SteeringError, "sites='resid_post.3'"),
    ("sl.PerRow(direction, ()).rows[1] == ()", True, ""),
    ("sl.PerRow(direction, None)", SteeringError, "Row 1"),
    ("sl.Condition(direction)", SteeringError, "pick where it is read"),
    # Steering.
    ("steered() is None", SteeringError, "needs at least one edit"),
    ("steered([])", SteeringError, "needs at least one edit"),
    ('steered("refusal")', SteeringError, r"'refusal' is no edit; give .*sl\.Add"),
    ("steered(sl.Add)", SteeringError, "The class Add"),
    ("torch.equal(steered(direction), steered([sl.Add(direction, 1)]))", True, ""),
    ('steered(sl.Add(torch.ones(5), 2, sites="resid_post.1"))', DirectionError, "has width 5 but"),
    ("steered(sl.Add(foreign, 2))", DirectionError, r"was made in tiny-gpt2 .*moved_to"),
    ("steered(sl.Add(direction.at(1), 2, layers=9))", DirectionError, "layers 0 to 2"),
    ('model.edit("resid_post.1", 2).__enter__()', SteeringError, "needs a function"),
    # Text.
    ('model.generate("a cat", max_new_tokens=3) == model.generate(["a cat"], max_new_tokens=3)[0]', True, ""),
    ('model.generate("a cat", max_new_tokens="5")', SteerlabError, "write max_new_tokens=64"),
    ('model.generate("a cat", temperature=0.7)', SteerlabError, "add do_sample=True"),
    ("model.generate(5)", PromptError, "not as an int"),
    ('isinstance(model.ask("A cat?", max_new_tokens=2), str)', True, ""),
    ('model.ask(["A cat?"])', PromptError, "One question"),
    ("model.instruction_prompt(T)", PromptError, "render each text by itself"),
    # Loading, shipping, running.
    ("sl.load(None)", ModelError, "zoo:small-post"),
    ('sl.load("zoo:nothing")', ModelError, "small-post"),
    ('sl.load("./nowhere")', ModelError, "check the path"),
    ("sl.load(module)", ModelError, "needs its tokenizer"),
    ("sl.load(module, tokenizer).n_layers == 3", True, ""),
    ('sl.load("zoo:small-post", quantize=True)', ModelError, "no option quantize; there are backend"),
    ('sl.load("zoo:small-post", dtype="float33")', ModelError, "'float32'"),
    ('sl.export(model, direction, "nowhere", format="onnx")', SteeringError, "choose from transformers"),
    ("sl.bake(model)", SteeringError, "at least one intervention"),
    (
        'sl.compare("zoo:small-base", "zoo:small-post", studies="refusl", out="run")',
        RunError,
        "no study 'refusl'",
    ),
    (
        'sl.calibrate_strength(model, sl.Add(direction), T, T, effect="refusal", target=1)',
        SteeringError,
        "token_log_odds",
    ),
    ('sl.datasets.requests().split("training")', DatasetError, "train, val, test"),
    ("sl.nothing", AttributeError, "steerlab has no 'nothing'"),
    ("sl.fit_directions", AttributeError, r"sl\.fit_direction"),
]


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the guesses may use."""
    model, other = tiny("llama"), tiny("gpt2")
    states = sl.capture(model, TEXTS, "resid_post")

    def steered(*edits: Any) -> torch.Tensor:
        with model.steering(*edits):
            return model.logits("a cat")

    made = SimpleNamespace(
        sl=sl,
        np=np,
        pd=pd,
        torch=torch,
        model=model,
        states=states,
        T=TEXTS,
        L=LABELS,
        steered=steered,
        replace=replace,
    )
    middle = sl.Site("resid_post", 1)
    made.direction = replace(sl.fit_direction(states, LABELS), best=middle)
    made.foreign = replace(sl.fit_direction(sl.capture(other, TEXTS, "resid_post"), LABELS), best=middle)
    made.unsure = replace(made.direction, best=None)
    made.module, made.tokenizer = build("llama"), tiny_tokenizer()
    return vars(made)


def test_there_are_enough_guesses() -> None:
    assert len(GUESSES) >= 100
    assert len({code for code, *_ in GUESSES}) == len(GUESSES)


@pytest.mark.parametrize(("code", "gives", "words"), GUESSES, ids=[code for code, *_ in GUESSES])
def test_a_first_guess_works_or_says_what_to_type(
    code: str, gives: Any, words: str, names: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(gives, bool):
        assert eval(code, dict(names)) is gives
        return
    with pytest.raises(gives, match=words):
        eval(code, dict(names))
