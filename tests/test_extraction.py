"""From a contrast to a direction file, and the short texts that name layers and strengths."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab import capture, cli
from steerlab.cli.written import parse_steer, read_direction
from steerlab.datasets import Statement, StatementSet
from steerlab.directions import Ccs
from steerlab.errors import DatasetError, DirectionError
from steerlab.extraction import (
    LabelledPrompts,
    chosen_layers,
    extract_from,
    negation_pairs,
    own_prompts,
    packaged_prompts,
)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", [0, 1, 2, 3, 4, 5]), ("4", [4]), ("2-4", [2, 3, 4]), ("5, 1,1", [1, 5]), ("0-1,3", [0, 1, 3])],
)
def test_layers_by_name(text: str, layers: list[int]) -> None:
    assert chosen_layers(text, 6) == layers


@pytest.mark.parametrize("text", ["", "first", "4-", "-1", "3-9", "6", "4-2"])
def test_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(DirectionError):
        chosen_layers(text, 6)


def test_steering_by_name() -> None:
    assert parse_steer("a/b.safetensors") == (Path("a/b.safetensors"), None, None)
    assert parse_steer("b.safetensors:-1.5@3-4") == (Path("b.safetensors"), -1.5, "3-4")
    assert parse_steer("b.safetensors@3") == (Path("b.safetensors"), None, "3")
    for text in ("b.pt:1", "b.safetensors:much", "b.safetensors:nan", ""):
        with pytest.raises(DirectionError):
            parse_steer(text)


def test_extracted_direction_is_the_difference_of_class_means(tmp_path: Path) -> None:
    model = tiny("llama")
    data = packaged_prompts(model, "refusal", template="plain")
    assert data.pairs is None
    assert data.polarity is None
    rows = [*range(20), *range(len(data.prompts) - 20, len(data.prompts))]
    some = LabelledPrompts(
        [data.prompts[row] for row in rows],
        [data.labels[row] for row in rows],
        "hash",
        [data.groups[row] for row in rows],
    )
    direction = extract_from(model, some, layers="1-2")
    assert [str(site) for site in direction.sites] == ["resid_post.1", "resid_post.2"]
    states = sl.capture(model, some.prompts, direction.sites)
    for site in direction.sites:
        difference = states[site][:20].double().mean(0) - states[site][20:].double().mean(0)
        assert (direction[site].double() - difference).abs().max() < 1e-5
        accuracy = direction.accuracy[site]
        assert accuracy.low <= accuracy.value <= accuracy.high
    assert direction.best in direction.sites
    direction.save(tmp_path / "d.safetensors")
    again = sl.Direction.load(tmp_path / "d.safetensors")
    assert (again.best, dict(again.accuracy)) == (direction.best, dict(direction.accuracy))
    assert read_direction(tmp_path / "d.safetensors", "2", model).sites == (sl.Site("resid_post", 2),)
    with pytest.raises(DirectionError, match="no vector at layer 0"):
        read_direction(tmp_path / "d.safetensors", "0", model)


def test_packaged_statements_come_as_pairs_with_their_negations() -> None:
    data = packaged_prompts(tiny("llama"), "truth")
    assert data.pairs is not None
    assert data.polarity is not None
    texts: dict[int, dict[int, str]] = {}
    for prompt, pair, polarity in zip(data.prompts, data.pairs, data.polarity, strict=True):
        texts.setdefault(pair, {})[polarity] = prompt.text
    assert 2 * len(texts) == len(data.prompts)
    assert all(two[-1].replace("not ", "", 1) == two[1] for two in texts.values())


@pytest.mark.parametrize(
    "change",
    [{"polarity": 1}, {"label": True}, {"topic": "another"}, {"form": "conjunction"}],
    ids=lambda change: str(*change),
)
def test_statements_that_are_no_pairs_give_none(change: dict[str, object]) -> None:
    pair = [
        Statement("Owls are birds.", True, polarity=1, spans={"subject": (0, 4)}),
        Statement("Owls are not birds.", False, polarity=-1, spans={"subject": (0, 4)}),
    ]
    assert negation_pairs(StatementSet(pair)) == [0, 0]
    assert negation_pairs(StatementSet([pair[0], replace(pair[1], **change)])) is None  # type: ignore[arg-type]
    assert negation_pairs(StatementSet([*pair, pair[0]])) is None


@pytest.mark.parametrize("estimator", ["lda", "pca", Ccs(2, steps=300, learning_rate=0.01), "ttpd"], ids=str)
def test_estimators_of_pairs_are_judged_by_whole_pairs(
    estimator: Any,
) -> None:
    """On what the zoo's model holds true, at a layer where truth can be read."""
    model = sl.load("zoo:small-post")
    data = packaged_prompts(model, "truth")
    direction = extract_from(model, data, estimator=estimator, layers="1")
    site = sl.Site("resid_post", 1)
    assert direction.accuracy[site].low > 0.8
    assert direction.class_gap[site] > 0
    assert direction.best == site


