"""`--json` prints one object on standard output and nothing else there; `--quiet` prints results and errors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import build, tiny_tokenizer
from test_cli import run

from steerlab.cli._results import print_json
from steerlab.progress import way
from steerlab.results import SkippedResult
from steerlab.run_folder import Manifest, RunFolder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    place = tmp_path_factory.mktemp("model")
    build("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of texts."""
    place = tmp_path_factory.mktemp("texts")
    for name, thing in (("cats", "cat"), ("dogs", "dog")):
        (place / f"{name}.txt").write_text("\n".join(f"A {thing} was number {n}." for n in range(8)))
    return place / "cats.txt", place / "dogs.txt"


def said(arguments: list[object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """What a command prints as JSON."""
    capfd.readouterr()
    assert run(*arguments, "--json", monkeypatch=monkeypatch) == 0
    return json.loads(capfd.readouterr().out)


def test_a_direction_from_finding_to_shipping(
    model: Path,
    texts: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "d.safetensors"
    extract = ["extract", model, "--positive", texts[0], "--negative", texts[1], "--out", place]
    found = said([*extract, "--seed", 3, "--batch-tokens", 16], monkeypatch, capfd)
    assert found["direction"] == str(place)
    assert found["best"] in found["accuracy"]
    assert set(found["accuracy"]) == {f"resid_post.{layer}" for layer in range(3)}
    assert run(*extract, monkeypatch=monkeypatch) == 2  # the file is there now
    assert run(*extract, "--overwrite", monkeypatch=monkeypatch) == 0
    printed = capfd.readouterr().out
    assert "Five-fold accuracy" in printed
    assert all(site in printed for site in found["accuracy"])
    answer = said(
        ["generate", model, "A cat", "--steer", f"{place}:1", "--max-new-tokens", 3], monkeypatch, capfd
    )
    assert answer.keys() == {"model", "prompt", "steered", "unsteered"}
    assert said(["generate", model, "A cat", "--max-new-tokens", 3], monkeypatch, capfd)["steered"] is None
    baked = said(["bake", model, "--ablate", place, "--out", tmp_path / "baked"], monkeypatch, capfd)
    assert (Path(baked["written"]) / "config.json").exists()
    audited = said(["audit", model, tmp_path / "baked", "--against", place], monkeypatch, capfd)
    assert max(audited["cosines"].values()) > 0.99


def test_neurons_and_doctor(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "neurons.csv"
    found = said(["neurons", model, "--weights-only", "--count", 2, "--out", file], monkeypatch, capfd)
    assert len(found["neurons"]) == 2
    assert found["file"] == str(file)
    assert file.exists()
    checked = said(["doctor", model], monkeypatch, capfd)
    assert checked["checkpoint"]["family"] == "LlamaForCausalLM"
    assert all(row["ok"] for row in checked["self-check"])
    assert "lda" in checked["names"]["estimators"]


def test_runs_and_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest(created="", models={}, data={}, configuration={}, versions={}, hardware={})
    RunFolder.prepare(tmp_path / "run", manifest).write_result(
        "refusal", SkippedResult(study="refusal", reason="no reason").to_dict()
    )
    found = said(["report", tmp_path / "run"], monkeypatch, capfd)
    assert found["report"] == str(tmp_path / "run" / "report.html")
    assert found["studies"]["refusal"]["status"] == "skipped"
    assert found["figures"] is None
    assert set(said(["zoo", "list"], monkeypatch, capfd)) >= {"zoo:small-base", "zoo:large-post"}
    planned = said(
        ["compare", "zoo:small-base", "zoo:small-post", "--studies", "refusal", "--dry-run"],
        monkeypatch,
        capfd,
    )
    assert planned["studies"][0]["study"] == "refusal"


def test_an_error_leaves_standard_output_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("report", tmp_path, "--json", monkeypatch=monkeypatch) == 2
    assert capfd.readouterr().out == ""


def test_quiet_is_silent_until_the_command_ends(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERLAB_PROGRESS", "1")
    asked = ("generate", model, "A cat", "--max-new-tokens", 2)
    assert run(*asked, monkeypatch=monkeypatch) == 0
    loud = capfd.readouterr()
    assert f"Loading {model}" in loud.err.replace("\n", "")
    assert run(*asked, "--quiet", monkeypatch=monkeypatch) == 0
    quiet = capfd.readouterr()
    assert quiet.err == ""
    assert quiet.out == loud.out
    assert run("generate", "zoo:giraffe", "A cat", "--quiet", monkeypatch=monkeypatch) == 2
    assert "giraffe" in capfd.readouterr().err
    assert way() == "bars"


def test_what_json_has_no_word_for(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"nan": float("nan"), "path": Path("a"), "escape": "\x1b[2J\x9b", "pair": (1, True)})
    shown = capfd.readouterr().out
    assert json.loads(shown) == {"nan": None, "path": "a", "escape": "\x1b[2J\x9b", "pair": [1, True]}
    assert "\x1b" not in shown
    assert "\x9b" not in shown