def test_estimators_of_pairs_refuse_prompts_that_are_none() -> None:
    data = own_prompts(tiny("llama"), [f"a cat {n}" for n in range(5)], [f"one dog {n}" for n in range(6)])
    with pytest.raises(DatasetError, match="PcaReader reads pairs of a statement and its negation"):
        extract_from(tiny("llama"), data, estimator="pca")


def test_matched_texts_of_ones_own_are_pairs_for_estimators_of_pairs() -> None:
    """What other tools call a dataset of contrastive pairs; in any order, and as two lists."""
    model = tiny("llama")
    pairs = [
        (f"A {word} makes me happy.", f"A {word} makes me sad.")
        for word in ("cat", "dog", "cow", "owl", "pig")
    ]
    rows = own_prompts(model, pairs)
    lists = own_prompts(model, *([pair[side] for pair in pairs] for side in (0, 1)))
    assert rows.pairs is not None
    assert sorted(Counter(rows.pairs).values()) == [2] * 5
    direction = extract_from(model, rows, estimator="pca")
    states = capture(model, [text for pair in pairs for text in pair], "resid_post.1")
    differences = (states["resid_post.1"][::2] - states["resid_post.1"][1::2]).double()
    expected = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    found = direction["resid_post.1"].double()
    assert abs(float(found @ expected / found.norm())) > 1 - 1e-6
    assert direction.cosine(extract_from(model, lists, estimator="pca"))[sl.Site("resid_post", 1)] > 1 - 1e-6


def test_what_is_read_without_a_file_depends_on_the_model(tmp_path: Path) -> None:
    model = tiny("llama")
    assert packaged_prompts(model, "truth").hash == sl.datasets.statements().hash
    model.topics = sl.datasets.facts.TOPICS
    assert packaged_prompts(model, "truth").hash == sl.zoo.known_statements().hash


def test_a_packaged_contrast_is_known_by_its_name_and_held_out_by_pairs() -> None:
    model, spanish = tiny("llama"), sl.datasets.contrasts()["spanish"]
    data = own_prompts(model, "spanish")
    assert data.hash == own_prompts(model, spanish).hash == spanish.hash
    assert [prompt.text for prompt in data.prompts] == [*spanish.positive, *spanish.negative]
    assert data.groups[: len(spanish.positive)] == data.groups[len(spanish.positive) :]
    assert sl.extract(model, "spanish", layers=1).dataset_hash == spanish.hash
    other = own_prompts(model, "spanish", label="english")
    assert other.labels == [1 - label for label in data.labels]
    assert packaged_prompts(model, "refusal").hash == sl.datasets.requests().hash


def test_an_unknown_name_lists_the_packaged_contrasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DatasetError, match=r"no contrast 'glad'; write truth, refusal, .*spanish, .*or the name"
    ):
        sl.extract(tiny("llama"), "glad")
    Path("spanish").write_text("a file")  # the name comes first; a path is a file
    assert own_prompts(tiny("llama"), "spanish").hash == sl.datasets.contrast("spanish").hash
    with pytest.raises(DatasetError, match="the format is told by the ending"):
        own_prompts(tiny("llama"), Path("spanish"))
    arguments = ["extract", "zoo:small-post", "--layers", "1", "--out", "d.safetensors", "--contrast"]
    monkeypatch.setattr(sys, "argv", ["steerlab", *arguments, "formal"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert sl.Direction.load("d.safetensors").dataset_hash == sl.datasets.contrast("formal").hash
    assert "from 'plain' to 'formal'" in capsys.readouterr().out


def test_a_named_template_is_used_for_statements_too() -> None:
    model = tiny("llama")
    bare, rendered = packaged_prompts(model, "truth"), packaged_prompts(model, "truth", "plain")
    assert rendered.prompts[0].text == f"User: {bare.prompts[0].text}\nAssistant:"
    some = [replace_rows(data, [*range(0, 40, 2), *range(1, 41, 2)]) for data in (bare, rendered)]
    first, second = (extract_from(model, data, layers="1") for data in some)
    assert first.hash != second.hash


def replace_rows(data: LabelledPrompts, rows: list[int]) -> LabelledPrompts:
    """Some of the prompts, as they come."""
    return LabelledPrompts(
        [data.prompts[row] for row in rows],
        [data.labels[row] for row in rows],
        data.hash,
        list(range(len(rows))),
    )


def test_as_many_requests_of_either_kind_are_read(tmp_path: Path) -> None:
    rows = {
        "harmful": [f"Wreck thing{i} now" for i in range(9)],
        "harmless": [f"Mend part{i} later" for i in range(30)],
    }
    for kind, texts in rows.items():
        (tmp_path / f"{kind}.csv").write_text("\n".join(["text", *texts]))
    data = own_prompts(tiny("llama"), tmp_path, template="plain")
    assert sum(data.labels) * 2 == len(data.labels)
    assert data.hash != sl.datasets.read_requests(tmp_path).hash


def test_extract_and_generate_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny("llama")
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data.csv"
    rows = [f"{animal} are {kind},{kind == 'birds'}" for animal in ("owls", "crows", "hens", "swans", "gulls", "ducks")
            for kind in ("birds", "fish")]  # fmt: skip
    data.write_text("text,label\n" + "\n".join(rows) + "\n")

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["steerlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    file = tmp_path / "d.safetensors"
    assert run("extract", tmp_path / "model", "--contrast", data, "--out", file) == 0
    assert "resid_post.0" in capsys.readouterr().out
    steered = run("generate", tmp_path / "model", "owls are", "--steer", f"{file}:4@1", "--ablate", f"{file}@0",
                  "--max-new-tokens", 4)  # fmt: skip
    assert steered == 0
    shown = capsys.readouterr().out
    assert "unsteered" in shown
    assert run("generate", tmp_path / "model", "owls are", "--steer", f"{data}:1") == 2
    assert run("generate", tmp_path / "model", "owls are", "--ablate", file, "--max-new-tokens", 2) == 0
    assert run("generate", tmp_path / "model", "owls are", "--steer", f"{file}:1", "--max-new-tokens", 2) == 0
    capsys.readouterr()
    for toward in ("mean@0", "mean", "2", "0.5@0-1"):
        ablate = f"{file}:{toward}"
        assert run("generate", tmp_path / "model", "owls are", "--ablate", ablate, "--max-new-tokens", 2) == 0
    capsys.readouterr()
    assert run("generate", tmp_path / "model", "owls are", "--ablate", f"{file}:strange@0") == 2
    assert "knows no mean of 'strange'" in capsys.readouterr().err
    assert run("extract", tmp_path / "model", "--contrast", data, "--out", tmp_path / "d.pt") == 2
    assert "end in .safetensors" in capsys.readouterr().err
    data.write_text("text,label\nowls are birds,true\nowls are fish,false\n")
    assert run("extract", tmp_path / "model", "--contrast", data, "--out", tmp_path / "e.safetensors") == 2
    assert "at least 5 each" in capsys.readouterr().err
    for content, sentence in (
        ("text,label\nowls,true\nhens,\n", ", row 2, column 'label': empty; every row needs one."),
        ("text,label\nowls,a\nhens,a\n", ": All 2 rows have the label 'a'; add rows with a second label."),
        (
            "text,label\nowls,a\nhens,b\ngulls,c\n",
            ": There are 3 labels, 'a' (first in row 1), 'b' (first in",
        ),
        ("positive,negative\nowls,\n", ", row 1, column 'negative': empty; write a text or delete the row."),
    ):
        data.write_text(content)
        bad = ("extract", tmp_path / "model", "--contrast", data, "--out", tmp_path / "e.safetensors")
        assert run(*bad) == 2
        assert capsys.readouterr().err.startswith(f"steerlab: {data}{sentence}")
    assert not (tmp_path / "e.safetensors").exists()
    assert run("generate", tmp_path / "model", "owls are", "--template", "chat") == 2
    assert "no chat template" in capsys.readouterr().err
